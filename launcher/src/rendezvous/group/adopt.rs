//! Going on with a generation that an earlier launcher began, where workers outlive launchers.
//!
//! Nothing is fenced and nothing is told: each worker registers with the generation that it runs and says again what its
//! launcher may not have written down. When all have come, the generation runs on as if nothing had been. When one has
//! stopped it, or does not come in time, that is trouble like any other: the generation is fenced, and the next one starts
//! at the last commit, of which the others have told by then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use worker::rendezvous::message::{CauseKind, Evidence};
use worker::units::{Generation, Incarnation, WorkerId};

use super::progress::Progress;
use super::servers::SentRoster;
use super::state::{Seat, State, World};
use super::{Group, Now};

/// Stands for a process that has not been heard of yet.
const NOBODY: Incarnation = Incarnation(0);
/// Stands for a store's address that rank 0's worker is about to tell again.
const UNTOLD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// Whether a worker goes on with an adopted generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resumes {
    /// It runs it.
    Yes,
    /// It had a seat in it, and does not run it any more.
    No,
    /// Nothing of the kind is waited for.
    NotAsked,
}

impl Group {
    /// Takes the last generation over.
    pub(super) fn adopt(&mut self, now: Now) {
        let seat = |worker: &WorkerId| Seat { worker: *worker, incarnation: NOBODY, host: String::new() };
        let seats: Vec<Seat> = self.seats.iter().map(seat).collect();
        let ranks =
            u32::try_from(seats.len()).unwrap_or(u32::MAX).saturating_mul(self.config.ranks_per_worker);
        let world = World {
            generation: self.generation,
            awaited: self.seats.iter().copied().collect(),
            is_adopted: true,
            seats,
            ranks_per_worker: self.config.ranks_per_worker,
            since: now.elapsed,
            master: Some(UNTOLD),
            started: BTreeSet::new(),
            servers: BTreeMap::new(),
            roster: 0,
            sent: SentRoster::default(),
            knows_servers: self.servers.is_empty(),
            pids: BTreeMap::new(),
            exits: BTreeMap::new(),
            observed: Vec::new(),
            fenced: BTreeSet::new(),
            progress: Progress::adopted(ranks, self.config.steps_per_epoch, self.start.clone()),
        };
        self.state = State::Joining { world: Box::new(world) };
    }

    /// Gives a worker that registers its seat back, if it still runs what is being adopted.
    pub(super) fn resumes(
        &mut self,
        worker: WorkerId,
        incarnation: Incarnation,
        host: &str,
        running: Option<Generation>,
    ) -> Resumes {
        let (State::Joining { world } | State::Suspect { world, .. }) = &mut self.state else {
            return Resumes::NotAsked;
        };
        if !world.awaited.contains(&worker) {
            return Resumes::NotAsked;
        }
        world.awaited.remove(&worker);
        if let Some(seat) = world.seats.iter_mut().find(|seat| seat.worker == worker) {
            seat.incarnation = incarnation;
            host.clone_into(&mut seat.host);
        }
        if running != Some(world.generation) {
            // It has stopped by itself: there is nothing to fence.
            world.fenced.insert(worker);
            return Resumes::No;
        }
        Resumes::Yes
    }

    /// A worker came back without the generation that it had.
    pub(super) fn does_not_resume(&mut self, worker: WorkerId, now: Now) {
        let message = format!("worker {worker} had stopped its ranks when a new launcher took over");
        self.lose_adopted(worker, message, now);
    }

    /// Whether workers of an adopted generation are still given time to come back: within a lease they have found the new
    /// launcher or stopped their ranks. Whoever is fenced before has to be swept.
    pub(super) fn still_awaits(&self, world: &World, now: Now) -> bool {
        !world.awaited.is_empty() && now.elapsed <= world.since.saturating_add(self.config.timing.lease)
    }

    pub(super) fn tick_adopted(&mut self, now: Now) {
        self.settle_servers(now);
        let limit = self.config.timing.lease;
        let State::Joining { world } = &self.state else { return };
        let Some(worker) = world.awaited.first().copied() else { return };
        if !self.still_awaits(world, now) {
            let seconds = limit.as_secs();
            let message = format!("worker {worker} did not find the new launcher within {seconds} s");
            self.lose_adopted(worker, message, now);
        }
    }

    fn lose_adopted(&mut self, worker: WorkerId, message: String, now: Now) {
        let evidence = Evidence {
            rank: None,
            cause: CauseKind::WorkerLost,
            seen_unix_ns: now.unix_ns,
            message,
            hint: String::new(),
            log_tail: Vec::new(),
        };
        self.trouble(worker, self.generation, evidence, now);
    }
}
