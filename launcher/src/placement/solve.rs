//! The way from a cluster and a request to a placement or a refusal (pure).

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::admit::{Fence, View, admit, fence};
use super::choose::{self, Area, Chosen, Number, Slot, Wanted, choose};
use super::explain::reasons;
use super::names::{Names, candidates};
use super::notes::notes;
use super::order::{by_fabric, same_rack_order};
use super::room::{Ask, room, whole_nodes};
use super::seat::seat;
use super::{Placement, Request, Unplaceable};
use crate::job::spec::Rack;
use crate::topology::{Cluster, Host};

/// See [`super::place`].
pub(super) fn place(cluster: &Cluster, request: &Request) -> Result<Placement, Unplaceable> {
    let wanted = u32::try_from(request.workers.len()).unwrap_or(u32::MAX);
    if wanted == 0 {
        return Ok(Placement::default());
    }
    let fence = fence(cluster, request)?;
    let names = candidates(cluster, request).map_err(|reasons| Unplaceable {
        wanted,
        placed: 0,
        reasons,
        never: true,
    })?;
    let gang = request.seated.min(wanted);
    let number = Number { gang, spares: wanted - gang };
    let hosts = Hosts::of(cluster, request);
    let open = hosts.open(request, fence, View::Now);
    let mut best: Option<(Chosen, Ask<'_>)> = None;
    let mut nearest: Option<(u64, Ask<'_>)> = None;
    for names in &names {
        let ask = Ask::new(request, *names);
        let slots = hosts.slots(&open, &ask, View::Now);
        if let Some(chosen) = choose(&slots, of(request), number) {
            if best.as_ref().is_none_or(|(found, _)| chosen.cost < found.cost) {
                best = Some((chosen, ask));
            }
        } else {
            let room = choose::room(&slots, of(request));
            if nearest.as_ref().is_none_or(|(most, _)| room > *most) {
                nearest = Some((room, ask));
            }
        }
    }
    let Some((mut chosen, ask)) = best else {
        let (room, ask) = nearest.unwrap_or_else(|| (0, Ask::new(request, Names::default())));
        let tried = names.len();
        let placed = u32::try_from(room).unwrap_or(u32::MAX);
        let mut lines = summary(cluster, request, placed, &ask, tried);
        lines.extend(reasons(cluster, request, &ask, fence));
        let never = !fits_empty(&hosts, request, fence, &names);
        return Err(Unplaceable { wanted, placed, reasons: lines, never });
    };
    chosen.takes.sort_by_key(|take| take.slot.position);
    Ok(Placement {
        workers: seat(cluster, request, &ask, &chosen.takes),
        gpu_name: ask.names.gpu.map(str::to_owned),
        nic_name: ask.names.nic.map(str::to_owned),
        notes: notes(cluster, request, &ask, &chosen.takes),
    })
}

fn of(request: &Request) -> Wanted {
    Wanted { strategy: request.strategy, block: request.block, rack: request.rack }
}

/// Whether all would fit if nothing else ran and no host were closed.
fn fits_empty(hosts: &Hosts<'_>, request: &Request, fence: Fence<'_>, names: &[Names<'_>]) -> bool {
    let wanted = u64::try_from(request.workers.len()).unwrap_or(u64::MAX);
    let open = hosts.open(request, fence, View::Empty);
    names.iter().any(|names| {
        let slots = hosts.slots(&open, &Ask::new(request, *names), View::Empty);
        choose::room(&slots, of(request)) >= wanted
    })
}

/// What is true of the cluster as a whole, before the hosts' own reasons.
fn summary(cluster: &Cluster, request: &Request, placed: u32, ask: &Ask<'_>, tried: usize) -> Vec<String> {
    let mut lines = Vec::new();
    if cluster.hosts.is_empty() {
        lines.push("the cluster has no hosts".to_owned());
        return lines;
    }
    let level = match (request.rack, request.block) {
        (Rack::Required, _) => Some("rack"),
        (_, Rack::Required) => Some("block"),
        _ => None,
    };
    if let Some(level) = level {
        let wanted = request.workers.len();
        lines.push(format!(
            "no {level} has room for {wanted} workers: the most that one has room for is {placed}"
        ));
    }
    if tried > 1 {
        let names: Vec<&str> = [ask.names.gpu, ask.names.nic].into_iter().flatten().collect();
        lines.push(format!(
            "{tried} ways to ask for devices were tried, all workers use the same; what follows is about {}",
            names.join(" with ")
        ));
    }
    lines
}

/// The hosts of a cluster, in the order of the fabric.
struct Hosts<'a> {
    sorted: Vec<Place<'a>>,
}

struct Place<'a> {
    index: usize,
    position: u32,
    host: &'a Host,
    block: Area,
    rack: Area,
    /// Workers of the job that are there.
    used: u32,
}

impl<'a> Hosts<'a> {
    fn of(cluster: &'a Cluster, request: &Request) -> Self {
        let mut used: BTreeMap<&str, u32> = BTreeMap::new();
        for host in request.placed.values() {
            *used.entry(host).or_default() += 1;
        }
        let mut hosts: Vec<(usize, &Host)> = cluster.hosts.iter().enumerate().collect();
        hosts.sort_by(|(_, a), (_, b)| by_fabric(a, b));
        let mut sorted: Vec<Place<'a>> = Vec::with_capacity(hosts.len());
        for (position, (index, host)) in (0_u32..).zip(hosts) {
            let (mut block, mut rack) = (0, 0);
            if let Some(last) = sorted.last() {
                let with = &last.host.fabric;
                block = last.block.number + u32::from(with.block != host.fabric.block);
                rack = last.rack.number + u32::from(same_rack_order(with, &host.fabric) != Ordering::Equal);
            }
            sorted.push(Place {
                index,
                position,
                host,
                block: Area { number: block, is_known: host.fabric.block.is_some(), is_used: false },
                rack: Area { number: rack, is_known: host.fabric.rack.is_some(), is_used: false },
                used: used.get(host.name.as_str()).copied().unwrap_or(0),
            });
        }
        let here = |place: &&Place<'_>| place.used > 0;
        let blocks: BTreeSet<u32> = sorted.iter().filter(here).map(|place| place.block.number).collect();
        let racks: BTreeSet<u32> = sorted.iter().filter(here).map(|place| place.rack.number).collect();
        for place in &mut sorted {
            place.block.is_used = blocks.contains(&place.block.number);
            place.rack.is_used = racks.contains(&place.rack.number);
        }
        Self { sorted }
    }

    /// Those that may be used, and whether only where no other host will do.
    fn open(&self, request: &Request, fence: Fence<'_>, view: View) -> Vec<(&Place<'a>, bool)> {
        let admitted = self
            .sorted
            .iter()
            .filter_map(|place| admit(place.host, request, fence, view).ok().map(|is_late| (place, is_late)));
        admitted.collect()
    }

    /// Those that have room.
    fn slots(&self, open: &[(&Place<'a>, bool)], ask: &Ask<'_>, view: View) -> Vec<Slot> {
        let slots = open.iter().filter_map(|(place, is_late)| {
            // What the job's own workers take is gone from what is free; from what there is, they take it for good.
            let taken = if view == View::Empty { place.used } else { 0 };
            let room = room(place.host, ask, view).saturating_sub(taken);
            (room > 0).then(|| Slot {
                host: place.index,
                position: place.position,
                room,
                used: place.used,
                whole_nodes: whole_nodes(place.host, ask),
                is_late: *is_late,
                block: place.block,
                rack: place.rack,
            })
        });
        slots.collect()
    }
}
