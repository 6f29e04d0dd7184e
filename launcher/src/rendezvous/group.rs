//! The membership of one job, as a state machine (pure): events and the time in, actions out.
//!
//! ```text
//! Pending ──start──▶ Gathering(g) ──all registered, or min + last call──▶ Preflight(g) ──all ready──▶ Assigned(g)
//!                      ▲     │ not in time                                   │ faults                     │ store open
//!                      │     ▼                                               ▼                            ▼
//!       budget allows, │   Failed ◀──────────────────────────────────────────┘     trouble            Joining(g)
//!       g+1            │     ▲                                             ┌───────────────────────────┤ all started
//!                      │     │ budget used up, or fatal                    ▼                           ▼
//!                   Fencing(g) ◀──grace over, cause found, fence on disk── Suspect(g) ◀──trouble── Running(g)
//!                            │ cancelled                                                              │ all exited 0
//!                            ▼                                                                        ▼
//!                        Cancelled                                                                Succeeded
//! ```
//! Trouble is a rank's exit other than 0, evidence from a worker, a worker's end, an expired lease, or a start-up
//! that takes too long. A lost worker in `Gathering` or `Preflight` is launched again on the restart budget; no
//! generation was active, so none is fenced.
//!
//! What must outlive the launcher is an [`Action::Persist`]; whatever depends on it happens when the shell answers
//! [`Event::Persisted`]. A group that is made from an earlier launcher's [`Memory`] first makes sure that nothing
//! of the last generation is left, then gathers a later one.
//!
//! All messages may come twice, late or never; all are answered from the state, not from a history. A worker that
//! lags is told again with its heartbeats.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

use datapath::Counters;
use worker::rendezvous::message::{DataFacts, Registration, ToLauncher, ToWorker};
use worker::units::{Generation, Incarnation, Step, WorkerId};

mod adopt;
mod budget;
mod evidence;
mod fence;
mod gather;
mod memory;
mod progress;
mod run;
mod seats;
mod servers;
mod state;
mod view;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use budget::RestartPolicy;
pub use evidence::{Cause, Observed, first_cause};
pub use memory::{GroupSummary, Memory, Outcome, Record};
pub use progress::{RankPosition, Settled, Totals, Work};
pub use servers::{ServerNews, ServerState, ServerView};
pub use view::{RankView, View};

use budget::Budget;
use progress::Start;
use servers::Server;
use state::{Member, Presence, State};

/// Dead incarnations that are remembered per worker, to refuse their late messages. A worker that dies more often
/// has used up any budget.
const RETIRED_MAX: usize = 64;

/// Stands for the process of a launch that failed.
pub const NO_PROCESS: u32 = 0;

/// What a group is to do.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Workers that have ranks.
    pub workers: u32,
    /// The job goes on with as few as this.
    pub min_workers: u32,
    /// Workers held warm; their numbers follow the others'.
    pub spares: u32,
    /// Data servers; their numbers follow the spares'.
    pub servers: u32,
    /// Ranks of each worker.
    pub ranks_per_worker: u32,
    /// None for a job without data, and where the workers tell (their registrations' `data`).
    pub steps_per_epoch: Option<NonZeroU64>,
    /// Workers outlive a launcher (pods do): a later one finds them again and goes on with what they run, or fences it by
    /// a message, instead of sweeping them.
    pub finds_workers: bool,
    /// How often it may be restarted.
    pub restarts: RestartPolicy,
    /// How long things may take.
    pub timing: Timing,
    /// SHA-256 of each worker's certificate, in lower-case hex.
    pub fingerprints: BTreeMap<WorkerId, String>,
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a worker says that it lives.
    pub heartbeat: Duration,
    /// Silence after which it is given up, and after which it has stopped its ranks by itself.
    pub lease: Duration,
    /// From a process's start to its registration.
    pub launch: Duration,
    /// From the first worker that is missing to giving the job up.
    pub gather: Duration,
    /// With enough workers, wait this long for more.
    pub last_call: Duration,
    /// With all workers ready, wait this long for data servers.
    pub servers: Duration,
    /// From `Gather` to `Ready`, and from `Assign` to `Started`.
    pub start: Duration,
    /// Collect evidence for this long after the first sign of trouble.
    pub suspect: Duration,
    /// From SIGTERM to SIGKILL.
    pub stop_grace: Duration,
    /// Beyond `stop_grace`, until a worker is killed instead of being waited for; and from `Finish` to its exit.
    pub stop_margin: Duration,
    /// A worker that lags is told again this often.
    pub resend: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(500),
            lease: Duration::from_secs(10),
            launch: Duration::from_secs(60),
            gather: Duration::from_secs(180),
            last_call: Duration::from_secs(5),
            servers: Duration::from_secs(10),
            start: Duration::from_secs(120),
            suspect: Duration::from_millis(300),
            stop_grace: Duration::from_secs(10),
            stop_margin: Duration::from_secs(5),
            resend: Duration::from_secs(5),
        }
    }
}

/// The moment of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Since the launcher's start, on a clock that never jumps back.
    pub elapsed: Duration,
    /// The calendar's time, for evidence: nanoseconds since the Unix epoch.
    pub unix_ns: u64,
}

/// Numbers the records of one launcher's life, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordId(pub u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Begin.
    Start,
    /// A worker process runs: the first answer to [`Action::Launch`], so that news of an earlier process of that
    /// number can be told from this one's.
    Launched {
        /// Which worker.
        worker: WorkerId,
        /// Its process.
        pid: u32,
    },
    /// A worker says who it is; its certificate matches its number.
    Registered(Box<Registration>),
    /// A registered worker says anything else.
    Message {
        /// Who.
        worker: WorkerId,
        /// Which process of that number: that of its session's registration.
        incarnation: Incarnation,
        /// What.
        message: ToLauncher,
    },
    /// A worker process has been told to end, by somebody else than us: it may go on until it does, and takes no part in
    /// what comes then.
    Leaving {
        /// Which worker.
        worker: WorkerId,
        /// Its process.
        pid: u32,
    },
    /// A worker process has ended for certain.
    Gone {
        /// Which worker.
        worker: WorkerId,
        /// Its process; [`NO_PROCESS`] if it could not be started.
        pid: u32,
        /// How, for people.
        how: String,
    },
    /// Everything up to this record is written (and, where that matters, on the disk).
    Persisted(RecordId),
    /// Nothing of these workers' generation, nor their process, is left.
    Swept {
        /// Up to this generation.
        generation: Generation,
        /// Which workers.
        workers: Vec<WorkerId>,
    },
    /// The user wants the job to end.
    Cancel {
        /// Without grace.
        now: bool,
    },
    /// Time has passed. At least every `heartbeat`.
    Tick,
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Append to the journal, then answer [`Event::Persisted`]. In order.
    Persist {
        /// Its number.
        id: RecordId,
        /// What to write.
        record: Box<Record>,
    },
    /// Start a process for a worker that has none.
    Launch {
        /// Which.
        worker: WorkerId,
    },
    /// Kill the workers' processes and all that is left of their ranks, then answer [`Event::Swept`].
    Sweep {
        /// Up to this generation.
        generation: Generation,
        /// Which workers.
        workers: Vec<WorkerId>,
    },
    /// Tell a worker.
    Send {
        /// Whom.
        worker: WorkerId,
        /// Which process; if its session is gone the message is void.
        incarnation: Incarnation,
        /// What.
        message: ToWorker,
    },
    /// A generation failed and another one gathers.
    Restarting {
        /// Why.
        cause: Box<Cause>,
        /// Waited before.
        backoff: Duration,
    },
    /// Something happened to a data server: a user should know, and nothing follows from it.
    Server {
        /// Which.
        worker: WorkerId,
        /// What.
        news: ServerNews,
        /// The same for people.
        message: String,
    },
    /// The job is over and nothing of it is left.
    Done(Outcome),
}

/// One job's membership.
#[derive(Debug)]
pub struct Group {
    config: GroupConfig,
    members: BTreeMap<WorkerId, Member>,
    /// Which of them are data servers.
    servers: BTreeMap<WorkerId, Server>,
    state: State,
    generation: Generation,
    /// The last seats. When there are any, nobody is waited for who is not needed.
    seats: Vec<WorkerId>,
    start: Start,
    restarts: u32,
    budget: Budget,
    last_cause: Option<Cause>,
    reported: BTreeMap<String, f64>,
    /// The data set, as the workers found it; the same in all generations.
    data: Option<DataFacts>,
    counters: BTreeMap<WorkerId, Counters>,
    counters_of_the_gone: Counters,
    server_counters_of_the_gone: Counters,
    /// What earlier launchers fenced, and of which generation the seats are.
    fenced_before: Generation,
    seated_before: Generation,
    last_record: RecordId,
    persisted: RecordId,
    /// The last commit that was written down.
    recorded_commit: Step,
    /// Its record, while that is not on the disk.
    commit_under_way: Option<RecordId>,
    /// The last generation's ranks and numbers, once the job has ended.
    last_ranks: Vec<RankView>,
    last_servers: Vec<ServerView>,
    ended: Option<GroupSummary>,
    stop_grace: Duration,
    last_event: Duration,
    out: Vec<Action>,
}

impl Group {
    /// A group that has not started; `memory` is what earlier launchers of the job left.
    #[must_use]
    pub fn new(mut config: GroupConfig, memory: Memory) -> Self {
        if let Some(data) = &memory.data {
            config.steps_per_epoch = config.steps_per_epoch.or_else(|| NonZeroU64::new(data.steps_per_epoch));
        }
        let first_server = config.workers.saturating_add(config.spares);
        let total = first_server.saturating_add(config.servers);
        Self {
            members: (0..total).map(|id| (WorkerId(id), Member::default())).collect(),
            servers: (first_server..total).map(|id| (WorkerId(id), Server::new())).collect(),
            state: State::Pending,
            generation: memory.generation,
            seats: memory.seats,
            fenced_before: memory.fenced,
            seated_before: memory.seated,
            recorded_commit: memory.committed,
            start: Start { committed: memory.committed, settled: memory.settled, work: memory.work },
            restarts: memory.restarts,
            budget: Budget::new(config.restarts),
            last_cause: memory.cause,
            reported: BTreeMap::new(),
            data: memory.data,
            counters: BTreeMap::new(),
            counters_of_the_gone: Counters::default(),
            server_counters_of_the_gone: Counters::default(),
            last_record: RecordId(0),
            persisted: RecordId(0),
            commit_under_way: None,
            last_ranks: Vec::new(),
            last_servers: Vec::new(),
            ended: None,
            stop_grace: config.timing.stop_grace,
            last_event: Duration::ZERO,
            out: Vec::new(),
            config,
        }
    }

    /// Takes one event in; what is to be done about it, in order.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        self.forgive_a_pause(now.elapsed);
        match event {
            Event::Start => self.begin(now),
            Event::Launched { worker, pid } => self.launched(worker, pid),
            Event::Registered(registration) => self.registered(*registration, now),
            Event::Message { worker, incarnation, message } => {
                self.message(worker, incarnation, message, now);
            }
            Event::Leaving { worker, pid } => self.leaving(worker, pid),
            Event::Gone { worker, pid, how } => self.gone(worker, pid, &how, now),
            Event::Persisted(id) => {
                self.persisted = self.persisted.max(id);
                self.commit_is_recorded();
                self.record_is_safe(now);
            }
            Event::Swept { generation, workers } => self.swept(generation, &workers, now),
            Event::Cancel { now: at_once } => self.cancel(at_once, now),
            Event::Tick => self.tick(now),
        }
        std::mem::take(&mut self.out)
    }

    /// When the launcher itself stood still (a suspended host), silence proves nothing: leases begin again.
    fn forgive_a_pause(&mut self, now: Duration) {
        let pause = now.saturating_sub(self.last_event);
        self.last_event = self.last_event.max(now);
        if pause < self.config.timing.lease / 2 {
            return;
        }
        for member in self.members.values_mut() {
            match &mut member.presence {
                Presence::Present(present) => present.heard += pause,
                Presence::Launching { since, .. } => *since += pause,
                Presence::Absent | Presence::Lost => {}
            }
        }
    }

    fn message(&mut self, worker: WorkerId, incarnation: Incarnation, message: ToLauncher, now: Now) {
        let Some(present) = self.members.get_mut(&worker).and_then(Member::present_mut) else { return };
        if present.incarnation != incarnation {
            return;
        }
        present.heard = present.heard.max(now.elapsed);
        present.heard_unix_ns = present.heard_unix_ns.max(now.unix_ns);
        match message {
            ToLauncher::Register(registration) => self.registered(registration, now),
            ToLauncher::Ready { generation, faults } => self.ready(worker, generation, faults, now),
            ToLauncher::StoreOpen { generation, address } => {
                self.store_open(worker, generation, address, now);
            }
            ToLauncher::Started { generation, pids } => self.started(worker, generation, pids, now),
            ToLauncher::Heartbeat { generation, progress, counters, roster } => {
                self.counters.insert(worker, counters);
                self.count_last_words();
                if generation == self.generation {
                    self.roster_heard(worker, roster, now);
                }
                self.progress(worker, generation, &progress, now);
                self.remind(worker, now.elapsed);
            }
            ToLauncher::Exited { generation, rank, status, evidence } => {
                self.exited(worker, generation, run::Exit { rank, status, evidence }, now);
            }
            ToLauncher::Trouble { generation, evidence } => self.trouble(worker, generation, evidence, now),
            ToLauncher::Fenced { generation } => self.fenced(worker, generation, now),
        }
    }

    fn tick(&mut self, now: Now) {
        self.expire_leases(now);
        self.replace_refused_servers(now);
        self.launch_servers(now);
        self.send_roster(now);
        match &self.state {
            State::Pending | State::Over(_) => {}
            State::Gathering { .. } | State::Preflight { .. } => self.tick_gathering(now),
            State::Assigned { .. }
            | State::Joining { .. }
            | State::Running { .. }
            | State::Suspect { .. } => {
                self.tick_running(now);
            }
            State::Clearing { .. } | State::Fencing { .. } | State::Ending { .. } => self.tick_fencing(now),
        }
    }

    fn record_is_safe(&mut self, now: Now) {
        match &self.state {
            State::Gathering { .. } => self.gathering_is_recorded(now),
            State::Clearing { .. } | State::Fencing { .. } | State::Ending { .. } => {
                self.fence_is_recorded(now);
            }
            _ => {}
        }
    }

    fn persist(&mut self, record: Record) -> RecordId {
        self.last_record = RecordId(self.last_record.0 + 1);
        self.out.push(Action::Persist { id: self.last_record, record: Box::new(record) });
        self.last_record
    }

    fn send(&mut self, worker: WorkerId, message: ToWorker) {
        if let Some(present) = self.members.get(&worker).and_then(Member::present) {
            let incarnation = present.incarnation;
            self.out.push(Action::Send { worker, incarnation, message });
        }
    }

    /// Tells a lagging worker again, at a bounded pace.
    fn remind(&mut self, worker: WorkerId, now: Duration) {
        let resend = self.config.timing.resend;
        let due = self.members.get(&worker).and_then(Member::present).is_some_and(|p| now >= p.told + resend);
        if due {
            self.tell(worker, now);
        }
    }

    /// Tells a worker everything that it must do now and has not answered yet.
    fn tell(&mut self, worker: WorkerId, now: Duration) {
        let messages = self.due_messages(worker);
        if let Some(present) = self.members.get_mut(&worker).and_then(Member::present_mut) {
            present.told = now;
        }
        for message in messages {
            self.send(worker, message);
        }
    }

    fn due_messages(&self, worker: WorkerId) -> Vec<ToWorker> {
        let Some(present) = self.members.get(&worker).and_then(Member::present) else { return Vec::new() };
        // While the last generation is being cleared its fence may not be on the disk; the sweep ends them.
        let is_clearing = matches!(self.state, State::Clearing { .. });
        if let Some(stale) = present.stale.filter(|_| !is_clearing) {
            return vec![self.fence_message(stale)];
        }
        match &self.state {
            State::Gathering { recorded: true, .. } | State::Preflight { .. } if present.ready.is_none() => {
                vec![ToWorker::Gather { generation: self.generation }]
            }
            State::Assigned { world } | State::Joining { world } => {
                let mut due = world.due_messages(worker, present.incarnation, self);
                due.extend(self.due_of_servers(worker));
                due
            }
            State::Running { .. } | State::Suspect { .. } => self.due_of_servers(worker),
            State::Fencing { stage: state::FenceStage::Stopping { waiting, .. }, .. }
                if waiting.contains(&worker) =>
            {
                vec![self.fence_message(self.generation)]
            }
            State::Ending { stage: state::EndStage::Finishing { .. }, .. } => vec![ToWorker::Finish],
            _ => Vec::new(),
        }
    }

    fn fence_message(&self, generation: Generation) -> ToWorker {
        ToWorker::Fence { generation, grace_ms: millis(self.stop_grace) }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
