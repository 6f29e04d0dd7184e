//! From nothing to a seated generation: launching, registering, pre-flight, seats.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::time::Duration;

use worker::rendezvous::message::{DataFacts, PreflightFault, Registration, ToWorker};
use worker::units::{Generation, WorkerId};

use crate::backend::CauseCode;

use super::adopt::Resumes;
use super::evidence::Cause;
use super::memory::{Outcome, Record};
use super::progress::Progress;
use super::seats::seats;
use super::servers::SentRoster;
use super::state::{Member, Presence, Present, Seat, State, World};
use super::{Action, Group, Now, millis};

/// How often a spare that dies while others run is launched again before the next generation.
const SPARE_RELAUNCHES_MAX: u32 = 3;

impl Group {
    pub(super) fn begin(&mut self, now: Now) {
        if !matches!(self.state, State::Pending) {
            return;
        }
        if self.generation == Generation(0) {
            return self.gather(now, Duration::ZERO);
        }
        // An earlier launcher got that far. It may have died between any two steps, so its last generation is
        // fenced (again) and everything that it started is swept before a new number is taken. Workers that outlive
        // it are told instead, each when it registers.
        if self.config.finds_workers {
            for (worker, member) in &mut self.members {
                member.presence = Presence::Launching { since: now.elapsed, pid: None };
                // A data server runs nothing that could be beside another generation.
                member.is_unknown = !self.servers.contains_key(worker);
            }
            if self.generation > self.fenced_before && self.seated_before == self.generation {
                return self.adopt(now);
            }
        }
        let fence = Record::Fence { generation: self.generation, cause: None, restart: false };
        let record = self.persist(fence);
        self.state = State::Clearing { record, is_swept: false };
    }

    pub(super) fn gather(&mut self, now: Now, backoff: Duration) {
        self.generation = self.generation.next();
        let record = self.persist(Record::Generation { generation: self.generation });
        self.state = State::Gathering {
            record,
            recorded: false,
            since: now.elapsed,
            not_before: now.elapsed.saturating_add(backoff),
            enough: None,
        };
        for member in self.members.values_mut() {
            member.relaunches = 0;
            if let Some(present) = member.present_mut() {
                present.ready = None;
                present.roster = 0;
            }
        }
    }

    pub(super) fn gathering_is_recorded(&mut self, now: Now) {
        let persisted = self.persisted;
        if let State::Gathering { record, recorded, .. } = &mut self.state
            && !*recorded
            && persisted >= *record
        {
            *recorded = true;
            self.launch_the_absent(now);
            self.launch_servers(now);
            for worker in self.members.keys().copied().collect::<Vec<_>>() {
                self.tell(worker, now.elapsed);
            }
            self.close_gathering(now);
        }
    }

    pub(super) fn launched(&mut self, worker: WorkerId, started: u32) {
        if let Some(Member { presence: Presence::Launching { pid, .. }, .. }) = self.members.get_mut(&worker)
        {
            *pid = Some(started);
        }
    }

    pub(super) fn leaving(&mut self, worker: WorkerId, leaving: u32) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        member.is_leaving |= match &member.presence {
            Presence::Present(present) => present.pid == leaving,
            Presence::Launching { pid, .. } => *pid == Some(leaving),
            Presence::Absent | Presence::Lost => false,
        };
    }

    pub(super) fn registered(&mut self, registration: Registration, now: Now) {
        let Registration { worker, incarnation, pid, host, data_address, running, data } = registration;
        let Some(member) = self.members.get_mut(&worker) else {
            return self.refuse(worker, incarnation, "this job has no worker of that number");
        };
        if member.is_retired(incarnation) {
            return self.refuse(worker, incarnation, "this process was given up and has been replaced");
        }
        match &mut member.presence {
            Presence::Present(present) if present.incarnation == incarnation => {
                present.heard = now.elapsed;
                present.heard_unix_ns = now.unix_ns;
                self.welcome(worker);
                return self.tell(worker, now.elapsed);
            }
            Presence::Launching { pid: Some(launched), .. } if *launched != pid => {
                return self.refuse(worker, incarnation, "another process was started for this worker");
            }
            Presence::Absent | Presence::Launching { .. } => {}
            Presence::Lost => {
                return self.refuse(worker, incarnation, "this worker was given up and is being replaced");
            }
            Presence::Present(_) => {
                // Which of the two is the older cannot be told: nothing of either may stay.
                self.lose(worker, Presence::Lost, "another process registered with its number", now);
                return self.refuse(worker, incarnation, "this worker has another process already");
            }
        }
        let resumes = self.resumes(worker, incarnation, &host.name, running);
        let serves = self.is_server(worker)
            && running.is_some()
            && running == self.world().map(|world| world.generation);
        let Some(member) = self.members.get_mut(&worker) else { return };
        member.is_unknown = false;
        member.presence = Presence::Present(Box::new(Present {
            incarnation,
            pid,
            host,
            data_address,
            data,
            heard: now.elapsed,
            heard_unix_ns: now.unix_ns,
            told: now.elapsed,
            ready: None,
            roster: 0,
            stale: running.filter(|_| resumes != Resumes::Yes && !serves),
        }));
        self.welcome(worker);
        if serves {
            self.server_resumes(worker, incarnation, now);
        }
        self.tell(worker, now.elapsed);
        if resumes == Resumes::No {
            self.does_not_resume(worker, now);
        }
        self.close_gathering(now);
    }

    fn welcome(&mut self, worker: WorkerId) {
        let timing = &self.config.timing;
        let welcome =
            ToWorker::Welcome { lease_ms: millis(timing.lease), heartbeat_ms: millis(timing.heartbeat) };
        self.send(worker, welcome);
    }

    fn refuse(&mut self, worker: WorkerId, incarnation: worker::units::Incarnation, reason: &str) {
        let message = ToWorker::Refuse { reason: reason.to_owned() };
        self.out.push(Action::Send { worker, incarnation, message });
    }

    pub(super) fn ready(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        faults: Vec<PreflightFault>,
        now: Now,
    ) {
        let is_asked =
            matches!(self.state, State::Gathering { recorded: true, .. } | State::Preflight { .. });
        let comes_later = self.is_server(worker) && self.world().is_some();
        if generation != self.generation || !is_asked && !comes_later {
            return;
        }
        if let Some(present) = self.members.get_mut(&worker).and_then(Member::present_mut) {
            present.ready = Some(faults);
        }
        if comes_later {
            return self.server_ready(worker, now);
        }
        self.close_preflight(now);
    }

    pub(super) fn tick_gathering(&mut self, now: Now) {
        let timing = self.config.timing;
        match &self.state {
            State::Gathering { since, not_before, .. } => {
                let begun = (*since).max(*not_before);
                if now.elapsed > begun.saturating_add(timing.gather) {
                    return self.give_up_gathering();
                }
                self.launch_the_absent(now);
                self.close_gathering(now);
            }
            State::Preflight { members, since } if now.elapsed > since.saturating_add(timing.start) => {
                let late = members.iter().copied().filter(|worker| !self.is_ready(*worker));
                for worker in late.collect::<Vec<_>>() {
                    self.lose(worker, Presence::Lost, "it did not check itself in time", now);
                }
            }
            State::Preflight { .. } => self.close_preflight(now),
            _ => {}
        }
    }

    fn give_up_gathering(&mut self) {
        let missing: Vec<String> = self
            .candidates()
            .filter(|(_, member)| !member.is_eligible())
            .map(|(worker, _)| worker.to_string())
            .collect();
        let mut cause = Cause::plain(
            CauseCode::GatherTimeout,
            self.generation,
            format!(
                "workers {} did not register within {} s",
                missing.join(", "),
                self.config.timing.gather.as_secs()
            ),
        );
        "look at the workers' own logs: `launcher job logs --system`".clone_into(&mut cause.hint);
        self.end(Outcome::Failed { cause: Box::new(cause) });
    }

    /// Launches every worker that has no process. Those that may have one are swept first. Not before the generation
    /// is on the disk: a later launcher must know that there is something to sweep.
    pub(super) fn launch_the_absent(&mut self, now: Now) {
        if let State::Gathering { recorded: false, .. } = self.state {
            return;
        }
        self.launch(&self.candidates().map(|(worker, _)| *worker).collect::<Vec<_>>(), now);
    }

    fn launch(&mut self, workers: &[WorkerId], now: Now) {
        let mut lost = Vec::new();
        for worker in workers {
            let Some(member) = self.members.get_mut(worker) else { continue };
            match member.presence {
                Presence::Absent if !member.is_given_up => {
                    member.presence = Presence::Launching { since: now.elapsed, pid: None };
                    self.out.push(Action::Launch { worker: *worker });
                }
                Presence::Lost if !member.is_being_swept => {
                    member.is_being_swept = true;
                    lost.push(*worker);
                }
                _ => {}
            }
        }
        if !lost.is_empty() {
            self.out.push(Action::Sweep { generation: self.generation, workers: lost });
        }
    }

    /// A spare is wanted again while the others run.
    pub(super) fn relaunch_spare(&mut self, worker: WorkerId, now: Now) {
        if let Some(member) = self.members.get_mut(&worker)
            && member.relaunches < SPARE_RELAUNCHES_MAX
        {
            member.relaunches += 1;
            self.launch(&[worker], now);
        }
    }

    /// A worker was lost before anything was active: it is launched again, on the restart budget. When that is used up
    /// the job goes on without it, if the others are enough.
    pub(super) fn lost_while_gathering(&mut self, worker: WorkerId, why: &str, now: Now) {
        let Some(backoff) = self.budget.spend(now.elapsed) else {
            if self.can_do_without(worker) {
                return match self.state {
                    State::Preflight { .. } => self.gather(now, Duration::ZERO),
                    _ => self.close_gathering(now),
                };
            }
            let mut cause = Cause::plain(
                CauseCode::WorkerLost,
                self.generation,
                format!("worker {worker} was lost before the job ran: {why}"),
            );
            cause.worker = Some(worker);
            cause.seen_unix_ns = now.unix_ns;
            "look at the worker's own log: `launcher job logs --system`".clone_into(&mut cause.hint);
            return self.end(Outcome::Failed { cause: Box::new(cause) });
        };
        if let State::Preflight { .. } = self.state {
            // Its members have been told the number, and one of them is another process now.
            return self.gather(now, backoff);
        }
        if let State::Gathering { not_before, .. } = &mut self.state {
            *not_before = now.elapsed.saturating_add(backoff).max(*not_before);
        }
        self.launch_the_absent(now);
    }

    /// Gives a worker up, if those that are here or on their way are enough without it.
    fn can_do_without(&mut self, worker: WorkerId) -> bool {
        let is_left = |member: &&Member| {
            !member.is_given_up && !matches!(member.presence, Presence::Absent | Presence::Lost)
        };
        let left = self.candidates().map(|(_, member)| member).filter(is_left).count();
        let is_enough = u32::try_from(left).is_ok_and(|left| left >= self.config.min_workers);
        if is_enough && let Some(member) = self.members.get_mut(&worker) {
            member.is_given_up = true;
        }
        is_enough
    }

    pub(super) fn close_gathering(&mut self, now: Now) {
        let present: BTreeSet<WorkerId> =
            self.candidates().filter(|(_, member)| member.is_eligible()).map(|(id, _)| *id).collect();
        let have = u32::try_from(present.len()).unwrap_or(u32::MAX);
        // What it runs would be beside the next generation.
        if self.members.values().any(|member| member.is_unknown) {
            return;
        }
        let hoped_for = self.candidates().filter(|(_, member)| !member.is_given_up).count();
        let State::Gathering { recorded: true, not_before, enough, .. } = &mut self.state else { return };
        if have < self.config.min_workers {
            *enough = None;
            return;
        }
        let called = enough.get_or_insert(now.elapsed).saturating_add(self.config.timing.last_call);
        let is_complete = present.len() >= hoped_for;
        let is_full_again = have >= self.config.workers && !self.seats.is_empty();
        if now.elapsed < *not_before || !(is_complete || is_full_again || now.elapsed >= called) {
            return;
        }
        self.state = State::Preflight { members: present, since: now.elapsed };
        self.close_preflight(now);
    }

    fn is_ready(&self, worker: WorkerId) -> bool {
        self.members.get(&worker).and_then(Member::present).is_some_and(|present| present.ready.is_some())
    }

    pub(super) fn close_preflight(&mut self, now: Now) {
        let State::Preflight { members, since } = &self.state else { return };
        if !members.iter().all(|worker| self.is_ready(*worker)) || self.awaits_servers(*since, now) {
            return;
        }
        let members = members.clone();
        let mut faults = Vec::new();
        for worker in &members {
            let ready = self.members.get(worker).and_then(Member::present).and_then(|p| p.ready.as_ref());
            faults.extend(ready.into_iter().flatten().map(|fault| (*worker, fault.clone())));
        }
        faults.extend(self.agree_on_data(&members));
        if faults.is_empty() {
            self.assign(&members, now);
        } else {
            let mut cause = Cause::preflight(self.generation, &faults);
            cause.seen_unix_ns = now.unix_ns;
            self.end(Outcome::Failed { cause: Box::new(cause) });
        }
    }

    /// All workers must have found the same data set, in this generation and in all before; faults name those that did
    /// not. What they agree on is written down.
    fn agree_on_data(&mut self, members: &BTreeSet<WorkerId>) -> Vec<(WorkerId, PreflightFault)> {
        let found = |worker: &WorkerId| Some((*worker, self.members.get(worker)?.present()?.data.clone()?));
        let found: Vec<(WorkerId, DataFacts)> = members.iter().filter_map(found).collect();
        let Some((_, first)) = found.first() else { return Vec::new() };
        let known = self.data.clone();
        let agreed = known.clone().unwrap_or_else(|| first.clone());
        let differs = |(worker, facts): &(WorkerId, DataFacts)| {
            let fault = PreflightFault {
                code: "data_differs".to_owned(),
                message: format!(
                    "the data set is {} here ({} samples), and {} for {}",
                    facts.digest,
                    facts.samples,
                    agreed.digest,
                    if known.is_some() { "the job so far" } else { "the first worker" }
                ),
                hint: "every worker must see the same shards, and they must not change while the job lasts"
                    .to_owned(),
            };
            (*worker, fault)
        };
        let faults: Vec<_> = found.iter().filter(|(_, facts)| *facts != agreed).map(differs).collect();
        if faults.is_empty() && known.is_none() {
            self.config.steps_per_epoch = NonZeroU64::new(agreed.steps_per_epoch);
            self.persist(Record::Data { data: agreed.clone() });
            self.data = Some(agreed);
        }
        faults
    }

    fn assign(&mut self, members: &BTreeSet<WorkerId>, now: Now) {
        let wanted = usize::try_from(self.config.workers).unwrap_or(usize::MAX);
        let replaced = self.members.iter().filter(|(_, member)| member.is_replaced);
        let replaced = replaced.map(|(worker, _)| *worker).collect();
        self.seats = seats(&self.seats, members, &replaced, wanted);
        for member in self.members.values_mut() {
            member.is_replaced = false;
        }
        let seats: Vec<Seat> = self
            .seats
            .iter()
            .filter_map(|worker| {
                let present = self.members.get(worker)?.present()?;
                let host = present.host.name.clone();
                Some(Seat { worker: *worker, incarnation: present.incarnation, host })
            })
            .collect();
        let ranks =
            u32::try_from(seats.len()).unwrap_or(u32::MAX).saturating_mul(self.config.ranks_per_worker);
        let servers: BTreeMap<_, _> = self.ready_servers().into_iter().collect();
        let begun: Vec<WorkerId> = self.seats.iter().chain(servers.keys()).copied().collect();
        let world = Box::new(World {
            generation: self.generation,
            seats,
            ranks_per_worker: self.config.ranks_per_worker,
            since: now.elapsed,
            master: None,
            started: BTreeSet::new(),
            servers,
            roster: 0,
            sent: SentRoster::default(),
            knows_servers: true,
            pids: BTreeMap::new(),
            exits: BTreeMap::new(),
            observed: Vec::new(),
            awaited: BTreeSet::new(),
            is_adopted: false,
            fenced: BTreeSet::new(),
            progress: Progress::new(ranks, self.config.steps_per_epoch, self.start.clone()),
        });
        self.persist(Record::Assigned { generation: self.generation, seats: self.seats.clone() });
        self.state = State::Assigned { world };
        for worker in begun {
            self.tell(worker, now.elapsed);
        }
    }
}
