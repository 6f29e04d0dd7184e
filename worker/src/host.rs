//! What this host has: CPUs, NUMA nodes, memory, interfaces, and which host it is.

pub mod interface;
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

#[cfg(test)]
mod tests {
    use super::*;

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
