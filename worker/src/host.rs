//! What this host has: CPUs, NUMA nodes, memory, interfaces, and which host it is.

pub mod addresses;
pub mod interface;
pub mod pci;
pub mod probe;
pub mod sysfs;

use std::path::Path;

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

/// What the scheduler lets this process run on; empty when it does not say.
fn allowed_cpus() -> Vec<u32> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    let cpus = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
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
