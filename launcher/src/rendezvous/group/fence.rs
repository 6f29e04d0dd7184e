//! The end of a generation, and of the job: first on the disk, then everywhere, and only then what follows.

use std::collections::BTreeSet;
use std::time::Duration;

use worker::rendezvous::message::ToWorker;
use worker::units::{Generation, WorkerId};

use super::evidence::Cause;
use super::memory::{Outcome, Record};
use super::state::{EndStage, FenceStage, Member, Next, Presence, State, World};
use super::{Action, Group, Now};

impl Group {
    /// Begins to end the active generation.
    pub(super) fn fence(&mut self, cause: Option<Cause>, then: Next) {
        self.record_commit();
        let (State::Assigned { world }
        | State::Joining { world }
        | State::Running { world }
        | State::Suspect { world, .. }) = std::mem::replace(&mut self.state, State::Pending)
        else {
            return;
        };
        let restart = matches!(then, Next::Restart { .. });
        if let (Some(cause), Next::Restart { backoff }) = (&cause, &then) {
            self.restarts += 1;
            self.out.push(Action::Restarting { cause: Box::new(cause.clone()), backoff: *backoff });
        }
        if cause.is_some() {
            self.last_cause.clone_from(&cause);
        }
        let cause = cause.map(Box::new);
        let record = self.persist(Record::Fence { generation: world.generation, cause, restart });
        self.state = State::Fencing { world, then, stage: FenceStage::Recording(record) };
    }

    pub(super) fn fence_is_recorded(&mut self, now: Now) {
        match &mut self.state {
            State::Clearing { record, .. } if *record <= self.persisted && self.config.finds_workers => {
                return self.gather(now, Duration::ZERO);
            }
            State::Clearing { record, is_swept } if *record <= self.persisted && !*is_swept => {
                *is_swept = true;
                let workers = self.members.keys().copied().collect();
                self.out.push(Action::Sweep { generation: self.generation, workers });
            }
            _ => {}
        }
        match &self.state {
            State::Fencing { world, stage: FenceStage::Recording(record), .. }
                if *record <= self.persisted =>
            {
                let (waiting, lost) = self.reachable(world);
                let deadline = self.stop_deadline(now.elapsed);
                let message = self.fence_message(world.generation);
                // Data servers are not waited for: nothing of theirs runs on, and the next generation ends this one there, too.
                let servers: Vec<WorkerId> = world.servers.keys().copied().collect();
                for worker in waiting.iter().chain(&servers) {
                    self.send(*worker, message.clone());
                }
                self.set_stage(FenceStage::Stopping { waiting, lost, deadline });
                self.advance_fence(now);
            }
            State::Ending { stage: EndStage::Recording(record), .. } if *record <= self.persisted => {
                let deadline = now.elapsed.saturating_add(self.config.timing.stop_margin);
                for worker in self.members.keys().copied().collect::<Vec<_>>() {
                    self.send(worker, ToWorker::Finish);
                }
                self.set_end_stage(EndStage::Finishing { deadline });
                self.end_if_all_gone();
            }
            _ => {}
        }
    }

    /// Those that can be told to stop and have not stopped by themselves, and those that cannot be told.
    fn reachable(&self, world: &World) -> (BTreeSet<WorkerId>, BTreeSet<WorkerId>) {
        let mut waiting = BTreeSet::new();
        let mut lost = BTreeSet::new();
        for seat in &world.seats {
            let present = self.members.get(&seat.worker).and_then(Member::present);
            if present.is_none_or(|present| present.incarnation != seat.incarnation) {
                lost.insert(seat.worker);
            } else if !world.fenced.contains(&seat.worker) {
                waiting.insert(seat.worker);
            }
        }
        (waiting, lost)
    }

    fn stop_deadline(&self, now: Duration) -> Duration {
        now.saturating_add(self.stop_grace).saturating_add(self.config.timing.stop_margin)
    }

    fn set_stage(&mut self, new: FenceStage) {
        if let State::Fencing { stage, .. } = &mut self.state {
            *stage = new;
        }
    }

    fn set_end_stage(&mut self, new: EndStage) {
        if let State::Ending { stage, .. } = &mut self.state {
            *stage = new;
        }
    }

    /// A worker says that nothing of `generation` is left on it.
    pub(super) fn fenced(&mut self, worker: WorkerId, generation: Generation, now: Now) {
        if let Some(present) = self.members.get_mut(&worker).and_then(Member::present_mut)
            && present.stale == Some(generation)
        {
            present.stale = None;
            self.tell(worker, now.elapsed);
            return self.close_gathering(now);
        }
        if generation != self.generation {
            return;
        }
        if self.is_server(worker) {
            // It was told to, and nothing is wrong with it.
            if matches!(self.state, State::Fencing { .. }) {
                return;
            }
            // It thought that we were lost: it is in no more of this generation.
            return self.server_lost(worker, "it lost its connection", now);
        }
        match &mut self.state {
            State::Fencing { stage: FenceStage::Stopping { waiting, .. }, .. } => {
                waiting.remove(&worker);
                self.advance_fence(now);
            }
            State::Fencing { world, stage: FenceStage::Recording(_), .. }
            | State::Assigned { world }
            | State::Joining { world }
            | State::Running { world }
            | State::Suspect { world, .. }
                if world.seat(worker).is_some() =>
            {
                // It stopped by itself, so it thought that we were lost: it cannot go on in this generation.
                world.fenced.insert(worker);
                if !matches!(self.state, State::Fencing { .. }) {
                    self.stopped_by_itself(worker, generation, now);
                }
            }
            _ => {}
        }
    }

    fn stopped_by_itself(&mut self, worker: WorkerId, generation: Generation, now: Now) {
        let evidence = worker::rendezvous::message::Evidence {
            rank: None,
            cause: worker::rendezvous::message::CauseKind::WorkerLost,
            seen_unix_ns: now.unix_ns,
            message: format!("worker {worker} lost its connection and stopped its ranks"),
            hint: String::new(),
            log_tail: Vec::new(),
        };
        self.trouble(worker, generation, evidence, now);
    }

    pub(super) fn lost_while_fencing(&mut self, worker: WorkerId, now: Now) {
        if let State::Fencing { stage: FenceStage::Stopping { waiting, lost, .. }, .. } = &mut self.state
            && waiting.remove(&worker)
        {
            lost.insert(worker);
            self.advance_fence(now);
        }
    }

    fn advance_fence(&mut self, now: Now) {
        let State::Fencing { world, stage, .. } = &mut self.state else { return };
        match stage {
            FenceStage::Recording(_) => {}
            FenceStage::Stopping { waiting, .. } if !waiting.is_empty() => {}
            FenceStage::Stopping { lost, .. } if !lost.is_empty() => {
                let left = std::mem::take(lost);
                let generation = world.generation;
                let workers: Vec<WorkerId> = left.iter().copied().collect();
                for worker in &workers {
                    if let Some(member) = self.members.get_mut(worker) {
                        member.is_being_swept = true;
                    }
                }
                self.out.push(Action::Sweep { generation, workers });
                self.set_stage(FenceStage::Sweeping { left });
            }
            FenceStage::Sweeping { left } if !left.is_empty() => {}
            FenceStage::Stopping { .. } | FenceStage::Sweeping { .. } => self.fence_is_complete(now),
        }
    }

    fn fence_is_complete(&mut self, now: Now) {
        // What ranks saved while they were stopping.
        self.record_commit();
        let State::Fencing { world, then, .. } = &self.state else { return };
        let then = then.clone();
        match then {
            Next::Restart { backoff } => {
                self.start = world.progress.restart();
                for member in self.members.values_mut() {
                    member.is_given_up = false;
                }
                self.gather(now, backoff);
            }
            Next::End(outcome) => self.end(outcome),
        }
    }

    /// Writes the job's end down, then tells everybody.
    pub(super) fn end(&mut self, outcome: Outcome) {
        self.record_commit();
        if let Outcome::Failed { cause } = &outcome {
            self.last_cause = Some(Cause::clone(cause));
        }
        // The summary and the ranks are the last generation's, so they are kept before that is left.
        let summary = self.summary();
        self.last_ranks = self.ranks();
        self.last_servers = self.servers();
        // They end now, and whoever looks later finds none.
        self.last_servers.iter_mut().for_each(|server| server.pid = None);
        self.ended = Some(summary.clone());
        let record = self.persist(Record::End { outcome: outcome.clone(), summary: Box::new(summary) });
        self.state = State::Ending { outcome, stage: EndStage::Recording(record) };
    }

    pub(super) fn end_if_all_gone(&mut self) {
        let State::Ending { stage: EndStage::Finishing { .. }, .. } = &self.state else { return };
        if self.members.values().all(|member| matches!(member.presence, Presence::Absent)) {
            self.sweep_everything();
        }
    }

    fn sweep_everything(&mut self) {
        let left: BTreeSet<WorkerId> = self.members.keys().copied().collect();
        let workers = left.iter().copied().collect();
        self.set_end_stage(EndStage::Sweeping { left });
        self.out.push(Action::Sweep { generation: self.generation, workers });
    }

    pub(super) fn swept(&mut self, generation: Generation, workers: &[WorkerId], now: Now) {
        for worker in workers {
            let Some(member) = self.members.get_mut(worker) else { continue };
            member.is_being_swept = false;
            member.is_unknown = false;
            member.leave(Presence::Absent);
        }
        if let Some(world) = self.world()
            && !matches!(self.state, State::Fencing { .. })
        {
            // Only a spare can be lost while the others run on.
            let is_spare = |worker: &&WorkerId| world.seat(**worker).is_none() && !self.is_server(**worker);
            let spares = workers.iter().filter(is_spare);
            for worker in spares.copied().collect::<Vec<_>>() {
                self.relaunch_spare(worker, now);
            }
            return;
        }
        let is_of_now = generation == self.generation;
        match &mut self.state {
            State::Gathering { .. } => self.launch_the_absent(now),
            _ if !is_of_now => {}
            State::Clearing { .. } => self.gather(now, Duration::ZERO),
            State::Fencing { stage: FenceStage::Sweeping { left }, .. } => {
                left.retain(|worker| !workers.contains(worker));
                self.advance_fence(now);
            }
            State::Ending { outcome, stage: EndStage::Sweeping { left } } => {
                left.retain(|worker| !workers.contains(worker));
                if left.is_empty() {
                    let outcome = outcome.clone();
                    self.state = State::Over(outcome.clone());
                    self.out.push(Action::Done(outcome));
                }
            }
            _ => {}
        }
    }

    pub(super) fn cancel(&mut self, at_once: bool, now: Now) {
        if at_once {
            self.stop_grace = Duration::ZERO;
        }
        match &mut self.state {
            State::Pending | State::Clearing { .. } | State::Gathering { .. } | State::Preflight { .. } => {
                self.end(Outcome::Cancelled);
            }
            State::Assigned { .. }
            | State::Joining { .. }
            | State::Running { .. }
            | State::Suspect { .. } => {
                self.fence(None, Next::End(Outcome::Cancelled));
            }
            State::Fencing { then, stage, .. } => {
                if let Next::Restart { .. } = then {
                    *then = Next::End(Outcome::Cancelled);
                }
                if let FenceStage::Stopping { deadline, .. } = stage
                    && at_once
                {
                    *deadline = now.elapsed;
                    self.tick_fencing(now);
                }
            }
            State::Ending { stage, .. } => {
                if let EndStage::Finishing { deadline } = stage
                    && at_once
                {
                    *deadline = now.elapsed;
                    self.tick_fencing(now);
                }
            }
            State::Over(_) => {}
        }
    }

    pub(super) fn tick_fencing(&mut self, now: Now) {
        match &mut self.state {
            State::Fencing { stage: FenceStage::Stopping { waiting, lost, deadline }, .. }
                if now.elapsed >= *deadline =>
            {
                lost.append(waiting);
                self.advance_fence(now);
            }
            State::Ending { stage: EndStage::Finishing { deadline }, .. } if now.elapsed >= *deadline => {
                self.sweep_everything();
            }
            _ => {}
        }
    }
}
