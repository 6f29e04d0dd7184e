//! From how many workers a host takes to each worker's NUMA node and CPUs (pure).

use super::admit::View;
use super::choose::{Number, Take, pack, spread};
use super::room::{Ask, is_whole, node_room, together};
use super::{PlacedWorker, Request};
use crate::job::spec::Strategy;
use crate::topology::{Cluster, Host};

/// Where on its host a worker is.
type Seat = (Option<u32>, Vec<u32>);

/// Every worker's place, in the order of the request; the takes are in the order of the fabric.
pub(super) fn seat(cluster: &Cluster, request: &Request, ask: &Ask<'_>, takes: &[Take]) -> Vec<PlacedWorker> {
    let mut gang = Vec::new();
    let mut spares = Vec::new();
    for take in takes {
        let Some(host) = cluster.hosts.get(take.slot.host) else { continue };
        let (seated, spare) = on_host(host, ask, request.strategy, take.number);
        gang.extend(seated.into_iter().map(|seat| (host, seat)));
        spares.extend(spare.into_iter().map(|seat| (host, seat)));
    }
    let seats = gang.into_iter().chain(spares);
    let placed = request.workers.iter().zip(seats).map(|(worker, (host, (numa_node, cpus)))| PlacedWorker {
        worker: *worker,
        host: host.name.clone(),
        cpus,
        numa_node,
    });
    placed.collect()
}

/// The seats of the gang and of the spares on one host.
fn on_host(host: &Host, ask: &Ask<'_>, strategy: Strategy, number: Number) -> (Vec<Seat>, Vec<Seat>) {
    let together = together(host, ask).unwrap_or_default();
    let mut cpus = Cpus::of(host, ask);
    if !together.any() {
        let mut seats = |number: u32| (0..number).map(|_| cpus.take_anywhere(ask.cpus)).collect();
        return (seats(number.gang), seats(number.spares));
    }
    let mut nodes: Vec<_> = host.numa.iter().collect();
    // Of nodes with the same room, one that is in use already goes first: the others stay whole.
    nodes.sort_by_key(|node| (is_whole(node, ask), node.id));
    let rooms: Vec<u32> = nodes
        .iter()
        .map(|node| u32::try_from(node_room(host, node, ask, together, View::Now)).unwrap_or(u32::MAX))
        .collect();
    let distribute = |rooms: &[u32], bases: &[u32], number| match strategy {
        Strategy::Pack => pack(rooms, number),
        Strategy::Spread => spread(rooms, bases, number),
    };
    let gang = distribute(&rooms, &vec![0; rooms.len()], number.gang);
    let left: Vec<u32> = rooms.iter().zip(&gang).map(|(room, taken)| room - taken).collect();
    let spares = distribute(&left, &gang, number.spares);
    let mut seats = |shares: Vec<u32>| {
        let mut shares: Vec<(u32, u32)> = nodes.iter().map(|node| node.id).zip(shares).collect();
        shares.sort_unstable();
        let mut seats = Vec::new();
        for (node, share) in shares {
            seats.extend((0..share).map(|_| (Some(node), cpus.take_on(node, ask.cpus))));
        }
        seats
    };
    (seats(gang), seats(spares))
}

/// CPUs of a host that are not given away, by NUMA node, where they are known by number.
struct Cpus {
    nodes: Vec<(Option<u32>, Vec<u32>)>,
}

impl Cpus {
    fn of(host: &Host, ask: &Ask<'_>) -> Self {
        if host.cpus.is_empty() || ask.cpus == 0 {
            return Self { nodes: Vec::new() };
        }
        let mut nodes: Vec<(Option<u32>, Vec<u32>)> =
            host.numa.iter().map(|node| (Some(node.id), node.cpus.clone())).collect();
        if nodes.iter().map(|(_, cpus)| cpus.len()).sum::<usize>() != host.cpus.len() {
            nodes = vec![(None, host.cpus.clone())];
        }
        Self { nodes }
    }

    fn take_on(&mut self, node: u32, wanted: u64) -> Vec<u32> {
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let cpus = self.nodes.iter_mut().find(|(id, _)| *id == Some(node));
        cpus.map(|(_, cpus)| cpus.drain(..wanted.min(cpus.len())).collect()).unwrap_or_default()
    }

    /// From one node where one has enough, and else from all of them.
    fn take_anywhere(&mut self, wanted: u64) -> Seat {
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        if self.nodes.is_empty() {
            return (None, Vec::new());
        }
        // The fullest node that still has enough keeps the others whole.
        let fitting = self.nodes.iter_mut().filter(|(_, cpus)| cpus.len() >= wanted);
        if let Some((node, cpus)) = fitting.min_by_key(|(_, cpus)| cpus.len()) {
            return (*node, cpus.drain(..wanted).collect());
        }
        let mut taken = Vec::new();
        for (_, cpus) in &mut self.nodes {
            let missing = wanted.saturating_sub(taken.len()).min(cpus.len());
            taken.extend(cpus.drain(..missing));
        }
        (None, taken)
    }
}
