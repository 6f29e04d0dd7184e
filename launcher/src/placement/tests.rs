//! Placements on this host, and what remains of a cluster after one.

use super::*;

mod brute;
mod table;

use crate::topology::{Amounts, Host, NumaNode};

fn amounts(cpus: &[u32], memory_bytes: u64) -> Amounts {
    let cpu_millis = u64::try_from(cpus.len()).unwrap() * 1000;
    Amounts { cpu_millis, memory_bytes, pods: u32::MAX, ..Amounts::default() }
}

/// A host as `topology::local` tells it.
fn host(name: &str, nodes: &[&[u32]]) -> Host {
    let numa = (0..).zip(nodes).map(|(id, cpus)| NumaNode {
        id,
        cpus: cpus.to_vec(),
        free: amounts(cpus, 0),
        capacity: amounts(cpus, 0),
        roots: Vec::new(),
    });
    let cpus = nodes.concat();
    let all = amounts(&cpus, 100);
    Host {
        name: name.to_owned(),
        numa: numa.collect(),
        free: all.clone(),
        capacity: all,
        cpus,
        ..Host::default()
    }
}

fn cluster(hosts: Vec<Host>) -> Cluster {
    Cluster { hosts, ..Cluster::default() }
}

fn request(workers: u32, cpus: Option<u32>) -> Request {
    Request {
        workers: (0..workers).map(WorkerId).collect(),
        seated: workers,
        need: Need { cpus, ..Need::default() },
        locality: Locality::None,
        strategy: Strategy::Pack,
        rack: Rack::Preferred,
        block: Rack::Any,
        exclude: BTreeMap::new(),
        shunned: BTreeMap::new(),
        node_selector: BTreeMap::new(),
        tolerations: Vec::new(),
        placed: BTreeMap::new(),
    }
}

#[test]
fn whole_cpus_come_from_one_node_where_one_has_enough() {
    let cluster = cluster(vec![host("a", &[&[0, 1, 2], &[3, 4, 5]])]);
    let placed = place(&cluster, &request(3, Some(2))).unwrap();
    let cpus: Vec<_> = placed.workers.iter().map(|w| (w.cpus.clone(), w.numa_node)).collect();
    assert_eq!(cpus, [(vec![0, 1], Some(0)), (vec![3, 4], Some(1)), (vec![2, 5], None)]);
    assert_eq!(verify(&cluster, &request(3, Some(2)), &placed), Ok(()));
}

#[test]
fn with_locality_they_come_from_one_node_or_not_at_all() {
    let cluster = cluster(vec![host("a", &[&[0, 1, 2], &[3, 4, 5]])]);
    let mut wanted = request(2, Some(2));
    wanted.locality = Locality::Numa;
    let placed = place(&cluster, &wanted).unwrap();
    let cpus: Vec<_> = placed.workers.iter().map(|w| (w.cpus.clone(), w.numa_node)).collect();
    assert_eq!(cpus, [(vec![0, 1], Some(0)), (vec![3, 4], Some(1))]);
    wanted.workers.push(WorkerId(2));
    let refused = place(&cluster, &wanted).unwrap_err();
    assert_eq!(refused.reasons, ["a: room for 2 of 3 workers: 1 + 1 on its NUMA nodes"]);
    assert!(refused.never);
}

#[test]
fn unbound_workers_share_and_the_plan_says_so() {
    let cluster = cluster(vec![host("a", &[&[0, 1]])]);
    let placed = place(&cluster, &request(3, None)).unwrap();
    assert!(placed.workers.iter().all(|worker| worker.cpus.is_empty()));
    assert_eq!(placed.notes, ["3 workers share 2 CPUs"]);
}

#[test]
fn all_or_none_with_a_reason_for_each_host() {
    let cluster = cluster(vec![host("a", &[&[0, 1]]), host("b", &[&[0]])]);
    assert_eq!(place(&cluster, &request(3, Some(1))).unwrap().workers[2].host, "b");
    let refused = place(&cluster, &request(4, Some(1))).unwrap_err();
    assert_eq!(refused.placed, 3);
    assert_eq!(
        refused.reasons,
        [
            "a: room for 2 of 4 workers: 2 of 2 CPUs free, 1 for each worker",
            "b: room for 1 of 4 workers: 1 of 1 CPUs free, 1 for each worker"
        ]
    );
    let mut wanted = request(1, None);
    wanted.need.gpus = 1;
    assert_eq!(
        place(&cluster, &wanted).unwrap_err().reasons,
        ["no host offers whole GPUs; no devices are offered"]
    );
    wanted = request(1, Some(2));
    wanted.exclude = BTreeMap::from([("a".to_owned(), "excluded by spec.placement.exclude".to_owned())]);
    assert_eq!(
        place(&cluster, &wanted).unwrap_err().reasons,
        ["a: excluded by spec.placement.exclude", "b: 1 of 1 CPUs free, 2 for each worker"]
    );
    // What lasts a while only keeps a job from its places now.
    let never = |request: &Request| place(&cluster, request).unwrap_err().never;
    assert!(never(&wanted));
    wanted.shunned = std::mem::take(&mut wanted.exclude);
    assert!(!never(&wanted));
    wanted = request(1, None);
    wanted.need.memory_bytes = 101;
    let refused = place(&cluster, &wanted).unwrap_err();
    assert_eq!(
        refused.reasons,
        ["2 hosts (a, b): 100 bytes of 100 bytes of memory free, 101 bytes for each worker"]
    );
}
