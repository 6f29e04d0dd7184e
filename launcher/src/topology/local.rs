//! The cluster that consists of this host.

use super::{Amounts, Cluster, Host, NumaNode};

/// What this process may use of this host.
#[must_use]
pub fn cluster() -> Cluster {
    let facts = worker::host::facts(&[]);
    let amounts = |cpus: &[u32], memory_bytes| Amounts {
        cpu_millis: u64::try_from(cpus.len()).unwrap_or(u64::MAX).saturating_mul(1000),
        memory_bytes,
        pods: u32::MAX,
        ..Amounts::default()
    };
    let numa = facts.numa.iter().map(|(id, cpus)| {
        let cpus: Vec<u32> = cpus.iter().copied().filter(|cpu| facts.cpus.contains(cpu)).collect();
        // How much of the memory lies on which node is not looked at: nothing is bound to it here.
        let amounts = amounts(&cpus, 0);
        NumaNode { id: *id, cpus, free: amounts.clone(), capacity: amounts, roots: Vec::new() }
    });
    let all = amounts(&facts.cpus, facts.memory_bytes);
    let host = Host {
        name: facts.name.clone(),
        numa: numa.collect(),
        free: all.clone(),
        capacity: all,
        cpus: facts.cpus.clone(),
        ..Host::default()
    };
    Cluster { hosts: vec![host], ..Cluster::default() }
}
