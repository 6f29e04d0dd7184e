//! From a seated generation to its success or its first cause.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use worker::rendezvous::message::{CauseKind, Evidence, ExitStatus, RankProgress, ToWorker};
use worker::units::{Generation, Rank, WorkerId};

use crate::backend::CauseCode;

use super::evidence::{Cause, EVIDENCE_MAX, Observed, Verdict, first_cause, verdict};
use super::memory::{Outcome, Record};
use super::progress::{EarlyLeaver, Settled};
use super::state::{Member, Next, Presence, State, World};
use super::{Group, NO_PROCESS, Now};

/// A rank's end, as its worker tells it.
pub(super) struct Exit {
    pub(super) rank: Rank,
    pub(super) status: ExitStatus,
    pub(super) evidence: Option<Evidence>,
}

impl Group {
    /// The generation that may be active.
    pub(super) fn world(&self) -> Option<&World> {
        match &self.state {
            State::Assigned { world }
            | State::Joining { world }
            | State::Running { world }
            | State::Suspect { world, .. }
            | State::Fencing { world, .. } => Some(world),
            _ => None,
        }
    }

    fn world_mut(&mut self) -> Option<&mut World> {
        match &mut self.state {
            State::Assigned { world }
            | State::Joining { world }
            | State::Running { world }
            | State::Suspect { world, .. }
            | State::Fencing { world, .. } => Some(world),
            _ => None,
        }
    }

    /// The active generation, if it is `generation` and `worker` has a seat in it.
    fn seated(&mut self, worker: WorkerId, generation: Generation) -> Option<&mut World> {
        let world = self.world_mut()?;
        (world.generation == generation && world.seat(worker).is_some()).then_some(world)
    }

    pub(super) fn store_open(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        address: SocketAddr,
        now: Now,
    ) {
        if let State::Joining { world } | State::Running { world } = &mut self.state
            && world.is_adopted
            && world.generation == generation
            && world.group_rank(worker) == Some(0)
        {
            world.master = Some(address);
        }
        let State::Assigned { world } = &mut self.state else { return };
        if world.generation != generation || world.group_rank(worker) != Some(0) {
            return;
        }
        world.master = Some(address);
        let seats = world.seats.iter().map(|seat| seat.worker);
        let seats: Vec<WorkerId> = seats.chain(world.servers.keys().copied()).collect();
        if let State::Assigned { world } = std::mem::replace(&mut self.state, State::Pending) {
            self.state = State::Joining { world };
        }
        for seat in seats {
            if let Some(present) = self.members.get_mut(&seat).and_then(Member::present_mut) {
                present.told = now.elapsed;
            }
            self.send(seat, ToWorker::Start { generation, master: address });
        }
    }

    pub(super) fn started(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        pids: BTreeMap<Rank, u32>,
        now: Now,
    ) {
        if self.is_server(worker) && generation == self.generation {
            return self.server_started(worker, now);
        }
        let Some(world) = self.seated(worker, generation) else { return };
        if world.master.is_none() {
            return;
        }
        world.started.insert(worker);
        world.pids.extend(pids);
        let all = world.started.len() == world.seats.len();
        if all && matches!(self.state, State::Joining { .. }) {
            if let State::Joining { world } = std::mem::replace(&mut self.state, State::Pending) {
                self.state = State::Running { world };
            }
            self.finish_if_done(now);
        }
    }

    pub(super) fn progress(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        progress: &[RankProgress],
        now: Now,
    ) {
        self.take_progress(worker, generation, progress);
        self.find_early_leaver(now);
    }

    fn take_progress(&mut self, worker: WorkerId, generation: Generation, progress: &[RankProgress]) {
        let Some(world) = self.seated(worker, generation) else { return };
        for rank in progress {
            if world.owner(rank.rank).is_some_and(|seat| seat.worker == worker) {
                world.progress.take(rank);
            }
        }
        if progress.iter().any(|rank| !rank.reported.is_empty()) {
            let reported = world.progress.reported();
            self.reported.extend(reported);
        }
        // One at a time: a slow disk makes commits rarer, it does not queue them up.
        if self.commit_under_way.is_none() {
            self.record_commit();
        }
    }

    /// Writes the committed step down, if it moved since.
    pub(super) fn record_commit(&mut self) {
        let Some(world) = self.world() else { return };
        let (generation, committed) = (world.generation, world.progress.committed());
        let recorded = self.recorded_commit;
        if committed <= recorded {
            return;
        }
        let settled = world.progress.settled();
        let first = self.config.steps_per_epoch.map_or(0, |steps| recorded.0 / steps.get());
        let epochs = settled.epochs.range(first..).map(|(epoch, digest)| (*epoch, *digest)).collect();
        let record = Record::Commit {
            generation,
            committed,
            settled: Settled { totals: settled.totals, epochs },
            work: world.progress.work(),
        };
        self.commit_under_way = Some(self.persist(record));
        self.recorded_commit = committed;
    }

    /// Once a commit is on the disk the next one may be written.
    pub(super) fn commit_is_recorded(&mut self) {
        if self.commit_under_way.take_if(|record| *record <= self.persisted).is_some() {
            self.record_commit();
        }
    }

    pub(super) fn exited(&mut self, worker: WorkerId, generation: Generation, exit: Exit, now: Now) {
        let Exit { rank, status, evidence } = exit;
        let Some(world) = self.seated(worker, generation) else { return };
        let is_its_own = world.owner(rank).is_some_and(|seat| seat.worker == worker);
        if world.master.is_none() || !is_its_own || world.exits.contains_key(&rank) {
            return;
        }
        world.exits.insert(rank, status);
        if status.is_success() && evidence.is_none() {
            self.find_early_leaver(now);
            return self.finish_if_done(now);
        }
        let evidence = evidence.unwrap_or_else(|| unexplained(rank, status, now));
        self.trouble(worker, generation, evidence, now);
    }

    /// A rank that returned 0 while others go on with the data has lost its share of it, and nobody else would say so.
    fn find_early_leaver(&mut self, now: Now) {
        let (State::Joining { world } | State::Running { world }) = &self.state else { return };
        let exited = world.exits.iter().filter(|(_, status)| status.is_success()).map(|(rank, _)| *rank);
        let Some(leaver) = world.progress.early_leaver(exited) else { return };
        let Some(worker) = world.owner(leaver.rank).map(|seat| seat.worker) else { return };
        let EarlyLeaver { rank, left_at, others_at } = leaver;
        let generation = world.generation;
        let evidence = Evidence {
            rank: Some(rank),
            cause: CauseKind::Exception,
            seen_unix_ns: now.unix_ns,
            message: format!(
                "rank {rank} returned 0 at step {left_at}, before the end of its data, and others went on to step \
                 {others_at}: its share of the steps between is lost"
            ),
            hint:
                "every rank must go through the same steps; one that has nothing more to do stops when all do"
                    .to_owned(),
            log_tail: Vec::new(),
        };
        self.trouble(worker, generation, evidence, now);
    }

    pub(super) fn trouble(&mut self, worker: WorkerId, generation: Generation, evidence: Evidence, now: Now) {
        if self.is_server(worker) && generation == self.generation {
            return self.server_lost(worker, &evidence.message, now);
        }
        let Some(world) = self.seated(worker, generation) else { return };
        // In `Fencing` the cause is known, and what is seen now is our own doing.
        let observed = Observed { worker, evidence };
        if world.observed.len() < EVIDENCE_MAX && !world.observed.contains(&observed) {
            world.observed.push(observed);
        }
        self.suspect(now);
    }

    fn suspect(&mut self, now: Now) {
        let until = now.elapsed.saturating_add(self.config.timing.suspect);
        self.state = match std::mem::replace(&mut self.state, State::Pending) {
            State::Assigned { world } | State::Joining { world } | State::Running { world } => {
                State::Suspect { world, until }
            }
            other => other,
        };
        self.decide_if_due(now);
    }

    fn finish_if_done(&mut self, now: Now) {
        if !matches!(self.state, State::Joining { .. } | State::Running { .. }) {
            return;
        }
        if self.world().is_some_and(World::all_exited_well) {
            self.end(Outcome::Succeeded);
        } else {
            self.decide_if_due(now);
        }
    }

    pub(super) fn tick_running(&mut self, now: Now) {
        self.tick_adopted(now);
        let limit = self.config.timing.start;
        if let State::Assigned { world } | State::Joining { world } = &self.state
            && now.elapsed > world.since.saturating_add(limit)
        {
            let late = world.seats.iter().find(|seat| !world.started.contains(&seat.worker));
            let Some(worker) = late.map(|seat| seat.worker) else { return };
            let message = format!("worker {worker} did not start its ranks within {} s", limit.as_secs());
            let generation = world.generation;
            self.trouble(worker, generation, of_worker(CauseKind::Hang, now.unix_ns, message), now);
        }
        self.decide_if_due(now);
    }

    /// Ends the search for evidence when its time is over, or nobody is left who could give any.
    fn decide_if_due(&mut self, now: Now) {
        let State::Suspect { world, until } = &self.state else { return };
        let is_quiet = world.seats.iter().enumerate().all(|(group_rank, seat)| {
            let is_here = self
                .members
                .get(&seat.worker)
                .and_then(Member::present)
                .is_some_and(|present| present.incarnation == seat.incarnation);
            let ranks = world.ranks(u32::try_from(group_rank).unwrap_or(u32::MAX));
            !is_here || ranks.iter().all(|rank| world.exits.contains_key(rank))
        });
        if now.elapsed < *until && !is_quiet || self.still_awaits(world, now) {
            return;
        }
        let cause = self.cause_of(world, now);
        let next = match verdict(&cause, self.last_cause.as_ref()) {
            Verdict::Fatal => None,
            Verdict::Restart => self.budget.spend(now.elapsed),
        };
        let next = match next {
            Some(backoff) => Next::Restart { backoff },
            None => Next::End(Outcome::Failed { cause: Box::new(cause.clone()) }),
        };
        self.fence(Some(cause), next);
    }

    fn cause_of(&self, world: &World, now: Now) -> Cause {
        let Some(first) = first_cause(&world.observed) else {
            // A worker that ends its ranks although we have not told it to is leaving: that is what happened.
            let leaving = world.observed.first().map(|observed| observed.worker);
            let (code, message) = match leaving {
                Some(worker) => {
                    (CauseCode::WorkerLost, format!("worker {worker} ended its ranks on its own"))
                }
                None => (CauseCode::Internal, "ranks ended and nobody can say why".to_owned()),
            };
            let mut cause = Cause::plain(code, world.generation, message);
            cause.worker = leaving;
            cause.seen_unix_ns = now.unix_ns;
            return cause;
        };
        let evidence = &first.evidence;
        Cause {
            code: evidence.cause.into(),
            generation: world.generation,
            worker: Some(first.worker),
            rank: evidence.rank,
            step: self.config.steps_per_epoch.map(|_| world.progress.step()),
            seen_unix_ns: evidence.seen_unix_ns,
            message: evidence.message.clone(),
            hint: evidence.hint.clone(),
            exit: evidence.rank.and_then(|rank| world.exits.get(&rank).copied()),
            log_tail: evidence.log_tail.clone(),
        }
    }

    pub(super) fn gone(&mut self, worker: WorkerId, pid: u32, how: &str, now: Now) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        let is_this_one = match &member.presence {
            Presence::Present(present) => present.pid == pid,
            Presence::Launching { pid: launched, .. } => *launched == Some(pid) || pid == NO_PROCESS,
            Presence::Absent | Presence::Lost => false,
        };
        if is_this_one {
            self.lose(worker, Presence::Absent, how, now);
            self.end_if_all_gone();
        }
    }

    /// A worker is lost; what that means depends on what it was needed for.
    pub(super) fn lose(&mut self, worker: WorkerId, left: Presence, why: &str, now: Now) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        // When it fell silent is when it was lost, not when we noticed; a process's end is noticed at once.
        let silent_since = match (&left, member.present()) {
            (Presence::Lost, Some(present)) => present.heard_unix_ns,
            _ => now.unix_ns,
        };
        let incarnation = member.present().map(|present| present.incarnation);
        member.is_unknown &= !matches!(left, Presence::Absent);
        member.leave(left);
        if let Some(counters) = self.counters.remove(&worker) {
            self.counters_of_the_gone += counters;
            if self.is_server(worker) {
                self.server_counters_of_the_gone += counters;
            }
        }
        if self.is_server(worker) {
            return self.server_lost(worker, why, now);
        }
        match &self.state {
            State::Gathering { .. } | State::Preflight { .. } => self.lost_while_gathering(worker, why, now),
            State::Assigned { world }
            | State::Joining { world }
            | State::Running { world }
            | State::Suspect { world, .. } => {
                let generation = world.generation;
                let is_seated = world.awaited.contains(&worker)
                    || world.seat(worker).is_some_and(|seat| Some(seat.incarnation) == incarnation);
                if !is_seated {
                    return self.relaunch_spare(worker, now);
                }
                let message = format!("worker {worker} was lost: {why}");
                let evidence = of_worker(CauseKind::WorkerLost, silent_since, message);
                self.trouble(worker, generation, evidence, now);
            }
            State::Fencing { .. } => self.lost_while_fencing(worker, now),
            State::Pending | State::Clearing { .. } | State::Ending { .. } | State::Over(_) => {}
        }
    }

    pub(super) fn expire_leases(&mut self, now: Now) {
        let timing = self.config.timing;
        let mut silent = Vec::new();
        for (worker, member) in &self.members {
            match &member.presence {
                Presence::Present(present) if now.elapsed > present.heard.saturating_add(timing.lease) => {
                    let quiet = timing.lease.as_secs_f32();
                    silent.push((*worker, format!("it has not been heard of for {quiet:.1} s")));
                }
                Presence::Launching { since, .. } if now.elapsed > since.saturating_add(timing.launch) => {
                    let limit = timing.launch.as_secs();
                    silent.push((*worker, format!("its process did not register within {limit} s")));
                }
                _ => {}
            }
        }
        for (worker, why) in silent {
            self.lose(worker, Presence::Lost, &why, now);
        }
    }
}

fn of_worker(cause: CauseKind, seen_unix_ns: u64, message: String) -> Evidence {
    Evidence { rank: None, cause, seen_unix_ns, message, hint: String::new(), log_tail: Vec::new() }
}

fn unexplained(rank: Rank, status: ExitStatus, now: Now) -> Evidence {
    let (cause, message) = match status {
        ExitStatus::Code { code } => (CauseKind::Exception, format!("rank {rank} exited with code {code}")),
        ExitStatus::Signal { signal } => {
            (CauseKind::Signal, format!("rank {rank} was ended by signal {signal}"))
        }
    };
    Evidence {
        rank: Some(rank),
        cause,
        seen_unix_ns: now.unix_ns,
        message,
        hint: String::new(),
        log_tail: Vec::new(),
    }
}
