//! How long it takes to place a gang of 4,096 workers on 10,000 hosts, or to say why it does not fit.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops")]

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use launcher::job::spec::{Locality, Rack, Strategy};
use launcher::placement::{Need, Request, place};
use launcher::topology::{Amounts, Cluster, DeviceClass, DeviceKind, Fabric, Host, Mechanism, NumaNode};
use worker::units::WorkerId;

const HOSTS: u32 = 10_000;
const WORKERS: u32 = 4096;
const HOSTS_OF_RACK: u32 = 32;
const RACKS_OF_BLOCK: u32 = 16;
const GPU: &str = "nvidia.com/gpu";
const NIC: &str = "openshift.io/rdma_a";

fn amounts(cpus: u32, gpus: u32, nics: u32) -> Amounts {
    Amounts {
        cpu_millis: u64::from(cpus) * 1000,
        memory_bytes: u64::from(cpus) << 33,
        hugepage_bytes: 0,
        pods: 110,
        devices: BTreeMap::from([(GPU.to_owned(), gpus), (NIC.to_owned(), nics)]),
    }
}

/// Hosts with two NUMA nodes of four GPUs and four NICs; `free(host, node)` of the GPUs are.
fn cluster(rack_hosts: u32, free: impl Fn(u32, u32) -> u32) -> Cluster {
    let host = |number: u32| {
        let rack = number / rack_hosts;
        let gpus = [free(number, 0), free(number, 1)];
        let numa = (0..).zip(gpus).map(|(id, gpus)| NumaNode {
            id,
            free: amounts(32, gpus, gpus),
            capacity: amounts(32, 4, 4),
            ..NumaNode::default()
        });
        Host {
            name: format!("node-{number}"),
            fabric: Fabric {
                block: Some(format!("block-{}", rack / RACKS_OF_BLOCK)),
                rack: Some(format!("rack-{rack}")),
                domain: None,
            },
            free: amounts(64, gpus[0] + gpus[1], gpus[0] + gpus[1]),
            capacity: amounts(64, 8, 8),
            numa: numa.collect(),
            ..Host::default()
        }
    };
    // Not in the fabric's order, as an API server does not list them in it: a step that shares no factor with the hosts.
    let hosts = (0..HOSTS).map(|number| host(number * 7 % HOSTS)).collect();
    let kind = |class| DeviceKind { class, by: Mechanism::Plugin };
    let devices = [(GPU.to_owned(), kind(DeviceClass::Gpu)), (NIC.to_owned(), kind(DeviceClass::Nic))];
    Cluster { hosts, devices: BTreeMap::from(devices), unknown: Vec::new() }
}

fn request(rack: Rack) -> Request {
    Request {
        workers: (0..WORKERS).map(WorkerId).collect(),
        seated: WORKERS,
        need: Need { cpus: Some(16), memory_bytes: 64 << 30, gpus: 4, nics: 4, ..Need::default() },
        locality: Locality::Numa,
        strategy: Strategy::Pack,
        rack,
        block: Rack::Any,
        exclude: BTreeMap::new(),
        shunned: BTreeMap::new(),
        node_selector: BTreeMap::new(),
        tolerations: Vec::new(),
        placed: BTreeMap::new(),
    }
}

fn placement(criterion: &mut Criterion) {
    let fragmented =
        |host: u32, node: u32| [4, 3, 1, 4, 0, 2, 4][usize::try_from((host * 5 + node * 3) % 7).unwrap()];
    let whole = cluster(HOSTS_OF_RACK, |_, _| 4);
    let broken = cluster(HOSTS_OF_RACK, fragmented);
    let wide = cluster(2500, fragmented);
    let full = cluster(HOSTS_OF_RACK, |host, _| host % 4);
    let mut group = criterion.benchmark_group("placement/4096 workers on 10000 hosts");
    group.sample_size(20);
    for (name, cluster, rack, fits) in [
        ("all free", &whole, Rack::Any, true),
        ("all free, racks preferred", &whole, Rack::Preferred, true),
        ("fragmented", &broken, Rack::Any, true),
        ("fragmented, racks preferred", &broken, Rack::Preferred, true),
        ("fragmented, one of 4 racks required", &wide, Rack::Required, false),
        ("whole, one of 4 racks required", &cluster(2500, |_, _| 4), Rack::Required, true),
        ("refused: no node has 4 GPUs", &full, Rack::Preferred, false),
    ] {
        let request = request(rack);
        assert_eq!(place(cluster, &request).is_ok(), fits, "{name}");
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| black_box(place(cluster, &request)));
        });
    }
    group.finish();
}

criterion_group!(benches, placement);
criterion_main!(benches);
