//! What is free on a host, out of what the kubelet offers, what each NUMA node is said to have free, what claims hold,
//! and what our own pods hold (pure).
//!
//! The rule, for each resource of the host and of each of its NUMA nodes:
//!
//! ```text
//! free = min(what its source says is free − what pods of ours hold that the source has not seen,
//!            what is offered − what all pods that we know of hold)
//! ```
//!
//! NodeResourceTopology is up to a minute old, and an allocation is written some time after we placed the pod. Whether a
//! source has seen a pod is told by [`Held`], with time to spare: for that long a pod may count twice, and never not at all.
//! What the rule misses is a pod of somebody else within the source's delay: then the kubelet refuses ours, and it is placed
//! anew.
//!
//! Where it is not known which NUMA node or PCIe root an unseen pod's part comes from, it is taken from each that it may
//! come from.

use std::collections::{BTreeMap, BTreeSet};

use super::Held;
use super::slices::{Device, What};
use super::sriov::{Function, Pools};
use super::zones::{Zone, Zones};
use crate::topology::{Amounts, Host, NumaNode, PcieRoot};

/// Everything besides the Node that is known of one host.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beside<'a> {
    pub(super) zones: Option<&'a Zones>,
    pub(super) devices: &'a [Device],
    pub(super) pools: Option<&'a Pools>,
    pub(super) held: &'a [Held],
}

/// A NUMA node while its parts are gathered.
#[derive(Default)]
struct Node {
    /// What the source says is free.
    available: Amounts,
    /// What pods may use.
    offered: Amounts,
    capacity: Amounts,
    roots: BTreeMap<String, PcieRoot>,
}

impl From<&Zone> for Node {
    fn from(zone: &Zone) -> Self {
        // As on the host as a whole: a device that is away for a moment comes back, what is reserved does not.
        let capacity = Amounts { devices: zone.capacity.devices.clone(), ..zone.allocatable.clone() };
        let (available, offered) = (zone.available.clone(), zone.allocatable.clone());
        Self { available, offered, capacity, roots: BTreeMap::new() }
    }
}

/// Fills in NUMA nodes, PCIe roots, devices of drivers, the kubelet's policy, and what is free.
pub(super) fn merge(host: &mut Host, beside: &Beside<'_>) {
    let mut nodes: BTreeMap<u32, Node> = BTreeMap::new();
    if let Some(zones) = beside.zones {
        host.policy = zones.policy;
        nodes.extend(zones.nodes.iter().map(|zone| (zone.id, Node::from(zone))));
    }
    for amounts in
        nodes.values_mut().flat_map(|node| [&mut node.available, &mut node.offered, &mut node.capacity])
    {
        // A resource that the Node has no more, or that means something else on other hosts, is not had here.
        amounts.devices.retain(|name, _| host.capacity.devices.contains_key(name));
    }
    let knows_cpus = nodes.values().any(|node| node.offered.cpu_millis > 0);
    let mut offered = host.free.clone();
    let mut available = remainder(&offered, nodes.values());
    add_devices(&mut nodes, beside.devices, !knows_cpus);
    add_pools(&mut nodes, &host.capacity, beside);
    for device in beside.devices {
        if let What::Device(_) = device.what {
            more(&mut offered.devices, &device.name, 1);
            more(&mut host.capacity.devices, &device.name, 1);
            more(&mut available.devices, &device.name, u32::from(device.free));
        }
    }
    let by_claims = beside.devices.iter().filter(|device| matches!(device.what, What::Device(_)));
    let sight = Sight {
        held: beside.held,
        has_zones: beside.zones.is_some(),
        knows_cpus,
        by_claims: by_claims.map(|device| device.name.as_str()).collect(),
        is_one_node: nodes.len() <= 1,
    };
    host.free = sight.bounded(&available, &offered, None);
    for (id, node) in &mut nodes {
        for held in
            beside.held.iter().filter(|held| !held.in_claims && held.numa.is_none_or(|numa| numa == *id))
        {
            from_roots(&mut node.roots, held);
        }
    }
    let numa = nodes.into_iter().map(|(id, node)| NumaNode {
        id,
        cpus: Vec::new(),
        free: sight.bounded(&node.available, &node.offered, Some(id)),
        capacity: node.capacity,
        roots: node.roots.into_values().collect(),
    });
    host.numa = numa.collect();
}

/// What is known of pods that hold something, and which sources could have seen it.
struct Sight<'a> {
    held: &'a [Held],
    /// There is a source that looks at the node itself.
    has_zones: bool,
    /// It is the one that tells of CPUs.
    knows_cpus: bool,
    /// Devices whose claims tell who has them.
    by_claims: BTreeSet<&'a str>,
    /// What lies on the host lies on its only node.
    is_one_node: bool,
}

impl Sight<'_> {
    /// The rule of this file, for the host or one of its NUMA nodes.
    fn bounded(&self, available: &Amounts, offered: &Amounts, numa: Option<u32>) -> Amounts {
        let (mut unseen, mut all) = (Amounts::default(), Amounts::default());
        for held in self.held {
            let is_here = numa.is_none() || held.numa == numa || held.numa.is_none() && self.is_one_node;
            let amounts = of_place(held, numa);
            if is_here {
                add(&mut all, &amounts);
            }
            if is_here || held.numa.is_none() {
                add(&mut unseen, &self.unseen(held, amounts, is_here));
            }
        }
        let left = zip(available, &unseen, u64::saturating_sub);
        zip(&left, &zip(offered, &all, u64::saturating_sub), u64::min)
    }

    /// Of `amounts` that a pod holds here, or (not `is_here`) perhaps here, what no source can have counted yet.
    fn unseen(&self, held: &Held, mut amounts: Amounts, is_here: bool) -> Amounts {
        let is_seen = held.in_zones && self.has_zones;
        // For as long as a source is given, and no longer: what nobody ever tells apart would count on each node for ever.
        let counts = is_here || self.has_zones;
        amounts.devices.retain(|name, _| {
            if self.by_claims.contains(name.as_str()) { !held.in_claims } else { counts && !is_seen }
        });
        // A node's own source counts CPUs and memory of pods with whole CPUs only: see `zones`.
        let counted = is_seen && !held.shares_cpus;
        let cpu_millis = if counted && self.knows_cpus { 0 } else { amounts.cpu_millis };
        match (counts, counted) {
            (false, _) => Amounts { devices: amounts.devices, ..Amounts::default() },
            (true, true) => Amounts { cpu_millis, devices: amounts.devices, ..Amounts::default() },
            (true, false) => amounts,
        }
    }
}

/// What a pod holds of the host, or of a NUMA node: shared CPUs are on none.
fn of_place(held: &Held, numa: Option<u32>) -> Amounts {
    let mut amounts = held.amounts.clone();
    if numa.is_some() && held.shares_cpus {
        amounts.cpu_millis = 0;
    }
    amounts
}

/// Takes what a pod holds from roots that may give it. Pairs are as good as each other: whichever root gives one, there is
/// exactly one fewer.
fn from_roots(roots: &mut BTreeMap<String, PcieRoot>, held: &Held) {
    let give = |root: &mut PcieRoot, name: &str, count: u32| {
        if let Some(free) = root.free.get_mut(name) {
            *free = free.saturating_sub(count);
        }
    };
    let mut rest = held.amounts.devices.clone();
    if let Some((gpu, nic)) = &held.pairs {
        let mut pairs = held.amounts.device(gpu).min(held.amounts.device(nic));
        for name in [gpu, nic] {
            rest.entry(name.clone()).and_modify(|count| *count -= pairs);
        }
        for root in roots.values_mut() {
            let has = |name: &String| root.free.get(name).copied().unwrap_or(0);
            let here = pairs.min(has(gpu)).min(has(nic));
            give(root, gpu, here);
            give(root, nic, here);
            pairs -= here;
        }
    }
    for (name, count) in rest {
        roots.values_mut().for_each(|root| give(root, &name, count));
    }
}

/// What is free on the whole host as far as its NUMA nodes say: the free parts of them, and what is offered besides them.
fn remainder<'a>(offered: &Amounts, nodes: impl Iterator<Item = &'a Node>) -> Amounts {
    let mut inside = Amounts::default();
    let mut available = Amounts::default();
    for node in nodes {
        add(&mut inside, &node.offered);
        add(&mut available, &node.available);
    }
    let besides = zip(offered, &inside, u64::saturating_sub);
    zip(offered, &zip(&besides, &available, u64::saturating_add), u64::min)
}

/// Devices of drivers, on the NUMA node and behind the root that they publish. A root lies on one NUMA node, so a device
/// that names only its root is where another one of that root says it is.
fn add_devices(nodes: &mut BTreeMap<u32, Node>, devices: &[Device], cpus: bool) {
    let of_roots = roots(devices);
    for device in devices {
        let behind = || of_roots.get(device.root.as_deref()?).copied();
        let Some(id) = device.numa.or_else(behind) else { continue };
        let free = u32::from(device.free);
        let node = nodes.entry(id).or_default();
        match device.what {
            What::Cpu(millis) if cpus => {
                // What a driver claims of itself may be any number.
                let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
                add(&mut node.capacity.cpu_millis, millis);
                add(&mut node.offered.cpu_millis, millis);
                add(&mut node.available.cpu_millis, millis.saturating_mul(free.into()));
            }
            What::Cpu(_) => {}
            What::Device(_) => {
                more(&mut node.capacity.devices, &device.name, 1);
                more(&mut node.offered.devices, &device.name, 1);
                more(&mut node.available.devices, &device.name, free);
                if let Some(root) = &device.root {
                    let empty = || PcieRoot { name: root.clone(), ..PcieRoot::default() };
                    let root = node.roots.entry(root.clone()).or_insert_with(empty);
                    more(&mut root.capacity, &device.name, 1);
                    more(&mut root.free, &device.name, free);
                }
            }
        }
    }
}

/// The NUMA node of each root that a device names together with one.
fn roots(devices: &[Device]) -> BTreeMap<&str, u32> {
    devices.iter().filter_map(|device| Some((device.root.as_deref()?, device.numa?))).collect()
}

/// VFs that a device plugin hands out without naming their NUMA nodes, where the SR-IOV operator says which physical
/// functions they come from and a slice says where all of those are.
fn add_pools(nodes: &mut BTreeMap<u32, Node>, whole: &Amounts, beside: &Beside<'_>) {
    let Some(pools) = beside.pools else { return };
    for (name, functions) in &pools.pools {
        let is_it = |resource: &&String| resource.rsplit_once('/').is_some_and(|(_, own)| own == name);
        let Some((resource, count)) = whole.devices.iter().find(|(resource, _)| is_it(resource)) else {
            continue;
        };
        let is_known = nodes.values().any(|node| node.capacity.devices.contains_key(resource));
        let sum: u64 = functions.iter().map(|function| u64::from(function.count)).sum();
        let places: Option<Vec<u32>> =
            functions.iter().map(|function| place(function, beside.devices)).collect();
        let (false, true, Some(places)) = (is_known, sum == u64::from(*count), places) else { continue };
        for (id, function) in places.into_iter().zip(functions) {
            let node = nodes.entry(id).or_default();
            for amounts in [&mut node.capacity, &mut node.offered, &mut node.available] {
                more(&mut amounts.devices, resource, function.count);
            }
        }
    }
}

/// The NUMA node of a physical function: that of a device with its address, or with one of its VFs'.
fn place(function: &Function, devices: &[Device]) -> Option<u32> {
    let has = |device: &&Device| device.address.as_ref().is_some_and(|own| function.addresses.contains(own));
    let of_roots = roots(devices);
    devices
        .iter()
        .filter(has)
        .find_map(|device| device.numa.or_else(|| of_roots.get(device.root.as_deref()?).copied()))
}

fn more(devices: &mut BTreeMap<String, u32>, name: &str, count: u32) {
    let entry = devices.entry(name.to_owned()).or_insert(0);
    *entry = entry.saturating_add(count);
}

fn add(sum: &mut Amounts, amounts: &Amounts) {
    let Amounts { cpu_millis, memory_bytes, hugepage_bytes, pods, devices } = amounts;
    sum.cpu_millis = sum.cpu_millis.saturating_add(*cpu_millis);
    sum.memory_bytes = sum.memory_bytes.saturating_add(*memory_bytes);
    sum.hugepage_bytes = sum.hugepage_bytes.saturating_add(*hugepage_bytes);
    sum.pods = sum.pods.saturating_add(*pods);
    devices.iter().for_each(|(name, count)| more(&mut sum.devices, name, *count));
}

/// `of` each amount of `a` and its counterpart in `b`; what only `b` has is left out.
fn zip(a: &Amounts, b: &Amounts, of: impl Fn(u64, u64) -> u64) -> Amounts {
    let small = |a: u32, b: u32| u32::try_from(of(u64::from(a), u64::from(b))).unwrap_or(u32::MAX);
    let devices = a.devices.iter().map(|(name, count)| (name.clone(), small(*count, b.device(name))));
    Amounts {
        cpu_millis: of(a.cpu_millis, b.cpu_millis),
        memory_bytes: of(a.memory_bytes, b.memory_bytes),
        hugepage_bytes: of(a.hugepage_bytes, b.hugepage_bytes),
        pods: small(a.pods, b.pods),
        devices: devices.collect(),
    }
}
