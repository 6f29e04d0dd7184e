//! Taking a placement's amounts out of a cluster, and checking a placement that somebody else made (pure).

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::admit::{View, admit, fence};
use super::names::{Names, candidates};
use super::order::same_rack_order;
use super::room::{Ask, node_room, room, together};
use super::{PlacedWorker, Placement, Request};
use crate::job::spec::{Locality, Rack};
use crate::topology::{Amounts, Cluster, Host, NumaNode, PcieRoot};

impl Cluster {
    /// Takes what the workers of a placement will use out of what is free, so that the next job is not given it again.
    ///
    /// Where it is not known which NUMA node or PCIe root something comes from, it is taken from each that it may come
    /// from: until a source tells, less is offered than there is, and never more. Workers on hosts that are not there
    /// take nothing.
    pub fn take(&mut self, placement: &Placement, request: &Request) {
        let names = Names {
            gpu: placement.gpu_name.as_deref(),
            nic: placement.nic_name.as_deref(),
            gpu_by_kubelet: false,
            nic_by_kubelet: false,
        };
        let ask = Ask::new(request, names);
        let mut workers: BTreeMap<&str, Vec<&PlacedWorker>> = BTreeMap::new();
        for worker in &placement.workers {
            workers.entry(&worker.host).or_default().push(worker);
        }
        for host in &mut self.hosts {
            for worker in workers.remove(host.name.as_str()).into_iter().flatten() {
                from_host(host, worker, &ask);
            }
        }
    }
}

fn from_host(host: &mut Host, worker: &PlacedWorker, ask: &Ask<'_>) {
    subtract(&mut host.free, ask);
    host.free.pods = host.free.pods.saturating_sub(1);
    let shared = if ask.cpus == 0 { ask.cpu_millis } else { 0 };
    host.free.cpu_millis = host.free.cpu_millis.saturating_sub(shared);
    host.cpus.retain(|cpu| !worker.cpus.contains(cpu));
    for node in &mut host.numa {
        if worker.numa_node.is_some_and(|id| id != node.id) {
            continue;
        }
        let before = node.free.cpu_millis;
        subtract(&mut node.free, ask);
        if !worker.cpus.is_empty() {
            // Which CPUs go is known.
            let there = node.cpus.len();
            node.cpus.retain(|cpu| !worker.cpus.contains(cpu));
            let gone = u64::try_from(there - node.cpus.len()).unwrap_or(u64::MAX);
            node.free.cpu_millis = before.saturating_sub(gone.saturating_mul(1000));
        }
        from_roots(node, ask);
    }
}

/// Everything but shared CPUs and pods, which only a host as a whole has.
fn subtract(free: &mut Amounts, ask: &Ask<'_>) {
    free.cpu_millis = free.cpu_millis.saturating_sub(ask.cpus.saturating_mul(1000));
    free.memory_bytes = free.memory_bytes.saturating_sub(ask.memory);
    free.hugepage_bytes = free.hugepage_bytes.saturating_sub(ask.hugepages);
    for (name, count) in [(ask.names.gpu, ask.gpus), (ask.names.nic, ask.nics)] {
        if let Some(free) = name.and_then(|name| free.devices.get_mut(name)) {
            *free = less(*free, count);
        }
    }
}

fn from_roots(node: &mut NumaNode, ask: &Ask<'_>) {
    let mut gpus = ask.gpus;
    let mut nics = ask.nics;
    if let (Locality::Pcie, Some(gpu), Some(nic)) = (ask.locality, ask.names.gpu, ask.names.nic) {
        // Pairs are as good as each other: whichever root gives one, there is exactly one fewer.
        let mut pairs = ask.pairs();
        for root in &mut node.roots {
            let has = |name| u64::from(root.free.get(name).copied().unwrap_or(0));
            let here = pairs.min(has(gpu)).min(has(nic));
            give(root, Some(gpu), here);
            give(root, Some(nic), here);
            pairs -= here;
        }
        (gpus, nics) = (gpus - ask.pairs(), nics - ask.pairs());
    }
    for root in &mut node.roots {
        give(root, ask.names.gpu, gpus);
        give(root, ask.names.nic, nics);
    }
}

fn give(root: &mut PcieRoot, name: Option<&str>, count: u64) {
    if let Some(free) = name.and_then(|name| root.free.get_mut(name)) {
        *free = less(*free, count);
    }
}

fn less(free: u32, count: u64) -> u32 {
    u32::try_from(count).map_or(0, |count| free.saturating_sub(count))
}

/// Whether a placement, whoever made it, is one that the request asks for and the cluster has room for.
///
/// What is only preferred is not looked at.
///
/// # Errors
/// Everything that is wrong with it.
pub fn verify(cluster: &Cluster, request: &Request, placement: &Placement) -> Result<(), Vec<String>> {
    let mut faults = Vec::new();
    let placed: Vec<_> = placement.workers.iter().map(|worker| worker.worker).collect();
    if placed != request.workers {
        let wanted: BTreeSet<_> = request.workers.iter().collect();
        let found: BTreeSet<_> = placed.iter().collect();
        let missing = wanted.difference(&found).map(|worker| format!("worker {worker} has no place"));
        faults.extend(missing);
        let unasked = found.difference(&wanted).map(|worker| format!("worker {worker} was not asked for"));
        faults.extend(unasked);
        if faults.is_empty() {
            faults.push("the workers are not placed once each, in the order of the request".to_owned());
        }
    }
    let fence = match fence(cluster, request) {
        Ok(fence) => fence,
        Err(refused) => {
            faults.extend(refused.reasons);
            return Err(faults);
        }
    };
    let names = match candidates(cluster, request) {
        Ok(names) => names,
        Err(reasons) => {
            faults.extend(reasons);
            return Err(faults);
        }
    };
    let chosen = (placement.gpu_name.as_deref(), placement.nic_name.as_deref());
    let Some(names) = names.into_iter().find(|names| (names.gpu, names.nic) == chosen) else {
        let (gpu, nic) = (chosen.0.unwrap_or("none"), chosen.1.unwrap_or("none"));
        faults.push(format!("devices cannot be asked for as {gpu} (GPUs) and {nic} (RDMA NICs)"));
        return Err(faults);
    };
    let ask = Ask::new(request, names);
    let mut by_host: BTreeMap<&str, Vec<&PlacedWorker>> = BTreeMap::new();
    for worker in &placement.workers {
        by_host.entry(&worker.host).or_default().push(worker);
    }
    let mut used = Vec::new();
    for host in &cluster.hosts {
        let Some(workers) = by_host.remove(host.name.as_str()) else { continue };
        used.push(host);
        if let Err(reason) = admit(host, request, fence, View::Now) {
            faults.push(format!("{}: {reason}", host.name));
        } else if let Err(reason) = on_host(host, &ask, &workers) {
            faults.push(format!("{}: {reason}", host.name));
        }
    }
    faults.extend(by_host.keys().map(|host| format!("{host}: not in the cluster")));
    faults.extend(apart(request, &used));
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn apart(request: &Request, used: &[&Host]) -> Vec<String> {
    let Some((first, others)) = used.split_first() else { return Vec::new() };
    let mut faults = Vec::new();
    let with = &first.fabric;
    if request.block == Rack::Required && others.iter().any(|host| host.fabric.block != with.block) {
        faults.push("the workers lie in several blocks, and spec.placement.block is required".to_owned());
    }
    let is_elsewhere = |host: &&Host| same_rack_order(&host.fabric, with) != Ordering::Equal;
    if request.rack == Rack::Required && others.iter().any(is_elsewhere) {
        faults.push("the workers lie in several racks, and spec.placement.rack is required".to_owned());
    }
    faults
}

/// Whether a host has room for these workers, on the NUMA nodes and CPUs that are said.
fn on_host(host: &Host, ask: &Ask<'_>, workers: &[&PlacedWorker]) -> Result<(), String> {
    let room = room(host, ask, View::Now);
    let number = workers.len();
    if u32::try_from(number).unwrap_or(u32::MAX) > room {
        return Err(format!("{number} workers, and there is room for {room}"));
    }
    let together = together(host, ask).map_err(|untold| untold.to_string())?;
    let mut on_nodes: BTreeMap<u32, u64> = BTreeMap::new();
    for id in workers.iter().filter_map(|worker| worker.numa_node) {
        *on_nodes.entry(id).or_default() += 1;
    }
    for (id, number) in on_nodes {
        let Some(node) = host.numa.iter().find(|node| node.id == id) else {
            return Err(format!("it has no NUMA node {id} that is known"));
        };
        let room = node_room(host, node, ask, together, View::Now);
        if number > room {
            return Err(format!("{number} workers on NUMA node {id}, and there is room for {room}"));
        }
    }
    let mut free: BTreeSet<u32> = host.cpus.iter().copied().collect();
    for worker in workers.iter().filter(|_| !host.cpus.is_empty()) {
        let node = host.numa.iter().find(|node| Some(node.id) == worker.numa_node);
        let is_there = |cpu: &u32| node.is_none_or(|node| node.cpus.contains(cpu));
        if u64::try_from(worker.cpus.len()) != Ok(ask.cpus) {
            return Err(format!(
                "worker {} has {} CPUs, and {} are wanted",
                worker.worker,
                worker.cpus.len(),
                ask.cpus
            ));
        }
        if let Some(cpu) = worker.cpus.iter().find(|cpu| !free.remove(cpu) || !is_there(cpu)) {
            return Err(format!(
                "worker {}: CPU {cpu} is not free, or not where the worker is",
                worker.worker
            ));
        }
    }
    Ok(())
}
