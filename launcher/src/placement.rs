//! Which worker goes where (pure): `Cluster + Request → Placement`, or a reason for every host that was refused.
//!
//! Workers fill the hosts in the fabric's order, so that neighbours in rank are neighbours in the fabric. A worker
//! that asks for whole CPUs gets them from one NUMA node where one has enough.

use worker::units::WorkerId;

use crate::job::Job;
use crate::topology::{Cluster, Host};

/// What a job asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Workers, spares included.
    pub workers: u32,
    /// Whole CPUs of each; none: unbound.
    pub cpus: Option<u32>,
    /// Bytes of each; none: not asked for.
    pub memory_bytes: Option<u64>,
    /// GPUs of each.
    pub gpus: u32,
    /// NICs of each.
    pub nics: u32,
    /// Hosts that are not used.
    pub exclude: Vec<String>,
}

impl Request {
    /// What `job` asks for.
    #[must_use]
    pub fn of(job: &Job) -> Self {
        Self {
            workers: job.workers.count.get().saturating_add(job.workers.spares),
            cpus: job.resources.cpus.map(std::num::NonZeroU32::get),
            memory_bytes: job.resources.memory.map(|memory| memory.0),
            gpus: job.resources.gpus,
            nics: job.resources.nics,
            exclude: job.placement.exclude.clone(),
        }
    }
}

/// Who goes where; leaves nothing to decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Index = worker.
    pub workers: Vec<PlacedWorker>,
    /// What was decided and why, one line each.
    pub notes: Vec<String>,
}

/// One worker's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedWorker {
    /// Which.
    pub worker: WorkerId,
    /// Its host.
    pub host: String,
    /// CPUs to bind to; empty: unbound.
    pub cpus: Vec<u32>,
    /// The node that they lie on, if it is one.
    pub numa_node: Option<u32>,
}

/// Why a job cannot be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("place {wanted} workers: there is room for {placed}")]
pub struct Unplaceable {
    /// Workers that were asked for.
    pub wanted: u32,
    /// Workers that there is room for.
    pub placed: u32,
    /// One line per host that could not take (all of) them.
    pub reasons: Vec<String>,
}

/// Places all of them or none.
///
/// # Errors
/// When there is no room for all.
pub fn place(cluster: &Cluster, request: &Request) -> Result<Placement, Unplaceable> {
    let mut placement = Placement { workers: Vec::new(), notes: Vec::new() };
    let mut reasons = Vec::new();
    let mut next = 0;
    for host in &cluster.hosts {
        let room = match room(host, request) {
            Ok(room) => room,
            Err(reason) => {
                reasons.push(format!("{}: {reason}", host.name));
                continue;
            }
        };
        let mut free = Free::of(host);
        let first = next;
        while next < request.workers && next - first < room.workers {
            let (cpus, numa_node) = free.take(request.cpus);
            placement.workers.push(PlacedWorker {
                worker: WorkerId(next),
                host: host.name.clone(),
                cpus,
                numa_node,
            });
            next += 1;
        }
        if next < request.workers {
            reasons.push(format!("{}: {}", host.name, room.limit));
        }
    }
    if next < request.workers {
        return Err(Unplaceable { wanted: request.workers, placed: next, reasons });
    }
    let cpus: usize = cluster.hosts.iter().map(|host| host.cpus.len()).sum();
    if request.cpus.is_none() && usize::try_from(request.workers).is_ok_and(|workers| workers > cpus) {
        placement.notes.push(format!("{} workers share {cpus} CPUs", request.workers));
    }
    Ok(placement)
}

struct Room {
    workers: u32,
    limit: String,
}

/// How many workers a host can take and what limits it, or why it takes none.
fn room(host: &Host, request: &Request) -> Result<Room, String> {
    if request.exclude.contains(&host.name) {
        return Err("excluded by spec.placement.exclude".to_owned());
    }
    let mut room = Room { workers: u32::MAX, limit: String::new() };
    let mut limit = |what: &str, have: u64, each: u64| {
        let workers = u32::try_from(have.checked_div(each).unwrap_or(u64::MAX)).unwrap_or(u32::MAX);
        if workers < room.workers {
            room = Room { workers, limit: format!("{have} {what}, {each} for each worker") };
        }
    };
    let count = |list: &[u32]| u64::try_from(list.len()).unwrap_or(u64::MAX);
    limit("CPUs", count(&host.cpus), request.cpus.unwrap_or(0).into());
    limit("bytes of memory", host.memory_bytes, request.memory_bytes.unwrap_or(0));
    limit("GPUs", count(&host.gpus), request.gpus.into());
    limit("RDMA NICs", host.nics.into(), request.nics.into());
    if room.workers == 0 { Err(room.limit) } else { Ok(room) }
}

/// CPUs of a host that are not given away, by NUMA node.
struct Free {
    nodes: Vec<(Option<u32>, Vec<u32>)>,
}

impl Free {
    fn of(host: &Host) -> Self {
        let mut nodes: Vec<(Option<u32>, Vec<u32>)> = host
            .numa
            .iter()
            .map(|(node, cpus)| {
                (Some(*node), cpus.iter().copied().filter(|cpu| host.cpus.contains(cpu)).collect())
            })
            .collect();
        if nodes.iter().map(|(_, cpus)| cpus.len()).sum::<usize>() != host.cpus.len() {
            nodes = vec![(None, host.cpus.clone())];
        }
        Self { nodes }
    }

    fn take(&mut self, wanted: Option<u32>) -> (Vec<u32>, Option<u32>) {
        let Some(wanted) = wanted.and_then(|wanted| usize::try_from(wanted).ok()) else {
            return (Vec::new(), None);
        };
        // The fullest node that still has enough keeps the others whole.
        let fitting = self.nodes.iter_mut().filter(|(_, cpus)| cpus.len() >= wanted);
        if let Some((node, cpus)) = fitting.min_by_key(|(_, cpus)| cpus.len()) {
            return (cpus.drain(..wanted).collect(), *node);
        }
        let mut taken = Vec::new();
        for (_, cpus) in &mut self.nodes {
            let missing = wanted.saturating_sub(taken.len()).min(cpus.len());
            taken.extend(cpus.drain(..missing));
        }
        (taken, None)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn host(name: &str, nodes: &[&[u32]]) -> Host {
        let numa: BTreeMap<u32, Vec<u32>> =
            (0..).zip(nodes).map(|(node, cpus)| (node, cpus.to_vec())).collect();
        let cpus = nodes.concat();
        Host { name: name.to_owned(), cpus, numa, memory_bytes: 100, gpus: Vec::new(), nics: 0 }
    }

    fn request(workers: u32, cpus: Option<u32>) -> Request {
        Request { workers, cpus, memory_bytes: None, gpus: 0, nics: 0, exclude: Vec::new() }
    }

    #[test]
    fn whole_cpus_come_from_one_node_where_one_has_enough() {
        let cluster = Cluster { hosts: vec![host("a", &[&[0, 1, 2], &[3, 4, 5]])] };
        let placed = place(&cluster, &request(3, Some(2))).unwrap();
        let cpus: Vec<_> = placed.workers.iter().map(|w| (w.cpus.clone(), w.numa_node)).collect();
        assert_eq!(cpus, [(vec![0, 1], Some(0)), (vec![3, 4], Some(1)), (vec![2, 5], None)]);
    }

    #[test]
    fn unbound_workers_share_and_the_plan_says_so() {
        let cluster = Cluster { hosts: vec![host("a", &[&[0, 1]])] };
        let placed = place(&cluster, &request(3, None)).unwrap();
        assert!(placed.workers.iter().all(|worker| worker.cpus.is_empty()));
        assert_eq!(placed.notes, ["3 workers share 2 CPUs"]);
    }

    #[test]
    fn all_or_none_with_a_reason_for_each_host() {
        let cluster = Cluster { hosts: vec![host("a", &[&[0, 1]]), host("b", &[&[0]])] };
        let mut wanted = request(3, Some(1));
        assert_eq!(place(&cluster, &wanted).unwrap().workers[2].host, "b");
        wanted.workers = 4;
        let refused = place(&cluster, &wanted).unwrap_err();
        assert_eq!(refused.placed, 3);
        assert_eq!(refused.reasons, ["a: 2 CPUs, 1 for each worker", "b: 1 CPUs, 1 for each worker"]);
        wanted = request(1, None);
        wanted.gpus = 1;
        wanted.exclude = vec!["b".to_owned()];
        assert_eq!(
            place(&cluster, &wanted).unwrap_err().reasons,
            ["a: 0 GPUs, 1 for each worker", "b: excluded by spec.placement.exclude"]
        );
        wanted = request(1, None);
        wanted.memory_bytes = Some(101);
        assert!(place(&cluster, &wanted).is_err());
    }
}
