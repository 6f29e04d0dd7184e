//! Clusters as their objects describe them, and what is made of them, drawn as text.

use serde_json::json;

use super::*;
use crate::topology::{Alignment, Fabric, NumaNode, PcieRoot};

const GIB: u64 = 1 << 30;

/// The objects of one cluster.
#[derive(Default)]
struct Rig {
    nodes: Vec<Node>,
    topologies: Option<Vec<Value>>,
    states: Option<Vec<Value>>,
    slices: Option<Vec<Value>>,
    claims: Option<Vec<Value>>,
    held: BTreeMap<String, Vec<Held>>,
}

impl Rig {
    fn cluster(&self) -> Cluster {
        fn all(of: &Option<Vec<Value>>) -> Option<Vec<&Value>> {
            of.as_ref().map(|list| list.iter().collect())
        }
        let facts = Facts {
            nodes: self.nodes.iter().collect(),
            node_topologies: all(&self.topologies),
            sriov_states: all(&self.states),
            slices: all(&self.slices),
            claims: all(&self.claims),
            held: self.held.clone(),
            ..Facts::default()
        };
        cluster(&facts, &Levels::new())
    }
}

/// A ready node of 64 CPUs and 512 GiB.
fn node(name: &str, labels: &Value, devices: &Value) -> Node {
    let mut amounts = json!({"cpu": "64", "memory": "512Gi", "hugepages-2Mi": "16Gi", "pods": "110"});
    for (key, value) in devices.as_object().unwrap() {
        amounts[key] = value.clone();
    }
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": labels},
        "status": {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
    }))
    .unwrap()
}

/// Two NUMA nodes of 32 CPUs and 256 GiB; `free` is what is free of (cpu, gpu, vf) on each.
fn topology(name: &str, free: [[u32; 3]; 2]) -> Value {
    let zone = |id: usize, [cpu, gpu, vf]: [u32; 3]| {
        let resource = |name: &str, all: &str, free: String| json!({"name": name, "capacity": all, "allocatable": all, "available": free});
        json!({"name": format!("node-{id}"), "type": "Node", "resources": [
            resource("cpu", "32", cpu.to_string()), resource("memory", "256Gi", "256Gi".to_owned()),
            resource("nvidia.com/gpu", "4", gpu.to_string()), resource("openshift.io/rdma_a", "4", vf.to_string()),
        ]})
    };
    json!({"metadata": {"name": name}, "zones": [zone(0, free[0]), zone(1, free[1])], "attributes": [
        {"name": "topologyManagerPolicy", "value": "single-numa-node"}, {"name": "topologyManagerScope", "value": "pod"}
    ]})
}

fn slice(driver: &str, node: &str, devices: &Value) -> Value {
    json!({"metadata": {"name": format!("{node}-{driver}")}, "spec": {"driver": driver, "nodeName": node,
        "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}, "devices": devices}})
}

fn device(name: &str, root: &str, numa: Option<i64>, model: Option<&str>) -> Value {
    let mut device =
        json!({"name": name, "attributes": {"resource.kubernetes.io/pcieRoot": {"string": root}}});
    if let Some(numa) = numa {
        device["attributes"]["resource.kubernetes.io/numaNode"] = json!({"int": numa});
    }
    if let Some(model) = model {
        device["attributes"]["productName"] = json!({"string": model});
    }
    device
}

fn held(numa: Option<u32>, cpus: u64, gpus: u32, vfs: u32) -> Held {
    let devices =
        BTreeMap::from([("nvidia.com/gpu".to_owned(), gpus), ("openshift.io/rdma_a".to_owned(), vfs)]);
    let amounts =
        Amounts { cpu_millis: cpus * 1000, memory_bytes: 8 * GIB, hugepage_bytes: 0, pods: 1, devices };
    Held { numa, amounts, ..Held::default() }
}

const PLUGINS: &[(&str, &str)] = &[("nvidia.com/gpu", "8"), ("openshift.io/rdma_a", "8")];

fn plugins() -> Value {
    PLUGINS
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// One line for a host, each of its NUMA nodes and each of its roots; `free/capacity`.
fn draw(cluster: &Cluster) -> String {
    let mut text = String::new();
    for (name, kind) in &cluster.devices {
        text.push_str(&format!("{name}: {:?} by {:?}\n", kind.class, kind.by));
    }
    for host in &cluster.hosts {
        let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let Fabric { block, rack, domain } = &host.fabric;
        let policy = host
            .policy
            .map_or_else(|| "-".to_owned(), |policy| format!("{:?} {}", policy.policy, policy.whole_pod));
        let fabric = [or(block), or(rack), or(domain)].join(" ");
        text.push_str(&format!("host {}: {fabric} | {} | {policy}\n", host.name, or(&host.gpu_model)));
        if let Some(closed) = &host.closed {
            text.push_str(&format!("  closed: {closed}\n"));
        }
        text.push_str(&format!("  all    {}\n", amounts(&host.free, &host.capacity)));
        for NumaNode { id, free, capacity, roots, .. } in &host.numa {
            text.push_str(&format!("  numa {id} {}\n", amounts(free, capacity)));
            for root in roots {
                text.push_str(&format!("    {}{}\n", root.name, devices(&root.free, &root.capacity)));
            }
        }
    }
    cluster.unknown.iter().for_each(|line| text.push_str(&format!("? {line}\n")));
    text
}

fn amounts(free: &Amounts, all: &Amounts) -> String {
    let cpus = format!("cpu {}/{}", free.cpu_millis / 1000, all.cpu_millis / 1000);
    let memory = format!("memory {}/{}", free.memory_bytes / GIB, all.memory_bytes / GIB);
    let pages = format!("huge {}/{}", free.hugepage_bytes / GIB, all.hugepage_bytes / GIB);
    format!("{cpus} {memory} {pages} pods {}/{}{}", free.pods, all.pods, devices(&free.devices, &all.devices))
}

fn devices(free: &BTreeMap<String, u32>, all: &BTreeMap<String, u32>) -> String {
    let one =
        |(name, count): (&String, &u32)| format!(" {name} {}/{count}", free.get(name).copied().unwrap_or(0));
    all.iter().map(one).collect()
}

#[test]
fn device_plugins_with_node_resource_topology() {
    let labels = |rack: &str| json!({"fabric.topograph.run/tier-0": rack, "fabric.topograph.run/tier-1": "spine", "nvidia.com/gpu.product": "H100"});
    let nodes = vec![
        node("b", &labels("leaf-2"), &plugins()),
        node("a", &labels("leaf-1"), &plugins()),
        node("c", &labels("leaf-1"), &plugins()),
    ];
    // `a` has seen one pod of ours on node 0, and not the other one on node 1. On `b` somebody else has two GPUs.
    let topologies = vec![
        topology("a", [[28, 2, 2], [32, 4, 4]]),
        topology("b", [[32, 4, 4], [30, 2, 4]]),
        topology("c", [[32, 4, 4], [32, 4, 4]]),
    ];
    let held = BTreeMap::from([
        ("a".to_owned(), vec![Held { in_zones: true, ..held(Some(0), 4, 2, 2) }, held(Some(1), 8, 1, 1)]),
        ("c".to_owned(), vec![held(None, 16, 0, 0)]),
    ]);
    let rig = Rig { nodes, topologies: Some(topologies), held, ..Rig::default() };
    insta::assert_snapshot!(draw(&rig.cluster()));
}

#[test]
fn drivers_alone_say_where_their_devices_are() {
    let gpus = json!([
        device("gpu-0", "pci0000:00", Some(0), Some("NVIDIA H100")),
        device("gpu-1", "pci0000:00", Some(0), Some("NVIDIA H100")),
        device("gpu-2", "pci0000:80", Some(1), Some("NVIDIA H100")),
    ]);
    // This driver names roots only: they are where the GPUs of the same root are; one is behind a root of its own.
    let nics = json!([
        device("vf-0", "pci0000:00", None, None),
        device("vf-1", "pci0000:80", None, None),
        device("vf-2", "pci0000:c0", None, None),
    ]);
    let cpus = json!([
        {"name": "numa-0", "attributes": {"dra.cpu/numaNodeID": {"int": 0}}, "capacity": {"dra.cpu/cpu": {"value": "30"}}},
        {"name": "numa-1", "attributes": {"dra.cpu/numaNodeID": {"int": 1}}, "capacity": {"dra.cpu/cpu": {"value": "32"}}},
    ]);
    let claim = json!({"status": {"allocation": {"devices": {"results": [
        {"driver": "gpu.nvidia.com", "pool": "a", "device": "gpu-1"}
    ]}}}});
    let slices = vec![
        slice("gpu.nvidia.com", "a", &gpus),
        slice("nic.test", "a", &nics),
        slice("dra.cpu", "a", &cpus),
    ];
    let mut ours = Amounts { cpu_millis: 4000, ..Amounts::default() };
    ours.devices.insert("nic.test".to_owned(), 1);
    let rig = Rig {
        nodes: vec![node("a", &json!({}), &json!({}))],
        slices: Some(slices),
        claims: Some(vec![claim]),
        held: BTreeMap::from([(
            "a".to_owned(),
            vec![Held { numa: Some(0), amounts: ours, ..Held::default() }],
        )]),
        ..Rig::default()
    };
    insta::assert_snapshot!(draw(&rig.cluster()));
}

#[test]
fn nodes_alone_leave_much_unknown_and_nothing_guessed() {
    let closed = json!({"metadata": {"name": "d"}, "spec": {"unschedulable": true}});
    let single = json!({"nvidia.com/mig.strategy": "single", "nvidia.com/gpu.product": "A100-MIG-1g.5gb"});
    let rig = Rig {
        nodes: vec![
            node("a", &json!({"topology.kubernetes.io/zone": "z2"}), &plugins()),
            node("b", &json!({"topology.kubernetes.io/zone": "z1"}), &plugins()),
            node("c", &single, &json!({"nvidia.com/gpu": "56", "nvidia.com/mig-1g.10gb": "2"})),
            serde_json::from_value(closed).unwrap(),
        ],
        slices: Some(Vec::new()),
        ..Rig::default()
    };
    insta::assert_snapshot!(draw(&rig.cluster()));
}

#[test]
fn vf_pools_are_joined_by_pci_address_with_what_knows_it() {
    let state = |name: &str, sync: &str| {
        let interface = |address: &str| json!({"pciAddress": address, "numVfs": 4, "vfGroups": [{"resourceName": "fast", "vfRange": "0-3"}]});
        json!({"metadata": {"name": name}, "spec": {"interfaces": [interface("0000:03:00.0"), interface("0000:83:00.0")]},
            "status": {"syncStatus": sync, "interfaces": []}})
    };
    let card = |name: &str, address: &str, numa: i64| {
        let mut card = device(name, &format!("pci0000:{numa}0"), Some(numa), None);
        card["attributes"]["resource.kubernetes.io/pciBusID"] = json!({"string": address});
        card["attributes"]["dra.net/rdma"] = json!({"bool": true});
        card
    };
    let cards = json!([card("pf-0", "0000:03:00.0", 0), card("pf-1", "0000:83:00.0", 1)]);
    // `fast` has a prefix that nobody knows: the operator's own object says that it is a pool of VFs.
    let pool = || json!({"example.com/fast": "8"});
    let rig = Rig {
        nodes: vec![
            node("a", &json!({}), &pool()),
            node("b", &json!({}), &pool()),
            node("c", &json!({}), &json!({})),
        ],
        states: Some(vec![state("a", "Succeeded"), state("b", "InProgress")]),
        slices: Some(vec![slice("dra.net", "a", &cards)]),
        claims: None,
        topologies: Some(Vec::new()),
        ..Rig::default()
    };
    insta::assert_snapshot!(draw(&rig.cluster()));
}

#[test]
fn a_device_without_a_hint_is_on_no_numa_node() {
    let mut topologies = vec![topology("a", [[32, 4, 4], [32, 4, 4]])];
    for zone in topologies[0]["zones"].as_array_mut().unwrap() {
        zone["resources"].as_array_mut().unwrap().pop();
    }
    topologies[0]["attributes"] = json!([]);
    let rig = Rig {
        nodes: vec![node("a", &json!({}), &plugins())],
        topologies: Some(topologies),
        ..Rig::default()
    };
    let cluster = rig.cluster();
    let host = &cluster.hosts[0];
    assert_eq!(host.free.device("openshift.io/rdma_a"), 8);
    assert!(host.numa.iter().all(|node| node.capacity.device("openshift.io/rdma_a") == 0));
    let said =
        |part: &str| cluster.unknown.iter().any(|line| line.contains(part) && line.ends_with("host a"));
    assert!(said("the NUMA node of every openshift.io/rdma_a is unknown"), "{:?}", cluster.unknown);
    assert!(said("topology policy is unknown"), "{:?}", cluster.unknown);
}

#[test]
fn no_pod_is_forgotten_and_none_counts_twice_once_the_source_is_known_to_see_it() {
    // All combinations of what somebody else holds, what we hold, how much of ours the source has seen, and of how much of
    // that we know.
    for (others, ours) in (0..=4).flat_map(|others| (0..=4 - others).map(move |ours| (others, ours))) {
        for (seen, known) in (0..=ours).flat_map(|seen| (0..=seen).map(move |known| (seen, known))) {
            let available = 4 - others - seen;
            let ours_held =
                (0..ours).map(|number| Held { in_zones: number < known, ..held(Some(0), 1, 1, 0) });
            let rig = Rig {
                nodes: vec![node("a", &json!({}), &plugins())],
                topologies: Some(vec![topology("a", [[32, available, 4], [32, 4, 4]])]),
                held: BTreeMap::from([("a".to_owned(), ours_held.collect())]),
                ..Rig::default()
            };
            let cluster = rig.cluster();
            let host = &cluster.hosts[0];
            let free = host.numa[0].free.device("nvidia.com/gpu");
            let truth = 4 - others - ours;
            assert!(free <= truth, "forgotten: {others} {ours} {seen} {known}");
            assert_eq!(free, truth.saturating_sub(seen - known), "{others} {ours} {seen} {known}");
            assert!(host.free.device("nvidia.com/gpu") >= free);
            assert_eq!(host.policy.map(|policy| policy.policy), Some(Alignment::SingleNumaNode));
        }
    }
}

#[test]
fn a_pod_whose_numa_node_is_not_known_counts_on_each_until_the_source_sees_it() {
    let free = |in_zones: bool, shares_cpus: bool, available: u32| {
        let ours = Held { in_zones, shares_cpus, ..held(None, 8, 1, 0) };
        let rig = Rig {
            nodes: vec![node("a", &json!({}), &plugins())],
            topologies: Some(vec![topology("a", [[32, available, 4], [32, 4, 4]])]),
            held: BTreeMap::from([("a".to_owned(), vec![ours])]),
            ..Rig::default()
        };
        let host = rig.cluster().hosts.remove(0);
        let nodes = host.numa.iter().map(|node| (node.free.device("nvidia.com/gpu"), node.free.cpu_millis));
        (nodes.collect::<Vec<_>>(), host.free.device("nvidia.com/gpu"))
    };
    assert_eq!(free(false, false, 4), (vec![(3, 24_000), (3, 24_000)], 7));
    assert_eq!(free(false, true, 4), (vec![(3, 32_000), (3, 32_000)], 7), "shared CPUs are on no node");
    assert_eq!(free(true, false, 3), (vec![(3, 32_000), (4, 32_000)], 7));
}

#[test]
fn shared_cpus_and_memory_are_never_counted_by_the_nodes_own_source() {
    // Of 64 CPUs somebody has 32 whole ones, which the source counts, and we share 24, which it does not.
    let free = |in_zones: bool| {
        let ours = Held { in_zones, shares_cpus: true, ..held(None, 24, 0, 0) };
        let rig = Rig {
            nodes: vec![node("a", &json!({}), &plugins())],
            topologies: Some(vec![topology("a", [[0, 4, 4], [32, 4, 4]])]),
            held: BTreeMap::from([("a".to_owned(), vec![ours])]),
            ..Rig::default()
        };
        rig.cluster().hosts[0].free.clone()
    };
    assert_eq!((free(false).cpu_millis, free(true).cpu_millis), (8_000, 8_000));
    assert_eq!(free(false).memory_bytes, free(true).memory_bytes);
}

#[test]
fn cpus_of_a_pod_on_one_node_are_not_taken_from_another() {
    // CPUs are told by a driver only, and a source that tells of devices has seen the pod on node 0.
    let mut topologies = vec![topology("a", [[32, 3, 4], [32, 4, 4]])];
    for zone in topologies[0]["zones"].as_array_mut().unwrap() {
        zone["resources"].as_array_mut().unwrap().remove(0);
    }
    let cpus = json!([
        {"name": "numa-0", "attributes": {"dra.cpu/numaNodeID": {"int": 0}}, "capacity": {"dra.cpu/cpu": {"value": "32"}}},
        {"name": "numa-1", "attributes": {"dra.cpu/numaNodeID": {"int": 1}}, "capacity": {"dra.cpu/cpu": {"value": "32"}}},
    ]);
    let rig = Rig {
        nodes: vec![node("a", &json!({}), &plugins())],
        topologies: Some(topologies),
        slices: Some(vec![slice("dra.cpu", "a", &cpus)]),
        claims: Some(Vec::new()),
        held: BTreeMap::from([("a".to_owned(), vec![Held { in_zones: true, ..held(Some(0), 8, 1, 0) }])]),
        ..Rig::default()
    };
    let free: Vec<u64> = rig.cluster().hosts[0].numa.iter().map(|node| node.free.cpu_millis).collect();
    assert_eq!(free, [24_000, 32_000]);
}

#[test]
fn two_gangs_are_not_promised_one_pair_of_a_root_before_the_claim_is_allocated() {
    let gpus =
        json!([device("gpu-0", "pci0000:00", Some(0), None), device("gpu-1", "pci0000:10", Some(0), None)]);
    let mut nics =
        json!([device("nic-0", "pci0000:00", Some(0), None), device("nic-1", "pci0000:10", Some(0), None)]);
    for nic in nics.as_array_mut().unwrap() {
        nic["attributes"]["dra.net/rdma"] = json!({"bool": true});
    }
    let pairs_left = |in_claims: bool, pairs: bool| {
        let devices = BTreeMap::from([("gpu.nvidia.com".to_owned(), 1), ("dra.net".to_owned(), 1)]);
        let ours = Held {
            numa: Some(0),
            amounts: Amounts { devices, ..Amounts::default() },
            pairs: pairs.then(|| ("gpu.nvidia.com".to_owned(), "dra.net".to_owned())),
            in_claims,
            ..Held::default()
        };
        let result = |driver: &str, device: &str| json!({"driver": driver, "pool": "a", "device": device});
        let results = json!([result("gpu.nvidia.com", "gpu-0"), result("dra.net", "nic-0")]);
        let claim = json!({"status": {"allocation": {"devices": {"results": results}}}});
        let rig = Rig {
            nodes: vec![node("a", &json!({}), &json!({}))],
            slices: Some(vec![slice("gpu.nvidia.com", "a", &gpus), slice("dra.net", "a", &nics)]),
            claims: Some(if in_claims { vec![claim] } else { Vec::new() }),
            held: BTreeMap::from([("a".to_owned(), vec![ours])]),
            ..Rig::default()
        };
        let host = rig.cluster().hosts.remove(0);
        let free = |root: &PcieRoot| root.free.values().copied().min().unwrap_or(0);
        assert_eq!(host.numa[0].free.device("gpu.nvidia.com"), 1, "{:?}", host.numa);
        host.numa[0].roots.iter().map(free).sum::<u32>()
    };
    assert_eq!(pairs_left(false, true), 1);
    assert_eq!(pairs_left(true, true), 1);
    assert_eq!(pairs_left(false, false), 0, "which root gave them is not known");
}
