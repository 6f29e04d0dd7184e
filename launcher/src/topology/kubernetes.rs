//! From the objects of a Kubernetes cluster to what jobs are placed on (pure): `Facts + Levels → Cluster`.
//!
//! Every source may be absent. What no source says stays unknown, and a line of [`Cluster::unknown`] says what that is,
//! for which hosts, and which source would have said it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use serde_json::Value;

use self::devices::{Naming, Offers};
use self::merge::Beside;
use self::slices::{Device, What};
use self::sriov::Pools;
use self::unknown::Unknown;
use self::zones::Zones;
use super::levels::{self, Chosen, LABEL_ZONE, Levels, Role};
use super::{Amounts, Cluster, DeviceClass, DeviceKind, Host, Mechanism};

pub mod devices;
pub mod host;
mod merge;
pub mod quantity;
pub mod slices;
pub mod sriov;
pub mod unknown;
pub mod zones;

#[cfg(test)]
mod tests;

/// What was read of a cluster. A source that is not installed, or that may not be read, is none; one without objects is
/// an empty list.
#[derive(Clone, Debug, Default)]
pub struct Facts<'a> {
    /// Nodes.
    pub nodes: Vec<&'a Node>,
    /// `NodeResourceTopology` (`topology.node.k8s.io/v1alpha2`).
    pub node_topologies: Option<Vec<&'a Value>>,
    /// `SriovNetworkNodeState` (`sriovnetwork.openshift.io/v1`).
    pub sriov_states: Option<Vec<&'a Value>>,
    /// `ResourceSlice` (`resource.k8s.io`), as JSON: see [`mod@slices`].
    pub slices: Option<Vec<&'a Value>>,
    /// `ResourceClaim` (`resource.k8s.io`): which devices of the slices are taken.
    pub claims: Option<Vec<&'a Value>>,
    /// `DeviceTaintRule` (`resource.k8s.io`).
    pub device_taint_rules: Option<Vec<&'a Value>>,
    /// Kueue's `Topology` (`kueue.x-k8s.io`).
    pub kueue_topologies: Option<Vec<&'a Value>>,
    /// What pods hold, by node: of ours all, whether another source has seen them or not; of others those that are known.
    /// [`mod@merge`] says what is made of it.
    pub held: BTreeMap<String, Vec<Held>>,
    /// `held` has the pods of everybody.
    pub held_is_all: bool,
    /// Which resources are GPUs and NICs, beside those that are known.
    pub naming: Naming,
}

/// What one pod holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The NUMA node that it was placed on; none when it was placed on the host as a whole.
    pub numa: Option<u32>,
    /// What it holds, itself (`pods: 1`) included.
    pub amounts: Amounts,
    /// Its CPUs are not whole ones, so they are on no NUMA node.
    pub shares_cpus: bool,
    /// Its GPUs and NICs of these names are pairs behind one PCIe root each.
    pub pairs: Option<(String, String)>,
    /// `NodeResourceTopology` counts it already.
    pub in_zones: bool,
    /// Its `ResourceClaim`s are known to be allocated.
    pub in_claims: bool,
}

/// Which labels are the fabric's levels.
#[must_use]
pub fn choose(facts: &Facts<'_>, levels: &Levels) -> Chosen {
    let labels = facts.nodes.iter().filter_map(|node| node.metadata.labels.as_ref());
    let present: BTreeSet<&str> = labels.flat_map(BTreeMap::keys).map(String::as_str).collect();
    levels::choose(levels, &present, facts.kueue_topologies.as_deref().unwrap_or_default())
}

/// What there is to place workers on.
#[must_use]
pub fn cluster(facts: &Facts<'_>, levels: &Levels) -> Cluster {
    let mut unknown = Unknown::default();
    let chosen = choose(facts, levels);
    let sources = Sources::read(facts, &mut unknown);
    let mut hosts: Vec<Host> = facts.nodes.iter().map(|node| host::host(node, &chosen)).collect();
    let kinds = kinds(&mut hosts, &sources, &facts.naming, &mut unknown);
    for host in &mut hosts {
        let beside = sources.beside(host, facts);
        merge::merge(host, &beside);
        add_model(host, beside.devices, &mut unknown);
        say_what_is_unknown(host, &beside, &kinds, facts, &mut unknown);
    }
    say_what_levels_are_unknown(&hosts, &chosen, &mut unknown);
    let key = |host: &Host| (host.labels.get(LABEL_ZONE).cloned(), host.fabric.clone(), host.name.clone());
    hosts.sort_by_cached_key(key);
    Cluster { hosts, devices: kinds, unknown: unknown.lines() }
}

/// The sources that speak of single hosts, by the host's name.
struct Sources<'a> {
    zones: BTreeMap<&'a str, Zones>,
    pools: BTreeMap<&'a str, Pools>,
    devices: BTreeMap<String, Vec<Device>>,
}

impl<'a> Sources<'a> {
    fn read(facts: &Facts<'a>, unknown: &mut Unknown) -> Self {
        let slices = facts.slices.as_deref().unwrap_or_default();
        let claims = facts.claims.as_deref().unwrap_or_default();
        let rules = facts.device_taint_rules.as_deref().unwrap_or_default();
        let devices = slices::read(slices, claims, rules, unknown);
        if facts.claims.is_none() && !devices.is_empty() {
            unknown.of_all(
                "which devices of dynamic resource allocation are taken is unknown (no ResourceClaims)",
            );
        }
        let states = facts.sriov_states.iter().flatten();
        Self {
            zones: by_name(facts.node_topologies.iter().flatten(), zones::read),
            pools: by_name(states, sriov::read),
            devices,
        }
    }

    fn beside<'s>(&'s self, host: &Host, facts: &'s Facts<'_>) -> Beside<'s> {
        let name = host.name.as_str();
        Beside {
            zones: self.zones.get(name),
            devices: self.devices.get(name).map(Vec::as_slice).unwrap_or_default(),
            pools: self.pools.get(name),
            held: facts.held.get(name).map(Vec::as_slice).unwrap_or_default(),
        }
    }
}

fn by_name<'a: 'b, 'b, T>(
    objects: impl Iterator<Item = &'b &'a Value>,
    read: impl Fn(&Value) -> T,
) -> BTreeMap<&'a str, T> {
    let named =
        objects.filter_map(|object| Some((object.pointer("/metadata/name")?.as_str()?, read(object))));
    named.collect()
}

/// What each name stands for. A host that means something else by it than the others offers nothing under it.
fn kinds(
    hosts: &mut [Host],
    sources: &Sources<'_>,
    naming: &Naming,
    unknown: &mut Unknown,
) -> BTreeMap<String, DeviceKind> {
    let mut offers = Offers::new();
    for host in hosts.iter() {
        let pools = sources.pools.get(host.name.as_str());
        for name in host.capacity.devices.keys() {
            let own = name.rsplit_once('/').map_or(name.as_str(), |(_, own)| own);
            let of_pool =
                pools.is_some_and(|pools| pools.pools.contains_key(own)).then_some(DeviceClass::Nic);
            let Some(class) = of_pool.or_else(|| devices::class(name, naming)) else { continue };
            let class = devices::class_on_node(name, class, &host.labels);
            offers.entry(name.clone()).or_default().entry(class).or_default().push(host.name.clone());
        }
    }
    let mut kinds = BTreeMap::new();
    for (name, (class, left_out)) in devices::settle(offers, unknown) {
        let left_out: BTreeSet<String> = left_out.into_iter().collect();
        for host in hosts.iter_mut().filter(|host| left_out.contains(&host.name)) {
            host.capacity.devices.remove(&name);
            host.free.devices.remove(&name);
        }
        kinds.insert(name, DeviceKind { class, by: Mechanism::Plugin });
    }
    for device in sources.devices.values().flatten() {
        if let What::Device(class) = &device.what {
            let kind = || DeviceKind { class: class.clone(), by: Mechanism::Dra };
            kinds.entry(device.name.clone()).or_insert_with(kind);
        }
    }
    kinds
}

/// The model from a driver, where no label has it.
fn add_model(host: &mut Host, devices: &[Device], unknown: &mut Unknown) {
    let is_gpu =
        |device: &&Device| matches!(device.what, What::Device(DeviceClass::Gpu | DeviceClass::Mig(_)));
    let models: BTreeSet<&String> =
        devices.iter().filter(is_gpu).filter_map(|device| device.model.as_ref()).collect();
    if models.len() > 1 {
        unknown.of_host("its GPUs are of several models, so that none is asked for by its model", &host.name);
    } else if host.gpu_model.is_none() {
        host.gpu_model = models.first().map(|model| (*model).clone());
    }
}

fn say_what_is_unknown(
    host: &Host,
    beside: &Beside<'_>,
    kinds: &BTreeMap<String, DeviceKind>,
    facts: &Facts<'_>,
    unknown: &mut Unknown,
) {
    let mut say = |text: String| unknown.of_host(text, &host.name);
    match beside.zones {
        None => {
            let which = if facts.node_topologies.is_some() { "it has no" } else { "the cluster has no" };
            let what = if host.numa.is_empty() { "NUMA nodes" } else { "the CPUs and memory of NUMA nodes" };
            let others = if facts.held_is_all { "where others' pods are" } else { "what others' pods hold" };
            say(format!(
                "{what}, the kubelet's policy and {others} are unknown ({which} NodeResourceTopology)"
            ));
        }
        Some(zones) => {
            if zones.policy.is_none() {
                say("the kubelet's topology policy is unknown (NodeResourceTopology does not say it)"
                    .to_owned());
            }
            for name in &zones.unreadable {
                say(format!("zone {name:?} of NodeResourceTopology has no number"));
            }
        }
    }
    if let Some(fault) = beside.pools.and_then(|pools| pools.fault.as_ref()) {
        say(fault.clone());
    }
    let offers = |class: fn(&DeviceClass) -> bool| {
        host.capacity.devices.iter().filter(move |(name, count)| {
            **count > 0 && kinds.get(*name).is_some_and(|kind| class(&kind.class))
        })
    };
    if !host.numa.is_empty() {
        for (name, count) in offers(|_| true) {
            let placed = host.numa.iter().map(|node| node.capacity.device(name));
            let placed = placed.fold(0, u32::saturating_add);
            if placed < *count {
                say(format!(
                    "the NUMA node of {} {name} is unknown ({})",
                    some(placed),
                    silent(&kinds[name])
                ));
            }
        }
    }
    let has_gpus = offers(|class| *class != DeviceClass::Nic).next().is_some();
    let has_nics = offers(|class| *class == DeviceClass::Nic).next().is_some();
    if has_gpus && has_nics && host.numa.iter().all(|node| node.roots.is_empty()) {
        say("PCIe roots are unknown (no ResourceSlice has devices with pcieRoot)".to_owned());
    }
    if has_gpus && host.gpu_model.is_none() {
        say("the model of its GPUs is unknown (no label and no attribute names it)".to_owned());
    }
}

fn some(placed: u32) -> &'static str {
    if placed == 0 { "every" } else { "some" }
}

fn silent(kind: &DeviceKind) -> &'static str {
    match kind.by {
        Mechanism::Plugin => "its device plugin gives no hint",
        Mechanism::Dra => "its driver publishes none",
    }
}

fn say_what_levels_are_unknown(hosts: &[Host], chosen: &Chosen, unknown: &mut Unknown) {
    for role in [Role::Block, Role::Rack] {
        let word = role.word();
        let Some(label) = chosen.label(role) else {
            unknown.of_all(format!(
                "{word}s are unknown (no known label on any node; `--level {word}=LABEL` names yours)"
            ));
            continue;
        };
        for host in hosts {
            let is = if role == Role::Block { &host.fabric.block } else { &host.fabric.rack };
            if is.is_none() {
                unknown.of_host(format!("its {word} is unknown (it has no label {label})"), &host.name);
            }
        }
    }
}
