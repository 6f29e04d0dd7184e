//! Small clusters, on which every assignment is tried: the solver finds a placement exactly when there is one.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::job::spec::Strategy;
use crate::job::spec::pod::TaintEffect;
use crate::topology::{
    Alignment, DeviceClass, DeviceKind, Fabric, Mechanism, PcieRoot, Taint, TopologyPolicy,
};

const GPU: &str = "gpu";
const NICS: [&str; 2] = ["nic_a", "nic_b"];

/// GPUs and NICs (of both pools) behind one root, or behind none that is known.
type Few = (u32, u32, u32);

fn few() -> impl Strategy_<Value = Few> {
    (0_u32..3, 0_u32..3, prop_oneof![3 => Just(0_u32), 1 => 0_u32..3])
}

use proptest::strategy::Strategy as Strategy_;

fn listed((gpus, a, b): Few) -> BTreeMap<String, u32> {
    let names = [GPU, NICS[0], NICS[1]].map(str::to_owned);
    names.into_iter().zip([gpus, a, b]).collect()
}

fn add(to: &mut BTreeMap<String, u32>, devices: &BTreeMap<String, u32>) {
    for (name, count) in devices {
        *to.entry(name.clone()).or_default() += count;
    }
}

prop_compose! {
    /// A node's free devices are those of its roots and `unrooted` ones; all of it was there and more.
    fn node(id: u32)(
        cpus in 0_u32..5,
        huge in 0_u64..3,
        memory in prop_oneof![Just(None), (0_u64..4).prop_map(Some)],
        unrooted in few(),
        roots in prop::collection::vec(few(), 0..3),
        more in 0_u32..3,
    ) -> NumaNode {
        let mut devices = listed(unrooted);
        let roots: Vec<PcieRoot> = roots.into_iter().enumerate().map(|(number, few)| {
            let free = listed(few);
            let capacity = free.iter().map(|(name, count)| (name.clone(), count + more)).collect();
            PcieRoot { name: format!("pci{number}"), free, capacity }
        }).collect();
        roots.iter().for_each(|root| add(&mut devices, &root.free));
        let free = Amounts {
            cpu_millis: u64::from(cpus) * 1000,
            memory_bytes: memory.unwrap_or(0),
            hugepage_bytes: huge,
            pods: 0,
            devices: devices.clone(),
        };
        let capacity = Amounts {
            cpu_millis: free.cpu_millis + u64::from(more) * 1000,
            memory_bytes: memory.map_or(0, |memory| memory + 1),
            hugepage_bytes: huge + u64::from(more),
            pods: 0,
            devices: devices.into_iter().map(|(name, count)| (name, count + 3 * more)).collect(),
        };
        NumaNode { id, cpus: Vec::new(), free, capacity, roots }
    }
}

prop_compose! {
    fn a_host(number: usize)(
        nodes in prop_oneof![
            1 => Just(Vec::new()),
            4 => node(0).prop_map(|node| vec![node]),
            8 => (node(0), node(1)).prop_map(|(a, b)| vec![a, b]),
        ],
        blind in few(),
        pods in prop_oneof![4 => Just(9_u32), 1 => 0_u32..3],
        memory in 0_u64..9,
        rack in prop_oneof![1 => Just(None), 6 => (1..3).prop_map(Some)],
        block in prop_oneof![1 => Just(None), 6 => (1..3).prop_map(Some)],
        closed in prop::bool::weighted(0.1),
        taint in prop_oneof![
            8 => Just(None),
            1 => Just(Some(TaintEffect::NoSchedule)),
            1 => Just(Some(TaintEffect::PreferNoSchedule))
        ],
        policy in prop_oneof![
            6 => Just(None),
            1 => Just(Some(Alignment::None)),
            1 => Just(Some(Alignment::SingleNumaNode)),
        ],
    ) -> Host {
        let sum = |of: &dyn Fn(&NumaNode) -> Amounts| {
            let mut all = Amounts { memory_bytes: memory, pods, ..Amounts::default() };
            for amounts in nodes.iter().map(of) {
                all.cpu_millis += amounts.cpu_millis;
                all.hugepage_bytes += amounts.hugepage_bytes;
                add(&mut all.devices, &amounts.devices);
            }
            if nodes.is_empty() {
                all.cpu_millis = 3000;
                all.hugepage_bytes = 3;
                all.devices = listed(blind);
            }
            all
        };
        Host {
            name: format!("n{number}"),
            fabric: Fabric {
                block: block.map(|number| format!("b{number}")),
                rack: rack.map(|number| format!("r{number}")),
                domain: None,
            },
            taints: taint.map(|effect| Taint { key: "t".into(), value: String::new(), effect }).into_iter().collect(),
            closed: closed.then(|| "closed".to_owned()),
            free: sum(&|node| node.free.clone()),
            capacity: sum(&|node| node.capacity.clone()),
            policy: policy.map(|policy| TopologyPolicy { policy, whole_pod: true }),
            numa: nodes,
            ..Host::default()
        }
    }
}

fn a_cluster() -> impl Strategy_<Value = Cluster> {
    let hosts = (1..5_usize).prop_flat_map(|hosts| (0..hosts).map(a_host).collect::<Vec<_>>());
    (hosts, any::<bool>()).prop_map(|(hosts, has_two_pools)| {
        let kind = |class| DeviceKind { class, by: Mechanism::Plugin };
        let mut devices = BTreeMap::from([
            (GPU.to_owned(), kind(DeviceClass::Gpu)),
            (NICS[0].to_owned(), kind(DeviceClass::Nic)),
        ]);
        if has_two_pools {
            devices.insert(NICS[1].to_owned(), kind(DeviceClass::Nic));
        }
        Cluster { hosts, devices, unknown: Vec::new() }
    })
}

prop_compose! {
    fn a_request()(
        workers in 1_u32..5,
        spares in 0_u32..2,
        cpus in prop_oneof![Just(None), (1_u32..3).prop_map(Some)],
        millis in prop_oneof![Just(0_u64), Just(700)],
        memory in 0_u64..3,
        huge in prop_oneof![3 => Just(0_u64), 1 => Just(1)],
        gpus in 0_u32..3,
        nics in 0_u32..3,
        locality in prop_oneof![Just(Locality::None), Just(Locality::Numa), Just(Locality::Pcie)],
        spread in any::<bool>(),
        rack in prop_oneof![Just(Rack::Any), Just(Rack::Preferred), Just(Rack::Required)],
        block in prop_oneof![2 => Just(Rack::Any), 1 => Just(Rack::Preferred), 1 => Just(Rack::Required)],
        excluded in prop_oneof![4 => Just(None), 1 => (0_u32..4).prop_map(Some)],
        placed in prop_oneof![4 => Just(None), 1 => (0_u32..4).prop_map(Some)],
    ) -> Request {
        let mut request = request(workers, cpus);
        request.seated = workers.saturating_sub(spares);
        let need = &mut request.need;
        (need.cpu_millis, need.memory_bytes, need.hugepage_bytes) = (millis, memory, huge);
        (need.gpus, need.nics) = (gpus, nics);
        (request.locality, request.rack, request.block) = (locality, rack, block);
        request.strategy = if spread { Strategy::Spread } else { Strategy::Pack };
        request.exclude.extend(excluded.map(|number: u32| (format!("n{number}"), "excluded".to_owned())));
        request.placed.extend(placed.map(|number: u32| (WorkerId(9), format!("n{number}"))));
        request
    }
}

/// What is left of a host while assignments are tried; `roots` hold the devices whose root is known.
#[derive(Clone)]
struct Left {
    host: Host,
}

/// The fewest hosts and racks of any assignment of all workers.
#[derive(Clone, Copy, Debug)]
struct Fewest {
    hosts: usize,
    racks: usize,
}

struct Search<'a> {
    request: &'a Request,
    nic: &'static str,
    found: Option<Fewest>,
}

impl Search<'_> {
    /// Tries every host and node for the next worker; all need the same, so that places need not go backwards.
    fn descend(&mut self, left: &mut Vec<Left>, workers: usize, from: usize, used: &[usize]) {
        if workers == 0 {
            let hosts: BTreeSet<usize> = used.iter().copied().collect();
            let racks: BTreeSet<&Fabric> = hosts.iter().map(|host| &left[*host].host.fabric).collect();
            let all = self.found.get_or_insert(Fewest { hosts: usize::MAX, racks: usize::MAX });
            all.hosts = all.hosts.min(hosts.len());
            all.racks = all.racks.min(racks.len());
            return;
        }
        for host in from..left.len() {
            let mut ways: Vec<Host> = Vec::new();
            for way in self.ways(&left[host].host) {
                // Which of two equal roots gave a device makes no difference.
                if !ways.contains(&way) {
                    ways.push(way);
                }
            }
            for after in ways {
                let before = std::mem::replace(&mut left[host].host, after);
                let used: Vec<usize> = used.iter().copied().chain([host]).collect();
                self.descend(left, workers - 1, host, &used);
                left[host].host = before;
            }
        }
    }

    /// Every way in which a host can take one worker: what is left of it then.
    fn ways(&self, host: &Host) -> Vec<Host> {
        let need = &self.request.need;
        let mut after = host.clone();
        let whole = u64::from(need.cpus.unwrap_or(0)) * 1000;
        let shared = if need.cpus.is_some() { 0 } else { need.cpu_millis };
        let is_enough = less(&mut after.free.cpu_millis, whole + shared)
            && less(&mut after.free.memory_bytes, need.memory_bytes)
            && less(&mut after.free.hugepage_bytes, need.hugepage_bytes)
            && less_of(&mut after.free.devices, GPU, need.gpus)
            && less_of(&mut after.free.devices, self.nic, need.nics)
            && after.free.pods.checked_sub(1).map(|pods| after.free.pods = pods).is_some();
        if !is_enough {
            return Vec::new();
        }
        let policy = host.policy.map(|policy| policy.policy);
        match (self.request.locality, policy) {
            (Locality::None, Some(Alignment::SingleNumaNode)) => {
                let cpus = told(host, |all| all.cpu_millis > 0);
                let gpus = told(host, |all| all.device(GPU) > 0);
                let nics = told(host, |all| all.device(self.nic) > 0);
                let (whole, gpus, nics) = (
                    if cpus { whole } else { 0 },
                    if gpus { need.gpus } else { 0 },
                    if nics { need.nics } else { 0 },
                );
                if whole == 0 && gpus == 0 && nics == 0 {
                    return vec![after];
                }
                self.on_nodes(&after, whole, 0, 0, gpus, nics)
            }
            (Locality::None, _) => vec![after],
            _ if host.numa.is_empty() => Vec::new(),
            (_, Some(Alignment::None)) if whole > 0 || need.gpus > 0 || need.nics > 0 => Vec::new(),
            _ => self.on_nodes(&after, whole, need.memory_bytes, need.hugepage_bytes, need.gpus, need.nics),
        }
    }

    fn on_nodes(&self, host: &Host, cpus: u64, memory: u64, huge: u64, gpus: u32, nics: u32) -> Vec<Host> {
        let mut ways = Vec::new();
        for at in 0..host.numa.len() {
            let mut after = host.clone();
            let node = &mut after.numa[at];
            let is_known = node.capacity.memory_bytes > 0;
            let is_enough = less(&mut node.free.cpu_millis, cpus)
                && (!is_known || less(&mut node.free.memory_bytes, memory))
                && less(&mut node.free.hugepage_bytes, huge);
            if !is_enough {
                continue;
            }
            if self.request.locality == Locality::Pcie {
                let pairs = gpus.min(nics);
                self.pairs(&after, at, pairs, (gpus - pairs, nics - pairs), &mut ways);
            } else if less_of(&mut node.free.devices, GPU, gpus)
                && less_of(&mut node.free.devices, self.nic, nics)
            {
                ways.push(after);
            }
        }
        ways
    }

    /// Every choice of roots for the pairs, and then of where the other devices come from.
    fn pairs(&self, host: &Host, at: usize, pairs: u32, others: (u32, u32), ways: &mut Vec<Host>) {
        if pairs == 0 {
            return self.others(host, at, others, ways);
        }
        for root in 0..host.numa[at].roots.len() {
            let mut after = host.clone();
            let node = &mut after.numa[at];
            if less_of(&mut node.roots[root].free, GPU, 1)
                && less_of(&mut node.roots[root].free, self.nic, 1)
                && less_of(&mut node.free.devices, GPU, 1)
                && less_of(&mut node.free.devices, self.nic, 1)
            {
                self.pairs(&after, at, pairs - 1, others, ways);
            }
        }
    }

    fn others(&self, host: &Host, at: usize, (gpus, nics): (u32, u32), ways: &mut Vec<Host>) {
        let (name, left) = match (gpus, nics) {
            (0, 0) => return ways.push(host.clone()),
            (0, nics) => (self.nic, (0, nics - 1)),
            (gpus, nics) => (GPU, (gpus - 1, nics)),
        };
        let rooted: u32 = host.numa[at].roots.iter().map(|root| root.free[name]).sum();
        for root in 0..=host.numa[at].roots.len() {
            let mut after = host.clone();
            let node = &mut after.numa[at];
            let is_there = match node.roots.get_mut(root) {
                Some(root) => less_of(&mut root.free, name, 1),
                None => node.free.device(name) > rooted,
            };
            if is_there && less_of(&mut node.free.devices, name, 1) {
                self.others(&after, at, left, ways);
            }
        }
    }
}

fn told(host: &Host, has: impl Fn(&Amounts) -> bool) -> bool {
    host.numa.iter().any(|node| has(&node.capacity))
}

fn less(amount: &mut u64, by: u64) -> bool {
    amount.checked_sub(by).map(|left| *amount = left).is_some()
}

fn less_of(devices: &mut BTreeMap<String, u32>, name: &str, by: u32) -> bool {
    if by == 0 {
        return true;
    }
    devices.get_mut(name).is_some_and(|count| count.checked_sub(by).map(|left| *count = left).is_some())
}

/// A rack with its block, or a block.
type Area = (Option<String>, String);

/// The fewest hosts and racks that any assignment needs; none: there is no assignment.
fn brute(cluster: &Cluster, request: &Request) -> Option<Fewest> {
    let near = |key: &dyn Fn(&Fabric) -> Option<Area>| {
        let mut near = BTreeSet::new();
        for name in request.placed.values() {
            near.insert(
                cluster.hosts.iter().find(|host| host.name == *name).and_then(|host| key(&host.fabric)),
            );
        }
        near
    };
    let rack = |fabric: &Fabric| Some((fabric.block.clone(), fabric.rack.clone()?));
    let block = |fabric: &Fabric| Some((None, fabric.block.clone()?));
    let open: Vec<&Host> = cluster
        .hosts
        .iter()
        .filter(|host| host.closed.is_none() && !request.exclude.contains_key(&host.name))
        .filter(|host| host.taints.iter().all(|taint| taint.effect == TaintEffect::PreferNoSchedule))
        .collect();
    let mut groups: Vec<Vec<&Host>> = vec![open];
    for (rule, key) in [(request.block, &block as &dyn Fn(&Fabric) -> Option<Area>), (request.rack, &rack)] {
        if rule != Rack::Required {
            continue;
        }
        let mut split: BTreeMap<(usize, Area), Vec<&Host>> = BTreeMap::new();
        for (number, group) in groups.iter().enumerate() {
            for host in group {
                if let Some(key) = key(&host.fabric) {
                    split.entry((number, key)).or_default().push(host);
                }
            }
        }
        let near = near(key);
        let is_near = |area: &Area| near.iter().all(|with| with.as_ref() == Some(area));
        groups = split.into_iter().filter(|((_, area), _)| is_near(area)).map(|(_, hosts)| hosts).collect();
    }
    let mut found: Option<Fewest> = None;
    for nic in NICS.into_iter().filter(|nic| request.need.nics == 0 || cluster.devices.contains_key(*nic)) {
        for group in &groups {
            let mut left: Vec<Left> = group.iter().map(|host| Left { host: (*host).clone() }).collect();
            let mut search = Search { request, nic, found };
            search.descend(&mut left, request.workers.len(), 0, &[]);
            found = search.found;
        }
    }
    found
}

proptest! {
    #[test]
    fn a_placement_is_found_exactly_when_there_is_one(cluster in a_cluster(), request in a_request()) {
        let placed = place(&cluster, &request);
        let there_is = brute(&cluster, &request);
        prop_assert_eq!(placed.is_ok(), there_is.is_some(), "{:?}", placed);
        if let Err(refused) = &placed {
            prop_assert!(refused.placed < refused.wanted && !refused.reasons.is_empty(), "{:?}", refused);
        }
        let (Ok(placed), Some(fewest)) = (placed, there_is) else { return Ok(()) };
        prop_assert_eq!(verify(&cluster, &request, &placed), Ok(()));
        let has_wishes = cluster.hosts.iter().any(|host| !host.taints.is_empty())
            || request.block == Rack::Preferred
            || !request.placed.is_empty();
        let hosts: BTreeSet<&str> = placed.workers.iter().map(|worker| worker.host.as_str()).collect();
        let at = |name: &&str| cluster.hosts.iter().find(|host| host.name == **name).map(|host| &host.fabric);
        let racks: BTreeSet<&Fabric> = hosts.iter().filter_map(at).collect();
        if !has_wishes && request.rack != Rack::Preferred && request.strategy == Strategy::Pack
            && u32::try_from(request.workers.len()) == Ok(request.seated)
        {
            prop_assert_eq!(hosts.len(), fewest.hosts, "fewer hosts are enough");
        }
        // Known racks go before unknown ones, of which nobody can say how many they are.
        let are_known = cluster.hosts.iter().all(|host| host.fabric.rack.is_some());
        if !has_wishes && request.rack == Rack::Preferred && are_known {
            prop_assert_eq!(racks.len(), fewest.racks, "fewer racks are enough");
        }
    }

    #[test]
    fn the_order_of_hosts_makes_no_difference(cluster in a_cluster(), request in a_request(), turn in 0_usize..4) {
        let mut other = cluster.clone();
        let hosts = other.hosts.len();
        other.hosts.rotate_left(turn % hosts);
        if turn % 2 == 0 {
            other.hosts.reverse();
        }
        prop_assert_eq!(place(&cluster, &request), place(&other, &request));
    }

    #[test]
    fn nothing_is_given_twice(cluster in a_cluster(), mut request in a_request()) {
        // Two gangs have one rack, and one pool of NICs, only by chance.
        request.placed.clear();
        request.rack = Rack::Any;
        request.block = Rack::Any;
        request.workers.truncate(2);
        request.need.nic_name = Some(NICS[0].to_owned());
        let mut cluster = cluster;
        cluster.devices.remove(NICS[1]);
        let whole = cluster.clone();
        let Ok(first) = place(&cluster, &request) else { return Ok(()) };
        cluster.take(&first, &request);
        if place(&cluster, &request).is_ok() {
            let twice = u32::try_from(request.workers.len()).unwrap() * 2;
            request.workers = (0..twice).map(WorkerId).collect();
            prop_assert!(brute(&whole, &request).is_some());
        }
    }
}
