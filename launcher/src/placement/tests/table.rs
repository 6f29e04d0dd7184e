//! The table of clusters and jobs in `testdata/`: what is placed where, and what is refused why.
//!
//! `SLIPWAY_BLESS=1 cargo test -p launcher --lib placement` rewrites the expected parts. The notation:
//! ```text
//! === a case's name
//! host n1..n4 rack r1 block b1 cpus 60/64 gpu 8 nic 8 model H100     ranges of names; free/all, or one number for both
//!   node 0..1 cpus 32 gpu 4 nic 4                                     sums are the host's, where it does not say otherwise
//!     root 0..3 gpu 1 nic 1
//! job workers 4 gpus 4 nics 4 cpus 8 locality numa                    `again`: once more after the amounts were taken
//! ---
//! expected
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::*;
use crate::job::spec::pod::{TaintEffect, TolerationOperator};
use crate::job::units::Bytes;
use crate::topology::{Alignment, DeviceClass, DeviceKind, Mechanism, PcieRoot, Taint, TopologyPolicy};

/// Cases in all files together: the table is not to shrink unseen.
const CASES_MIN: usize = 40;

#[test]
fn clusters_and_jobs_of_the_table() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/placement/testdata");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut cases = 0;
    let mut faults = String::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut found = String::new();
        for case in text.split("=== ").skip(1) {
            let (given, expected) = case.split_once("---\n").unwrap_or((case, ""));
            let got = run(given);
            cases += 1;
            write!(found, "=== {}\n---\n{got}\n", given.trim_end()).unwrap();
            if got.trim() != expected.trim() {
                let name = given.lines().next().unwrap();
                write!(faults, "{name}\n  expected:\n{}\n  got:\n{}\n", expected.trim(), got.trim()).unwrap();
            }
        }
        if std::env::var_os("SLIPWAY_BLESS").is_some() {
            std::fs::write(&file, found.trim_end().to_owned() + "\n").unwrap();
        }
    }
    assert!(cases >= CASES_MIN, "only {cases} cases");
    assert!(faults.is_empty() || std::env::var_os("SLIPWAY_BLESS").is_some(), "{faults}");
}

/// What comes out for one case.
fn run(given: &str) -> String {
    let mut cluster = Cluster { devices: devices(), ..Cluster::default() };
    let mut out = String::new();
    let mut copies: Vec<Host> = Vec::new();
    let mut jobs = Vec::new();
    for line in given.lines().skip(1).filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        match words.next().unwrap() {
            "device" => device(&mut cluster, &words.collect::<Vec<_>>()),
            "host" => {
                cluster.hosts.append(&mut copies);
                copies = hosts(&words.collect::<Vec<_>>());
            }
            "node" => copies.iter_mut().for_each(|host| nodes(host, &words.clone().collect::<Vec<_>>())),
            "root" => copies.iter_mut().for_each(|host| roots(host, &words.clone().collect::<Vec<_>>())),
            "job" | "again" => jobs.push(line),
            other => panic!("{other}"),
        }
    }
    cluster.hosts.append(&mut copies);
    cluster.hosts.iter_mut().for_each(sum_up);
    let mut last = None;
    for line in jobs {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let request = if rest.is_empty() { last.clone().unwrap() } else { job(rest) };
        let placed = place(&cluster, &request);
        let mut mirrored = cluster.clone();
        mirrored.hosts.reverse();
        assert_eq!(placed, place(&mirrored, &request), "the order of the hosts makes a difference: {line}");
        if verb == "again" {
            out += "again\n";
        }
        if let Ok(placement) = &placed {
            assert_eq!(verify(&cluster, &request, placement), Ok(()), "{line}");
            cluster.take(placement, &request);
        }
        out += &tell(&placed);
        last = Some(request);
    }
    out
}

fn tell(placed: &Result<Placement, Unplaceable>) -> String {
    let mut out = String::new();
    match placed {
        Ok(placement) => {
            let runs = placement.workers.chunk_by(|a, b| (&a.host, a.numa_node) == (&b.host, b.numa_node));
            for run in runs {
                let workers: Vec<String> = run.iter().map(|worker| worker.worker.to_string()).collect();
                let node = run[0].numa_node.map(|id| format!(" node {id}")).unwrap_or_default();
                writeln!(out, "{}{node}: {}", run[0].host, workers.join(" ")).unwrap();
            }
            for note in &placement.notes {
                writeln!(out, "note: {note}").unwrap();
            }
        }
        Err(refused) => {
            writeln!(out, "refused, {}: {refused}", if refused.never { "for ever" } else { "now" }).unwrap();
            for reason in &refused.reasons {
                writeln!(out, "  {reason}").unwrap();
            }
        }
    }
    out
}

/// What the short names stand for that every case begins with.
fn devices() -> BTreeMap<String, DeviceKind> {
    let kind = |class| DeviceKind { class, by: Mechanism::Plugin };
    BTreeMap::from([("gpu".to_owned(), kind(DeviceClass::Gpu)), ("nic".to_owned(), kind(DeviceClass::Nic))])
}

/// `device NAME CLASS MECHANISM`; `device none` takes all away.
fn device(cluster: &mut Cluster, words: &[&str]) {
    let [name, class, by] = words else { return cluster.devices.clear() };
    let class = match *class {
        "gpu" => DeviceClass::Gpu,
        "shared" => DeviceClass::SharedGpu,
        "nic" => DeviceClass::Nic,
        profile => DeviceClass::Mig(profile.to_owned()),
    };
    let by = if *by == "dra" { Mechanism::Dra } else { Mechanism::Plugin };
    cluster.devices.insert((*name).to_owned(), DeviceKind { class, by });
}

/// `a1..a3` as its names, or the one name that it is.
fn names(text: &str) -> Vec<String> {
    let Some((first, last)) = text.split_once("..") else { return vec![text.to_owned()] };
    let digits = first.find(|char: char| char.is_ascii_digit()).unwrap();
    let (stem, first) = first.split_at(digits);
    let last = last.trim_start_matches(stem);
    let range = first.parse::<u32>().unwrap()..=last.parse().unwrap();
    range.map(|number| format!("{stem}{number}")).collect()
}

fn amount(text: &str) -> u64 {
    text.parse::<Bytes>().unwrap().0
}

/// `free/all`.
fn both(text: &str) -> (u64, u64) {
    let (free, all) = text.split_once('/').unwrap_or((text, text));
    (amount(free), amount(all))
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap()
}

fn set(free: &mut Amounts, all: &mut Amounts, key: &str, value: &str) {
    let (some, most) = both(value);
    for (amounts, value) in [(free, some), (all, most)] {
        match key {
            "cpus" => amounts.cpu_millis = value * 1000,
            "mem" => amounts.memory_bytes = value,
            "huge" => amounts.hugepage_bytes = value,
            "pods" => amounts.pods = small(value),
            device => {
                amounts.devices.insert(device.to_owned(), small(value));
            }
        }
    }
}

fn hosts(words: &[&str]) -> Vec<Host> {
    let mut host = Host::default();
    set(&mut host.free, &mut host.capacity, "pods", "110");
    for pair in words[1..].chunks(2) {
        let (key, value) = (pair[0], pair[1]);
        match key {
            "rack" => host.fabric.rack = Some(value.to_owned()),
            "block" => host.fabric.block = Some(value.to_owned()),
            "domain" => host.fabric.domain = Some(value.to_owned()),
            "model" => host.gpu_model = Some(value.to_owned()),
            "closed" => host.closed = Some(value.replace('_', " ")),
            "label" => {
                let (key, value) = value.split_once('=').unwrap();
                host.labels.insert(key.to_owned(), value.to_owned());
            }
            "taint" => {
                let (key, effect) = value.split_once(':').unwrap();
                let (key, value) = key.split_once('=').unwrap_or((key, ""));
                let (key, value) = (key.to_owned(), value.to_owned());
                host.taints.push(Taint { key, value, effect: effect_of(effect) });
            }
            "policy" => {
                let (policy, scope) = value.split_once('/').unwrap();
                let policy = match policy {
                    "none" => Alignment::None,
                    "best-effort" => Alignment::BestEffort,
                    "restricted" => Alignment::Restricted,
                    "single-numa-node" => Alignment::SingleNumaNode,
                    other => panic!("{other}"),
                };
                host.policy = Some(TopologyPolicy { policy, whole_pod: scope == "pod" });
            }
            _ => set(&mut host.free, &mut host.capacity, key, value),
        }
    }
    names(words[0]).into_iter().map(|name| Host { name, ..host.clone() }).collect()
}

fn effect_of(text: &str) -> TaintEffect {
    match text {
        "NoSchedule" => TaintEffect::NoSchedule,
        "PreferNoSchedule" => TaintEffect::PreferNoSchedule,
        "NoExecute" => TaintEffect::NoExecute,
        other => panic!("{other}"),
    }
}

fn nodes(host: &mut Host, words: &[&str]) {
    for id in names(words[0]) {
        let mut node = NumaNode { id: id.parse().unwrap(), ..NumaNode::default() };
        for pair in words[1..].chunks(2) {
            set(&mut node.free, &mut node.capacity, pair[0], pair[1]);
        }
        host.numa.push(node);
    }
}

/// Roots of the node that was named last.
fn roots(host: &mut Host, words: &[&str]) {
    let node = host.numa.last_mut().unwrap();
    for name in names(words[0]) {
        let mut root = PcieRoot { name, ..PcieRoot::default() };
        for pair in words[1..].chunks(2) {
            let (free, all) = both(pair[1]);
            root.free.insert(pair[0].to_owned(), small(free));
            root.capacity.insert(pair[0].to_owned(), small(all));
        }
        node.roots.push(root);
    }
}

/// What a host does not say of itself is the sum of its nodes; what neither says is plenty.
fn sum_up(host: &mut Host) {
    for capacity in [false, true] {
        let of = |node: &NumaNode| if capacity { node.capacity.clone() } else { node.free.clone() };
        let nodes: Vec<Amounts> = host.numa.iter().map(of).collect();
        let amounts = if capacity { &mut host.capacity } else { &mut host.free };
        let or = |given: u64, sum: u64, plenty: u64| match (given, sum) {
            (0, 0) => plenty,
            (0, sum) => sum,
            (given, _) => given,
        };
        let sum = |of: &dyn Fn(&Amounts) -> u64| nodes.iter().map(of).sum::<u64>();
        amounts.cpu_millis = or(amounts.cpu_millis, sum(&|node| node.cpu_millis), 64_000);
        amounts.memory_bytes = or(amounts.memory_bytes, sum(&|node| node.memory_bytes), 512 << 30);
        amounts.hugepage_bytes = or(amounts.hugepage_bytes, sum(&|node| node.hugepage_bytes), 0);
        let mut devices: BTreeMap<String, u32> = BTreeMap::new();
        for (name, count) in nodes.iter().flat_map(|node| &node.devices) {
            *devices.entry(name.clone()).or_default() += count;
        }
        devices.append(&mut amounts.devices);
        amounts.devices = devices;
    }
}

fn job(text: &str) -> Request {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut request = request(0, None);
    request.rack = Rack::Any;
    let (mut gang, mut spares) = (1, 0);
    for pair in words.chunks(2) {
        let (key, value) = (pair[0], pair[1]);
        let need = &mut request.need;
        let rule = || match value {
            "any" => Rack::Any,
            "preferred" => Rack::Preferred,
            "required" => Rack::Required,
            other => panic!("{other}"),
        };
        match key {
            "workers" => gang = value.parse().unwrap(),
            "spares" => spares = value.parse().unwrap(),
            "cpus" => need.cpus = Some(value.parse().unwrap()),
            "millis" => need.cpu_millis = value.parse().unwrap(),
            "mem" => need.memory_bytes = amount(value),
            "huge" => need.hugepage_bytes = amount(value),
            "gpus" => need.gpus = value.parse().unwrap(),
            "nics" => need.nics = value.parse().unwrap(),
            "mode" => need.gpu_mode = value.parse().unwrap(),
            "model" => need.gpu_model = Some(value.to_owned()),
            "gpu" => need.gpu_name = Some(value.to_owned()),
            "nic" => need.nic_name = Some(value.to_owned()),
            "by" => need.devices_by = if value == "dra" { DevicesBy::Dra } else { DevicesBy::Plugin },
            "locality" => {
                request.locality = match value {
                    "numa" => Locality::Numa,
                    "pcie" => Locality::Pcie,
                    other => panic!("{other}"),
                }
            }
            "strategy" => {
                request.strategy = if value == "spread" { Strategy::Spread } else { Strategy::Pack }
            }
            "rack" => request.rack = rule(),
            "block" => request.block = rule(),
            "exclude" => {
                request.exclude.insert(value.to_owned(), "excluded by spec.placement.exclude".to_owned());
            }
            "select" => {
                let (key, value) = value.split_once('=').unwrap();
                request.node_selector.insert(key.to_owned(), value.to_owned());
            }
            "tolerate" => request.tolerations.push(TolerationSpec {
                key: Some(value.to_owned()),
                operator: TolerationOperator::Exists,
                ..TolerationSpec::default()
            }),
            "placed" => {
                let (worker, host) = value.split_once('=').unwrap();
                request.placed.insert(WorkerId(worker.parse().unwrap()), host.to_owned());
            }
            other => panic!("{other}"),
        }
    }
    let free = (0..).map(WorkerId).filter(|worker| !request.placed.contains_key(worker));
    request.workers = free.take(gang + spares).collect();
    request.seated = u32::try_from(gang).unwrap();
    request
}
