//! What this host has: CPUs, NUMA nodes, memory, interfaces, and which host it is.

pub mod addresses;
pub mod interface;
pub mod pci;
pub mod probe;
pub mod rdma;
pub mod sysfs;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use datapath::plane::{DevicesWanted, FarDevices};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::rendezvous::message::HostFacts;

/// The facts of the running host, its CPUs cut down to `wanted` (all that this process may use if that is empty).
#[must_use]
pub fn facts(wanted: &[u32]) -> HostFacts {
    let mut facts = sysfs::read(Path::new("/"));
    let allowed = allowed_cpus();
    let usable = |cpu: &u32| allowed.is_empty() || allowed.contains(cpu);
    facts.cpus = if wanted.is_empty() {
        facts.cpus.into_iter().filter(usable).collect()
    } else {
        wanted.iter().copied().filter(usable).collect()
    };
    facts
}

/// Which RDMA devices the data plane of a worker with these CPUs (all that this process may use, if there are none) is to use:
/// those that a device plugin gave it, and the near ones first.
#[must_use]
pub fn devices_wanted(cpus: &[u32], far: FarDevices) -> DevicesWanted {
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let HostFacts { cpus, numa, .. } = facts(cpus);
    DevicesWanted { names: pci::granted_rdma(Path::new("/"), &env), nodes: nodes_of(&cpus, &numa), far }
}

/// Keeps the calling thread, and those that it starts from now on, on the NUMA nodes of these CPUs. The kernel gives memory from
/// the node of whoever touches it first; so what the worker holds, and registers, is then where its CPUs are.
///
/// Not on these CPUs alone: the ranks have them, and are better off when the worker finds another one.
///
/// # Errors
/// When the kernel refuses.
pub fn stay_near(cpus: &[u32]) -> io::Result<()> {
    let numa = sysfs::read(Path::new("/")).numa;
    let near = near(cpus, &allowed_cpus(), &numa);
    if near.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in near.into_iter().filter_map(|cpu| usize::try_from(cpu).ok()) {
        set.set(cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}

/// NUMA nodes that at least one of these CPUs is of.
pub(crate) fn nodes_of(cpus: &[u32], numa: &BTreeMap<u32, Vec<u32>>) -> BTreeSet<u32> {
    let is_of = |members: &Vec<u32>| members.iter().any(|cpu| cpus.contains(cpu));
    numa.iter().filter(|(_, members)| is_of(members)).map(|(node, _)| *node).collect()
}

/// Of the allowed CPUs those of these CPUs' nodes; none where nothing is to be kept together.
fn near(cpus: &[u32], allowed: &[u32], numa: &BTreeMap<u32, Vec<u32>>) -> Vec<u32> {
    let nodes = nodes_of(cpus, numa);
    let members = numa.iter().filter(|(node, _)| nodes.contains(node)).flat_map(|(_, members)| members);
    members.copied().filter(|cpu| allowed.contains(cpu)).collect()
}

/// What the scheduler lets this process run on; empty when it does not say.
fn allowed_cpus() -> Vec<u32> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    let cpus = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
    cpus.filter_map(|cpu| u32::try_from(cpu).ok()).collect()
}

/// CPUs that are this process's alone and may so be split over its ranks; empty where others use them too.
#[must_use]
pub fn own_cpus() -> Vec<u32> {
    let root = Path::new("/");
    own_of(allowed_cpus(), &sysfs::read(root).cpus, sysfs::cpu_quota(root))
}

/// The kubelet's static CPU manager gives a container CPUs of its own by its cpuset, and limits it (if at all) to exactly
/// as many (kubernetes.io, "Control CPU Management Policies"). A cpuset with another limit is a share of what is common.
fn own_of(allowed: Vec<u32>, online: &[u32], quota: Option<f64>) -> Vec<u32> {
    let is_whole =
        quota.is_none_or(|quota| u32::try_from(allowed.len()).is_ok_and(|count| f64::from(count) == quota));
    if allowed.len() < online.len() && is_whole { allowed } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpuset_is_ours_alone_unless_it_is_larger_than_our_share() {
        let online: Vec<u32> = (0..8).collect();
        assert_eq!(own_of(vec![2, 3], &online, Some(2.0)), [2, 3]);
        assert_eq!(own_of(vec![2, 3], &online, None), [2, 3]);
        assert_eq!(own_of((1..8).collect(), &online, Some(0.5)), Vec::<u32>::new());
        assert_eq!(own_of(online.clone(), &online, None), Vec::<u32>::new(), "nothing was set apart");
    }

    #[test]
    fn a_worker_stays_on_the_nodes_of_its_cpus() {
        let numa = BTreeMap::from([(0, vec![0, 1]), (1, vec![2, 3]), (2, vec![4, 5])]);
        assert_eq!(near(&[2], &[0, 1, 2, 3, 4], &numa), [2, 3]);
        assert_eq!(near(&[1, 4], &[0, 1, 2, 3, 4], &numa), [0, 1, 4], "5 is not allowed");
        assert_eq!(near(&[], &[0, 1], &numa), Vec::<u32>::new(), "it may run anywhere");
        assert_eq!(near(&[0], &[0, 1], &BTreeMap::new()), Vec::<u32>::new());
        assert_eq!(nodes_of(&[3, 4], &numa), BTreeSet::from([1, 2]));
    }

    #[test]
    fn this_host_says_something() {
        let facts = facts(&[]);
        assert!(!facts.cpus.is_empty());
        assert!(facts.memory_bytes > 0);
        assert_eq!(facts.boot_id.len(), 36, "{}", facts.boot_id);
    }

    #[test]
    fn cpus_that_are_not_ours_are_not_offered() {
        assert_eq!(facts(&[u32::MAX]).cpus, Vec::<u32>::new());
    }
}
