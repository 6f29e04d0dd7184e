//! Hosts that are made up, and what is chosen on them.

use proptest::prelude::*;

use super::*;
use crate::transport::rdma::gid::{Entry, Gid, LinkLayer};
use crate::transport::rdma::sysfs::Port;

fn found(name: &str, node: Option<u32>) -> Found {
    let gid = Chosen { index: 1, gid: Gid::parse("::ffff:10.9.0.1").unwrap() };
    Found { name: name.to_owned(), node, way: Ok(Way { port: 1, layer: LinkLayer::Ethernet, gid }) }
}

fn down(name: &str, node: Option<u32>) -> Found {
    Found { way: Err((Reason::PortDown, "port 1 is down".to_owned())), ..found(name, node) }
}

fn wanted(nodes: &[u32], far: FarDevices) -> DevicesWanted {
    DevicesWanted { names: None, nodes: nodes.iter().copied().collect(), far }
}

fn reasons(choice: &Choice) -> Vec<(&str, Reason)> {
    choice.notes.iter().map(|note| (note.device.as_str(), note.reason)).collect()
}

#[test]
fn the_near_ones_are_used_and_the_far_ones_are_not() {
    let host = [found("a0", Some(0)), found("a1", None), found("b0", Some(1)), found("b1", Some(1))];
    for far in [FarDevices::Used, FarDevices::Refused] {
        let choice = choose(&host, &wanted(&[1], far));
        assert_eq!(choice.names, ["b0", "b1", "a1"], "one of no known node is near, and comes last");
        assert_eq!(reasons(&choice), [("a0", Reason::WrongNuma)]);
        assert_eq!(choice.notes[0].words, "it is on NUMA node 0, not on 1, and there are nearer ones");
        assert_eq!((choice.regrets().count(), choice.absence()), (0, None));
    }
}

#[test]
fn with_only_a_far_one_left_the_job_decides() {
    let host = [found("rxe_a", Some(0)), down("rxe_b", Some(1))];
    let choice = choose(&host, &wanted(&[1], FarDevices::Used));
    assert_eq!(choice.names, ["rxe_a"]);
    let regrets: Vec<_> = choice.regrets().collect();
    assert_eq!((regrets.len(), regrets[0].reason), (1, Reason::WrongNuma));
    assert_eq!(regrets[0].words, "it is on NUMA node 0, not on 1; it is used, as there is no nearer one");
    let choice = choose(&host, &wanted(&[1], FarDevices::Refused));
    assert!(choice.names.is_empty());
    assert_eq!(choice.absence().unwrap().reason, Reason::PortDown, "what could be mended comes first");
    let choice = choose(&host[..1], &wanted(&[1, 2], FarDevices::Refused));
    let absence = choice.absence().unwrap();
    assert_eq!((absence.device.as_str(), absence.reason), ("rxe_a", Reason::WrongNuma));
    assert_eq!(absence.words, "it is on NUMA node 0, not on 1 or 2, and the job wants them together");
}

#[test]
fn nothing_is_far_from_a_worker_that_may_run_anywhere() {
    let host = [found("a", Some(0)), found("b", Some(1))];
    for nodes in [&[][..], &[0, 1]] {
        let choice = choose(&host, &wanted(nodes, FarDevices::Refused));
        assert_eq!((choice.names.len(), choice.notes.len()), (2, 0));
    }
}

#[test]
fn devices_of_others_are_left_alone() {
    let host = [found("mine", Some(0)), found("theirs", Some(1))];
    let own = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>());
    let choice = choose(&host, &DevicesWanted { names: own(&["mine"]), ..wanted(&[1], FarDevices::Used) });
    assert_eq!(choice.names, ["mine"], "though the other one is nearer");
    assert_eq!(reasons(&choice), [("theirs", Reason::NotWanted), ("mine", Reason::WrongNuma)]);
    let none = choose(&host, &DevicesWanted { names: own(&[]), ..DevicesWanted::default() });
    let absence = none.absence().unwrap();
    assert_eq!(absence.reason, Reason::NoDevice, "given functions without an RDMA device are no permission");
    assert!(absence.words.contains("this worker was given"), "{}", absence.words);
    assert_eq!(choose(&[], &DevicesWanted::default()).absence().unwrap().reason, Reason::NoDevice);
}

#[test]
fn the_first_port_that_can_be_used_is_and_the_first_ones_fault_is_told() {
    let entry = |gid| Entry { index: 3, gid, is_roce_v2: true, netdev: Some("net1".to_owned()) };
    let address = Gid::parse("::ffff:10.9.0.3").unwrap();
    let port = |number, is_up, gids| {
        let layer = LinkLayer::Ethernet;
        Port { number, state: String::new(), is_up, layer, gids }
    };
    let mut device = Device {
        name: "mlx5_0".to_owned(),
        numa_node: Some(1),
        pci: None,
        netdev: None,
        ports: vec![port(1, false, vec![]), port(2, true, vec![entry(address)])],
    };
    let netdevs = ["net1".to_owned()];
    let usable = Found::of(&device, &netdevs);
    let gid = Chosen { index: 3, gid: address };
    assert_eq!(usable.way, Ok(Way { port: 2, layer: LinkLayer::Ethernet, gid }));
    let fault = |device: &Device| way(device, &netdevs).unwrap_err();
    device.ports[1].gids.clear();
    assert_eq!(fault(&device), (Reason::PortDown, "port 1 is down".to_owned()));
    device.ports.remove(0);
    assert_eq!(fault(&device).0, Reason::GidMissing);
    device.ports.clear();
    assert_eq!(fault(&device).0, Reason::NoDevice);
}

#[test]
fn every_end_is_told_of_every_device() {
    let end = |name: &str, node| End { name: name.to_owned(), nodes: BTreeSet::from([node]) };
    let ends = [end("CPUs", 0), end("GPU", 1)];
    let host = [found("a", Some(0)), down("b", Some(1))];
    let shown = |pairs: Vec<Pair>| -> Vec<_> {
        pairs.into_iter().map(|pair| (pair.from, pair.device, pair.lane, pair.reason)).collect()
    };
    let row = |from: &str, device: Option<&str>, lane, reason| {
        (from.to_owned(), device.map(str::to_owned), lane, reason)
    };
    let (rdma, quic) = (LaneKind::Rdma, LaneKind::Quic);
    assert_eq!(
        shown(pairs(&ends, &host, None, None)),
        [
            row("CPUs", Some("a"), rdma, None),
            row("CPUs", Some("b"), quic, Some(Reason::PortDown)),
            row("GPU", Some("a"), rdma, Some(Reason::WrongNuma)),
            row("GPU", Some("b"), quic, Some(Reason::PortDown)),
        ]
    );
    let not_built = (Reason::NotBuilt, "this build has no RDMA".to_owned());
    let all = shown(pairs(&ends, &host, None, Some(&not_built)));
    assert!(
        all.len() == 4 && all.iter().all(|row| (row.2, row.3) == (quic, Some(Reason::NotBuilt))),
        "{all:?}"
    );
    let none = row("CPUs", None, quic, Some(Reason::NoDevice));
    assert_eq!(shown(pairs(&ends[..1], &[], None, None)), [none]);
    let none = row("CPUs", None, quic, Some(Reason::NotBuilt));
    assert_eq!(shown(pairs(&ends[..1], &[], None, Some(&not_built))), [none]);
}

proptest! {
    #[test]
    fn every_device_is_used_or_has_a_reason_and_no_far_one_comes_with_a_near_one(
        host in proptest::collection::vec((proptest::option::of(0_u32..3), any::<bool>()), 0..6),
        nodes in proptest::collection::btree_set(0_u32..3, 0..3),
        is_refused in any::<bool>(),
    ) {
        let far = if is_refused { FarDevices::Refused } else { FarDevices::Used };
        let host: Vec<_> = host.iter().enumerate().map(|(at, &(node, is_up))| {
            let name = format!("d{at}");
            if is_up { found(&name, node) } else { down(&name, node) }
        }).collect();
        let choice = choose(&host, &DevicesWanted { names: None, nodes: nodes.clone(), far });
        let is_far = |name: &String| {
            let device = host.iter().find(|device| device.name == *name).unwrap();
            !nodes.is_empty() && device.node.is_some_and(|node| !nodes.contains(&node))
        };
        let far_ones = choice.names.iter().filter(|name| is_far(name)).count();
        prop_assert!(far_ones == 0 || (far_ones == choice.names.len() && !is_refused));
        prop_assert_eq!(choice.regrets().count(), far_ones);
        for device in &host {
            let told = choice.notes.iter().filter(|note| note.device == device.name).count();
            prop_assert_eq!(told, usize::from(!choice.names.contains(&device.name) || is_far(&device.name)));
        }
        prop_assert_eq!(choice.absence().is_none(), !choice.names.is_empty());
    }
}
