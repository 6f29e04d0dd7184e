//! What a worker does, as a state machine: `(state, event, now) -> actions` (pure).
//!
//! ```text
//!            Gather          Checked, Assign      Entered, Start      Fence | Finish | lost | SIGTERM
//!   Idle ------------> Gathered ----------> Assigned ----------> Running ------------> Stopping ---> Idle | exit
//!                      (Ready)              (StoreOpen)           (Started, Heartbeat,              (Fenced)
//!                                                                  Exited, Trouble)
//! ```
//! Whatever speaks of a generation that is over, or not the current one, changes nothing; a fence is answered again.
//! What was said of the current generation is said again on every new session, because nothing is acknowledged.
//! A rank's end is told after its feed is drained, so that every step that it consumed is counted.

mod event;
mod progress;
mod run;

use std::collections::BTreeMap;
use std::time::Duration;

pub(super) use event::{Action, Event, FeedNews};
pub(in crate::agent) use progress::Stuck;
use run::{Exit, JOIN_MAX, Link, Run, Stopping, current, current_or_stopping};

use super::Outcome;
use crate::rendezvous::message::{Assignment, Evidence, ExitStatus, PeerAddress, ToLauncher, ToWorker};
use crate::units::{Generation, Rank};

/// Time since the worker's start.
pub(super) type Now = Duration;

/// Early heartbeats keep at least this distance, so that a program which commits every step costs little.
const EARLY_GAP: Duration = Duration::from_millis(20);
/// How long the feed of a rank that ended may still bring news: its socket closes with the process, unless a child
/// of it holds on.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// The same for a rank that was never seen to attach.
const SETTLE: Duration = Duration::from_millis(20);
/// From SIGTERM to SIGKILL when nobody says how long.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// Troubles told per generation: the first ones matter.
const TROUBLES_MAX: usize = 16;

/// What a worker does without a launcher, once the lease is over and its ranks are stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Without {
    /// It ends: whoever starts launchers starts workers too.
    Ends,
    /// It goes on looking: in a pod, where a launcher may take minutes to be started again somewhere else.
    Waits,
    /// It goes on looking, and on serving: a data server in a pod runs nothing that must not run on unseen.
    Serves,
}

/// The state.
#[derive(Debug)]
pub(super) struct Machine {
    has_data: bool,
    hang: Option<Duration>,
    without: Without,
    link: Link,
    /// This generation and all before are over here.
    floor: Generation,
    run: Option<Run>,
    /// Asked for while an older generation was still being stopped.
    next: Option<Generation>,
    ending: Option<Outcome>,
    actions: Vec<Action>,
}

impl Machine {
    pub(super) fn new(has_data: bool, hang: Option<Duration>, without: Without) -> Self {
        let link = Link {
            session: None,
            welcomed: None,
            lease: JOIN_MAX,
            heartbeat: Duration::from_secs(1),
            last_contact: Duration::ZERO,
            last_heartbeat: Duration::ZERO,
            given_up: false,
        };
        let floor = Generation::default();
        Self {
            has_data,
            hang,
            without,
            link,
            floor,
            run: None,
            next: None,
            ending: None,
            actions: Vec::new(),
        }
    }

    /// Takes an event in; the actions are to be done in their order.
    pub(super) fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        match event {
            Event::Connected(session) => self.link.session = Some(session),
            Event::Lost { silent } => self.on_lost(silent, now),
            Event::Incompatible { reason } => self.end(Outcome::Failed { reason }, Duration::ZERO),
            Event::Message(message) => self.on_message(message, now),
            Event::LifelineEnded => self.end(Outcome::LauncherLost, GRACE),
            Event::Terminated => {
                let grace = if self.ending.is_some() { Duration::ZERO } else { GRACE };
                self.end(Outcome::Terminated, grace);
            }
            Event::Tick => {}
            about_run => self.on_run(about_run, now),
        }
        self.on_time(now);
        std::mem::take(&mut self.actions)
    }

    /// When [`Event::Tick`] is due at the latest.
    pub(super) fn deadline(&self) -> Now {
        let mut deadline = if self.link.session.is_none() && self.ending.is_none() && !self.link.given_up {
            self.link.lost_at()
        } else {
            self.link.last_heartbeat + self.link.heartbeat
        };
        let Some(run) = &self.run else { return deadline };
        if self.link.welcomed.is_some() && run.progress.is_urgent() {
            deadline = deadline.min(self.link.last_heartbeat + EARLY_GAP);
        }
        for exit in run.exits.values() {
            if let Exit::Draining { until, .. } = exit {
                deadline = deadline.min(*until);
            }
        }
        run.hang_deadline(self.hang).map_or(deadline, |hang| deadline.min(hang))
    }

    fn on_lost(&mut self, silent: Duration, now: Now) {
        // Attempts that fail come here as well: only an open session had contact.
        if self.link.session.take().is_some() {
            self.link.last_contact = now.saturating_sub(silent);
        }
        self.link.welcomed = None;
    }

    fn on_message(&mut self, message: ToWorker, now: Now) {
        match message {
            ToWorker::Welcome { lease_ms, heartbeat_ms } => {
                self.link.lease = Duration::from_millis(lease_ms);
                self.link.heartbeat = Duration::from_millis(heartbeat_ms.max(1));
                self.link.welcomed = self.link.session;
                self.say_again(now);
            }
            ToWorker::Refuse { reason } => self.end(Outcome::Refused { reason }, Duration::ZERO),
            ToWorker::Finish => self.end(Outcome::Finished, GRACE),
            ToWorker::Fence { generation, grace_ms } => {
                self.on_fence(generation, Duration::from_millis(grace_ms))
            }
            _ if self.ending.is_some() => {}
            ToWorker::Gather { generation } => self.on_gather(generation),
            ToWorker::Assign(assignment) => self.on_assign(assignment),
            ToWorker::Peers { generation, roster, peers } => self.on_peers(generation, roster, peers),
            ToWorker::Start { generation, master } => {
                if let Some(run) = current(&mut self.run, generation) {
                    run.master = Some(master);
                    self.launch_if_complete();
                }
            }
        }
    }

    fn on_gather(&mut self, generation: Generation) {
        if generation <= self.floor {
            return;
        }
        match &self.run {
            None => {
                self.run = Some(Run::new(generation, self.without == Without::Waits));
                self.actions.push(Action::Check(generation));
            }
            Some(run) if run.generation < generation => {
                // The launcher has given the older one up without a word to us.
                self.next = self.next.max(Some(generation));
                self.stop(Duration::ZERO);
            }
            Some(_) => {}
        }
    }

    fn on_assign(&mut self, assignment: Assignment) {
        let Some(run) = current(&mut self.run, assignment.generation) else { return };
        if run.assignment.is_some() || run.ready.as_ref().is_none_or(|faults| !faults.is_empty()) {
            return;
        }
        run.entered = !self.has_data;
        run.roster = assignment.roster;
        run.assignment = Some(assignment.clone());
        if assignment.serves_store {
            let (generation, world_size) = (assignment.generation, assignment.world_size);
            self.actions.push(Action::OpenStore { generation, world_size });
        }
        if self.has_data {
            self.actions.push(Action::Enter(assignment));
        }
    }

    /// The data plane goes on among other peers, once it has entered at all.
    fn on_peers(&mut self, generation: Generation, roster: u64, peers: Vec<PeerAddress>) {
        let Some(run) = current(&mut self.run, generation) else { return };
        if run.assignment.is_none() || roster <= run.roster {
            return;
        }
        run.roster = roster;
        if run.entered && self.has_data {
            self.actions.push(Action::Meet { generation, roster, peers });
        } else {
            run.peers = Some(peers);
        }
    }

    fn launch_if_complete(&mut self) {
        let Some(run) = &mut self.run else { return };
        let (Some(assignment), Some(master), true, false) =
            (&run.assignment, run.master, run.entered, run.launched)
        else {
            return;
        };
        run.launched = true;
        self.actions.push(Action::Running(Some(run.generation)));
        if assignment.ranks.is_empty() {
            // A spare, or a data server: nothing to execute.
            run.started = Some(BTreeMap::new());
            let started = run.started_message();
            self.send(started);
        } else {
            self.actions.push(Action::Launch { assignment: assignment.clone(), master });
        }
    }

    fn on_fence(&mut self, generation: Generation, grace: Duration) {
        if let Some(run) = self.run.as_mut().filter(|run| run.generation <= generation) {
            run.fence_as = run.fence_as.max(generation);
            self.stop(grace);
        } else {
            // Over already, or never seen: then it never will be.
            if self.run.is_none() {
                self.floor = self.floor.max(generation);
            }
            self.send(Some(ToLauncher::Fenced { generation }));
        }
    }

    /// Ends the worker. The first reason stays; a later one can only hurry.
    fn end(&mut self, outcome: Outcome, grace: Duration) {
        self.next = None;
        let first = self.ending.is_none();
        let outcome = self.ending.get_or_insert(outcome).clone();
        if self.run.is_some() {
            self.stop(grace);
        } else if first {
            self.actions.push(Action::Exit(outcome));
        }
    }

    /// Begins to stop the current generation, or hurries its stop.
    fn stop(&mut self, grace: Duration) {
        let Some(run) = &mut self.run else { return };
        let generation = run.generation;
        if run.stop == Stopping::Done {
            return;
        }
        if run.launched && run.assignment.as_ref().is_some_and(|assignment| !assignment.ranks.is_empty()) {
            run.stop = Stopping::Asked;
            self.actions.push(Action::Stop { generation, grace });
        } else {
            run.stop = Stopping::Done;
        }
    }

    fn on_run(&mut self, event: Event, now: Now) {
        let Some(run) =
            event.generation().and_then(|generation| current_or_stopping(&mut self.run, generation))
        else {
            return;
        };
        let running = run.stop == Stopping::No;
        match event {
            Event::Checked { generation, faults } if running && run.ready.is_none() => {
                run.ready = Some(faults.clone());
                self.send(Some(ToLauncher::Ready { generation, faults }));
            }
            Event::Entered { generation } if running => {
                run.entered = true;
                let (roster, late) = (run.roster, run.peers.take());
                self.actions.extend(late.map(|peers| Action::Meet { generation, roster, peers }));
                self.launch_if_complete();
            }
            Event::StoreOpened { generation, address } if running => {
                run.store = Some(address);
                self.send(Some(ToLauncher::StoreOpen { generation, address }));
            }
            Event::Started { pids, .. } => {
                if let Some(assignment) = run.assignment.as_ref().filter(|_| self.has_data) {
                    run.progress.watch(&assignment.ranks, now);
                }
                run.started = Some(pids);
                let started = run.started_message();
                self.send(started);
            }
            Event::NotStarted { rank, status, evidence, .. } => {
                self.tell_exit(rank, status, Some(evidence), now)
            }
            Event::Exited(exit) => {
                let wait = match (self.has_data, run.progress.is_attached(exit.rank)) {
                    (false, _) => Duration::ZERO,
                    (true, false) => SETTLE,
                    (true, true) => DRAIN_MAX,
                };
                run.exits.insert(exit.rank, Exit::Draining { exit, until: now + wait });
            }
            Event::Examined { rank, evidence, .. } => {
                if let Some(Exit::Examining { status }) = run.exits.get(&rank) {
                    let status = *status;
                    self.tell_exit(rank, status, evidence, now);
                }
            }
            Event::Trouble { generation, evidence } if run.troubles.len() < TROUBLES_MAX => {
                run.troubles.push(evidence.clone());
                self.send(Some(ToLauncher::Trouble { generation, evidence }));
            }
            Event::Stopped { .. } => run.stop = Stopping::Done,
            Event::Feed { rank, news, .. } => run.on_feed(rank, news, now),
            _ => {}
        }
    }

    fn tell_exit(&mut self, rank: Rank, status: ExitStatus, evidence: Option<Evidence>, now: Now) {
        self.heartbeat(now);
        let Some(run) = &mut self.run else { return };
        let generation = run.generation;
        run.exits.insert(rank, Exit::Told { status, evidence: evidence.clone() });
        self.send(Some(ToLauncher::Exited { generation, rank, status, evidence }));
    }

    /// What only needs time: drained feeds, heartbeats, hangs, the lease, the end of a stop.
    fn on_time(&mut self, now: Now) {
        if self.link.session.is_some() {
            self.link.last_contact = now;
            self.link.given_up = false;
        } else if now >= self.link.lost_at() && self.ending.is_none() && !self.link.given_up {
            let grace = self.link.margin() / 2;
            match self.without {
                Without::Ends => self.end(Outcome::LauncherLost, grace),
                Without::Serves => self.link.given_up = true,
                Without::Waits => {
                    self.link.given_up = true;
                    self.next = None;
                    self.stop(grace);
                }
            }
        }
        if let Some(run) = &mut self.run {
            for exit in run.exits.values_mut() {
                let Exit::Draining { exit: end, until } = exit else { continue };
                if *until <= now {
                    let end = *end;
                    *exit = Exit::Examining { status: end.status };
                    self.actions.push(Action::Examine(end));
                }
            }
            if let Some(stuck) = run.find_stuck(self.hang, now) {
                run.hang_told = true;
                self.actions.push(Action::Hang { generation: run.generation, stuck });
            }
        }
        let urgent = self.run.as_ref().is_some_and(|run| run.progress.is_urgent());
        let gap = if urgent { EARLY_GAP } else { self.link.heartbeat };
        if now >= self.link.last_heartbeat + gap {
            self.heartbeat(now);
        }
        self.leave_if_stopped(now);
    }

    fn leave_if_stopped(&mut self, now: Now) {
        let stopped = |run: &mut Run| {
            run.stop == Stopping::Done && run.exits.values().all(|exit| matches!(exit, Exit::Told { .. }))
        };
        if !self.run.as_mut().is_some_and(stopped) {
            return;
        }
        self.heartbeat(now);
        let Some(run) = self.run.take() else { return };
        self.floor = self.floor.max(run.fence_as);
        self.actions.push(Action::Leave(run.generation));
        self.actions.push(Action::Running(None));
        self.send(Some(ToLauncher::Fenced { generation: run.fence_as }));
        if let Some(outcome) = self.ending.clone() {
            self.actions.push(Action::Exit(outcome));
        } else if let Some(generation) = self.next.take() {
            self.on_gather(generation);
        }
    }

    fn heartbeat(&mut self, now: Now) {
        let Some(session) = self.link.welcomed else {
            // Nobody to tell: look again one interval later.
            self.link.last_heartbeat = now;
            return;
        };
        self.link.last_heartbeat = now;
        let (generation, roster, heartbeats) = match self.run.as_mut().filter(|run| run.launched) {
            Some(run) => (run.generation, run.roster, run.progress.take(now, self.link.lease)),
            None => (Generation::default(), 0, vec![Vec::new()]),
        };
        let heartbeats =
            heartbeats.into_iter().map(|progress| Action::Heartbeat(session, generation, roster, progress));
        self.actions.extend(heartbeats);
    }

    /// Tells a launcher that may be new, or may have missed the end of the last session, how things stand.
    fn say_again(&mut self, now: Now) {
        let Some(session) = self.link.welcomed else { return };
        let Some(run) = &self.run else {
            if self.floor > Generation::default() {
                self.send(Some(ToLauncher::Fenced { generation: self.floor }));
            }
            return self.heartbeat(now);
        };
        let generation = run.generation;
        let mut again = Vec::new();
        again.extend(run.ready.clone().map(|faults| ToLauncher::Ready { generation, faults }));
        again.extend(run.store.map(|address| ToLauncher::StoreOpen { generation, address }));
        again.extend(run.started_message());
        let troubles = run.troubles.iter().cloned();
        again.extend(troubles.map(|evidence| ToLauncher::Trouble { generation, evidence }));
        self.actions.extend(again.into_iter().map(|message| Action::Send(session, message)));
        let progress = run.progress.unconfirmed().cloned();
        let roster = run.roster;
        self.actions
            .extend(progress.map(|progress| Action::Heartbeat(session, generation, roster, progress)));
        // Before the ends of ranks: one that ended would else seem to have left its last steps to others.
        self.heartbeat(now);
        let Some(run) = &self.run else { return };
        self.actions.extend(run.exits.iter().filter_map(|(rank, exit)| {
            let Exit::Told { status, evidence } = exit else { return None };
            let (rank, status, evidence) = (*rank, *status, evidence.clone());
            Some(Action::Send(session, ToLauncher::Exited { generation, rank, status, evidence }))
        }));
    }

    /// Says something where it can be heard; what cannot be said now is said again at the next welcome.
    fn send(&mut self, message: Option<ToLauncher>) {
        if let (Some(session), Some(message)) = (self.link.welcomed, message) {
            self.actions.push(Action::Send(session, message));
        }
    }
}

#[cfg(test)]
mod tests;
