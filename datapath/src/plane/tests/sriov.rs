//! Which device a plane takes on a machine with two NUMA nodes, and where its memory lies: in the emulated machine with SR-IOV
//! (`verbs-rig run --sriov`, which sets `SLIPWAY_SRIOV=1`), where rxe_a is on a virtual function of node 0 and rxe_b of node 1.
//!
//! One test at a time: what one does to the devices all of them see.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use rustix::thread::{CpuSet, sched_setaffinity};

use super::verbs::fabric::Mended;
use super::verbs::warnings::Warnings;
use super::verbs::{config, variable};
use super::*;
use crate::fault;

/// Bytes of a page.
const PAGE_BYTES: usize = 4096;
/// The pool of an adapter.
const POOL_BYTES: usize = 16 << 20;

fn has_functions() -> bool {
    let is_there = variable("SLIPWAY_SRIOV").as_deref() == Some("1");
    assert!(is_there || variable("CI").as_deref() != Some("true"), "cannot run: SLIPWAY_SRIOV=1 is not set");
    if !is_there {
        println!("not run: SLIPWAY_SRIOV=1 is not set");
    }
    is_there
}

/// Runs a test on a thread and a runtime that stay on the CPUs of a node.
fn on_node<T: Send + 'static>(node: u32, test: impl AsyncFnOnce() -> T + Send + 'static) -> T {
    let bound = move || {
        let list = fs::read_to_string(format!("/sys/devices/system/node/node{node}/cpulist")).unwrap();
        let (first, last) = list.trim().split_once('-').unwrap();
        let mut set = CpuSet::new();
        for cpu in first.parse::<usize>().unwrap()..=last.parse().unwrap() {
            set.set(cpu);
        }
        sched_setaffinity(None, &set).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(async { tokio::time::timeout(HANG, test()).await.unwrap() })
    };
    std::thread::spawn(bound).join().unwrap()
}

async fn start(transport: TransportPolicy, nodes: &[u32], far: FarDevices) -> Result<Plane, PlaneError> {
    let dataset = small();
    let order = order(&dataset, 10, Remainder::Drop);
    let devices = DevicesWanted { names: None, nodes: nodes.iter().copied().collect(), far };
    let identity = Authority::new().identity("worker-0");
    Plane::start(PlaneConfig { devices, ..config(identity, &dataset, &order, transport) }).await
}

fn device(plane: &Plane) -> Result<String, Reason> {
    plane.rails.as_ref().map(|rails| rails.devices()).map_err(|reason| *reason)
}

/// Pages of this process's shared memory by node.
fn pages() -> BTreeMap<u32, usize> {
    let maps = fs::read_to_string("/proc/self/numa_maps").unwrap();
    let mut pages = BTreeMap::new();
    for word in maps.lines().filter(|line| line.contains("memfd")).flat_map(str::split_whitespace) {
        let Some((node, count)) = word.strip_prefix('N').and_then(|word| word.split_once('=')) else {
            continue;
        };
        *pages.entry(node.parse().unwrap()).or_default() += count.parse::<usize>().unwrap();
    }
    pages
}

#[test]
fn a_worker_takes_the_device_of_its_node_and_its_memory_there() {
    if !has_functions() {
        return;
    }
    for (node, expected) in [(0, "rxe_a"), (1, "rxe_b")] {
        on_node(node, async move || {
            Warnings::listen();
            let plane = start(TransportPolicy::RequireRdma, &[node], FarDevices::Refused).await.unwrap();
            assert_eq!(device(&plane), Ok(expected.to_owned()));
            let pages = pages();
            println!("bound to node {node}: {expected}, and pages by node {pages:?}");
            assert_eq!(pages, BTreeMap::from([(node, POOL_BYTES / PAGE_BYTES)]));
            assert_eq!(Warnings::reasons(), [""; 0], "there is nothing to regret");
            plane.close().await;
        });
    }
}

#[test]
fn with_only_the_far_device_left_the_jobs_locality_decides() {
    if !has_functions() {
        return;
    }
    let mended = Mended;
    assert!(Command::new("rdma").args(["link", "del", "rxe_b"]).status().unwrap().success());
    on_node(1, async || {
        Warnings::listen();
        let refused = start(TransportPolicy::RequireRdma, &[1], FarDevices::Refused).await;
        let words = fault::in_full(&refused.unwrap_err());
        println!("require-rdma: {words}");
        assert!(words.contains("wrong_numa") && words.contains(Reason::WrongNuma.hint()), "{words}");
        assert!(words.contains("it is on NUMA node 0, not on 1"), "{words}");

        Warnings::listen();
        let plane = start(TransportPolicy::PreferRdma, &[1], FarDevices::Refused).await.unwrap();
        assert_eq!(device(&plane), Err(Reason::WrongNuma));
        let news = Warnings::mentioned();
        println!("prefer-rdma: {news:?}");
        assert_eq!(news.iter().filter(|news| news.contains("wrong_numa")).count(), 1, "{news:?}");
        plane.close().await;

        Warnings::listen();
        let plane = start(TransportPolicy::RequireRdma, &[1], FarDevices::Used).await.unwrap();
        assert_eq!(device(&plane), Ok("rxe_a".to_owned()));
        assert_eq!(Warnings::reasons(), ["wrong_numa"]);
        let nodes: BTreeSet<u32> = pages().into_keys().collect();
        assert_eq!(nodes, BTreeSet::from([1]), "the memory is the worker's all the same");
        plane.close().await;
    });
    drop(mended);
    on_node(1, async || {
        let plane = start(TransportPolicy::RequireRdma, &[1], FarDevices::Refused).await.unwrap();
        assert_eq!(device(&plane), Ok("rxe_b".to_owned()), "it is back");
        plane.close().await;
    });
}
