//! The machine step by step: a script of events, and what must come out of it.

use std::collections::BTreeMap;

use datapath::plane::Role;
use worker::rendezvous::message::{
    CauseKind, ConsumedStep, DataFacts, Evidence, ExitStatus, HostFacts, PreflightFault, RankProgress,
    ToLauncher,
};
use worker::units::{Rank, Step};

use super::*;
use crate::backend::{CauseCode, Phase};

mod adoption;
mod servers;

/// A group, its journal and the processes that it wants, all of them obedient until told otherwise.
struct Rig {
    group: Group,
    now: Duration,
    records: Vec<Record>,
    told: Vec<(u32, ToWorker)>,
    swept: Vec<Vec<u32>>,
    launched: Vec<u32>,
    pids: BTreeMap<u32, u32>,
    /// Whether what is to be written is written at once.
    disk: bool,
    done: Option<Outcome>,
    /// What was said of data servers.
    news: Vec<(ServerNews, String)>,
}

fn config(workers: u32, spares: u32) -> GroupConfig {
    GroupConfig {
        workers,
        min_workers: workers,
        spares,
        servers: 0,
        ranks_per_worker: 1,
        steps_per_epoch: NonZeroU64::new(10),
        finds_workers: false,
        restarts: RestartPolicy { max: 2, window: Duration::from_secs(3600), backoff: Duration::ZERO },
        timing: Timing::default(),
        fingerprints: BTreeMap::new(),
    }
}

impl Rig {
    fn new(config: GroupConfig, memory: Memory) -> Self {
        let mut rig = Self {
            group: Group::new(config, memory),
            now: Duration::from_secs(1),
            records: Vec::new(),
            told: Vec::new(),
            swept: Vec::new(),
            launched: Vec::new(),
            pids: BTreeMap::new(),
            disk: true,
            done: None,
            news: Vec::new(),
        };
        rig.handle(Event::Start);
        rig
    }

    /// Up to `Running`, every worker registered and obedient.
    fn running(config: GroupConfig) -> Self {
        let mut rig = Self::new(config, Memory::default());
        rig.register_all();
        rig.reach_running();
        rig
    }

    fn handle(&mut self, event: Event) {
        let now = Now { elapsed: self.now, unix_ns: u64::try_from(self.now.as_nanos()).unwrap() };
        for action in self.group.handle(event, now) {
            match action {
                Action::Persist { id, record } => {
                    self.records.push(*record);
                    if self.disk {
                        self.handle(Event::Persisted(id));
                    }
                }
                Action::Launch { worker } => {
                    let pid = 100 + u32::try_from(self.launched.len()).unwrap();
                    self.launched.push(worker.0);
                    self.pids.insert(worker.0, pid);
                    self.handle(Event::Launched { worker, pid });
                }
                Action::Sweep { generation, workers } => {
                    self.swept.push(workers.iter().map(|worker| worker.0).collect());
                    self.handle(Event::Swept { generation, workers });
                }
                Action::Send { worker, message, .. } => self.told.push((worker.0, message)),
                Action::Restarting { .. } => {}
                Action::Server { news, message, .. } => self.news.push((news, message)),
                Action::Done(outcome) => self.done = Some(outcome),
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += self.group.config.timing.heartbeat;
            for worker in self.pids.keys().copied().collect::<Vec<_>>() {
                let heartbeat = ToLauncher::Heartbeat {
                    generation: Generation(0),
                    progress: Vec::new(),
                    counters: Counters::default(),
                    roster: 0,
                };
                self.says(worker, heartbeat);
            }
            self.handle(Event::Tick);
        }
    }

    fn register(&mut self, worker: u32) {
        self.register_with(worker, None, None);
    }

    fn register_with(&mut self, worker: u32, running: Option<Generation>, data: Option<DataFacts>) {
        let pid = self.pids[&worker];
        self.handle(Event::Registered(Box::new(Registration {
            worker: WorkerId(worker),
            incarnation: Incarnation(pid.into()),
            pid,
            host: HostFacts::default(),
            data_address: None,
            running,
            data,
        })));
    }

    fn register_all(&mut self) {
        for worker in self.pids.keys().copied().collect::<Vec<_>>() {
            self.register(worker);
        }
    }

    fn says(&mut self, worker: u32, message: ToLauncher) {
        let incarnation = Incarnation(self.pids[&worker].into());
        self.handle(Event::Message { worker: WorkerId(worker), incarnation, message });
    }

    fn ready_all(&mut self) {
        let generation = self.group.generation();
        for worker in self.pids.keys().copied().collect::<Vec<_>>() {
            self.says(worker, ToLauncher::Ready { generation, faults: Vec::new() });
        }
    }

    fn reach_running(&mut self) {
        self.ready_all();
        assert_eq!(self.group.phase(), Phase::Assigned);
        let generation = self.group.generation();
        let seats = self.group.seats.clone();
        self.says(seats[0].0, ToLauncher::StoreOpen { generation, address: ([127, 0, 0, 1], 9).into() });
        for seat in seats {
            self.says(seat.0, ToLauncher::Started { generation, pids: BTreeMap::new() });
        }
        assert_eq!(self.group.phase(), Phase::Running);
    }

    fn exit(&mut self, worker: u32, rank: u32, code: i32, evidence: Option<Evidence>) {
        let generation = self.group.generation();
        let (rank, status) = (Rank(rank), ExitStatus::Code { code });
        self.says(worker, ToLauncher::Exited { generation, rank, status, evidence });
    }

    /// What the rank of the same number as the worker did.
    fn progress(&mut self, worker: u32, steps: &[u64], committed: Option<u64>) {
        let step = |step: &u64| ConsumedStep {
            step: Step(*step),
            samples: 1,
            bytes: 1,
            digest: datapath::order::OrderDigest::default(),
        };
        let progress = vec![RankProgress {
            rank: Rank(worker),
            consumed: steps.iter().map(step).collect(),
            committed: committed.map(Step),
            reported: BTreeMap::new(),
            ended: false,
        }];
        let (generation, counters) = (self.group.generation(), Counters::default());
        self.says(worker, ToLauncher::Heartbeat { generation, progress, counters, roster: 0 });
    }

    fn fail(&mut self, worker: u32, cause: CauseKind, message: &str) {
        let evidence = Evidence {
            rank: Some(Rank(worker)),
            cause,
            seen_unix_ns: 1,
            message: message.to_owned(),
            hint: String::new(),
            log_tail: Vec::new(),
        };
        self.exit(worker, worker, 1, Some(evidence));
        self.pass(self.group.config.timing.suspect);
    }

    fn fenced_all(&mut self) {
        let generation = self.group.generation();
        for worker in self.pids.keys().copied().collect::<Vec<_>>() {
            self.says(worker, ToLauncher::Fenced { generation });
        }
    }

    fn gone(&mut self, worker: u32) {
        let pid = self.pids[&worker];
        self.handle(Event::Gone { worker: WorkerId(worker), pid, how: "killed".to_owned() });
    }

    fn was_told(&self, worker: u32, wanted: impl Fn(&ToWorker) -> bool) -> bool {
        self.told.iter().any(|(to, message)| *to == worker && wanted(message))
    }

    fn cause(&self) -> Cause {
        self.group.last_cause.clone().unwrap()
    }
}

#[test]
fn a_job_goes_from_pending_to_succeeded() {
    let mut rig = Rig::new(config(2, 0), Memory::default());
    assert_eq!(rig.launched, [0, 1]);
    rig.register(0);
    assert_eq!(rig.group.phase(), Phase::Gathering);
    assert_eq!(rig.group.view().waiting_for, "workers 1");
    rig.register(1);
    assert_eq!(rig.group.phase(), Phase::Preflight);
    rig.reach_running();
    rig.exit(0, 0, 0, None);
    assert_eq!(rig.group.phase(), Phase::Running, "one has ended well, the other runs on");
    rig.exit(1, 1, 0, None);
    assert_eq!(rig.group.phase(), Phase::Succeeded);
    assert!(rig.was_told(1, |message| *message == ToWorker::Finish));
    rig.gone(0);
    assert_eq!(rig.done, None);
    rig.gone(1);
    assert_eq!(rig.done, Some(Outcome::Succeeded));
    assert_eq!(rig.swept, [[0, 1]], "also what left its parents is ended");
}

#[test]
fn nobody_hears_of_a_generation_that_is_not_on_the_disk() {
    let mut rig = Rig::new(config(1, 0), Memory::default());
    rig.register(0);
    rig.reach_running();
    rig.disk = false;
    rig.fail(0, CauseKind::Signal, "x");
    assert_eq!(rig.group.phase(), Phase::Fencing);
    assert!(!rig.was_told(0, |message| matches!(message, ToWorker::Fence { .. })));
    let last = rig.group.last_record;
    rig.handle(Event::Persisted(last));
    assert!(rig.was_told(0, |message| matches!(message, ToWorker::Fence { .. })));
    rig.fenced_all();
    assert_eq!((rig.group.phase(), rig.group.generation()), (Phase::Gathering, Generation(2)));
    let gathers =
        |rig: &Rig| rig.was_told(0, |message| *message == ToWorker::Gather { generation: Generation(2) });
    assert!(!gathers(&rig));
    let last = rig.group.last_record;
    rig.handle(Event::Persisted(last));
    assert!(gathers(&rig));
}

#[test]
fn all_preflight_faults_are_told_at_once_and_nothing_is_started() {
    let mut rig = Rig::new(config(2, 0), Memory::default());
    rig.register_all();
    let fault = |code: &str| PreflightFault {
        code: code.to_owned(),
        message: format!("no {code}"),
        hint: String::new(),
    };
    let generation = Generation(1);
    rig.says(0, ToLauncher::Ready { generation, faults: vec![fault("a"), fault("b")] });
    assert_eq!(rig.group.phase(), Phase::Preflight, "the other's faults are waited for");
    rig.says(1, ToLauncher::Ready { generation, faults: vec![fault("a")] });
    assert_eq!(rig.group.phase(), Phase::Failed);
    assert_eq!(rig.cause().code, CauseCode::Preflight);
    assert_eq!(rig.cause().message, "no a [a] (worker 0, 1)\nno b [b] (worker 0)");
    assert!(!rig.was_told(0, |message| matches!(message, ToWorker::Assign(_))));
}

#[test]
fn a_failed_rank_costs_one_restart_until_there_are_none() {
    let mut rig = Rig::running(config(2, 0));
    for restart in 1..=2 {
        rig.fail(1, CauseKind::Signal, "killed");
        assert_eq!(rig.group.phase(), Phase::Fencing);
        rig.fenced_all();
        assert_eq!(rig.group.view().restarts, restart);
        rig.reach_running();
    }
    rig.fail(1, CauseKind::Signal, "killed");
    rig.fenced_all();
    assert_eq!(rig.group.phase(), Phase::Failed);
    assert_eq!((rig.cause().rank, rig.cause().generation), (Some(Rank(1)), Generation(3)));
}

#[test]
fn the_same_exception_at_the_same_step_is_not_tried_a_third_time() {
    let mut rig = Rig::running(config(1, 0));
    rig.fail(0, CauseKind::Exception, "ValueError");
    rig.fenced_all();
    rig.reach_running();
    rig.fail(0, CauseKind::Exception, "ValueError");
    rig.fenced_all();
    assert_eq!(rig.group.phase(), Phase::Failed);
    assert_eq!(rig.group.view().restarts, 1);
}

#[test]
fn corrupt_data_fails_the_job_at_once() {
    let mut rig = Rig::running(config(2, 0));
    rig.fail(0, CauseKind::Data, "crc");
    rig.fenced_all();
    assert_eq!((rig.group.phase(), rig.cause().code), (Phase::Failed, CauseCode::Data));
}

#[test]
fn the_strongest_evidence_of_the_grace_window_is_the_cause() {
    let mut rig = Rig::running(config(2, 0));
    rig.exit(0, 0, 1, None);
    assert_eq!(rig.group.phase(), Phase::Suspect);
    rig.fail(1, CauseKind::OutOfMemory, "oom");
    assert_eq!((rig.cause().code, rig.cause().rank), (CauseCode::OutOfMemory, Some(Rank(1))));
}

#[test]
fn a_spare_takes_the_dead_ones_rank_and_the_dead_one_is_swept_first() {
    let mut rig = Rig::running(config(2, 1));
    assert!(!rig.was_told(2, |message| matches!(message, ToWorker::Assign(_))), "a spare waits");
    rig.gone(1);
    rig.pass(rig.group.config.timing.suspect);
    assert_eq!(rig.cause().code, CauseCode::WorkerLost);
    assert_eq!(rig.swept, Vec::<Vec<u32>>::new());
    rig.says(0, ToLauncher::Fenced { generation: Generation(1) });
    assert_eq!(rig.swept, [[1]]);
    // The spare and the survivor suffice; the dead one's successor is not waited for.
    assert_eq!(rig.group.phase(), Phase::Preflight);
    rig.ready_all();
    assert_eq!(rig.group.seats, [WorkerId(0), WorkerId(2)]);
    assert_eq!(rig.launched, [0, 1, 2, 1]);
}

#[test]
fn a_silent_worker_loses_its_lease_and_its_late_words_count_nothing() {
    let mut rig = Rig::running(config(2, 0));
    let silent = rig.pids.remove(&1).unwrap();
    rig.pass(rig.group.config.timing.lease + Duration::from_secs(1));
    rig.says(0, ToLauncher::Fenced { generation: Generation(1) });
    assert_eq!(rig.swept, [[1]]);
    assert_eq!(rig.group.generation(), Generation(2));
    let late = ToLauncher::Fenced { generation: Generation(2) };
    let incarnation = Incarnation(silent.into());
    rig.handle(Event::Message { worker: WorkerId(1), incarnation, message: late });
    rig.pids.insert(1, silent);
    rig.register(1);
    assert!(rig.was_told(1, |message| matches!(message, ToWorker::Refuse { .. })));
    assert_eq!(rig.group.phase(), Phase::Gathering);
}

#[test]
fn a_launcher_that_stood_still_blames_nobody() {
    let mut rig = Rig::running(config(2, 0));
    rig.now += Duration::from_secs(3600);
    rig.handle(Event::Tick);
    assert_eq!(rig.group.phase(), Phase::Running);
}

#[test]
fn an_elastic_job_goes_on_with_fewer_after_the_last_call() {
    let mut config = config(3, 0);
    config.min_workers = 2;
    let mut rig = Rig::new(config, Memory::default());
    rig.register(0);
    rig.register(2);
    rig.handle(Event::Tick);
    assert_eq!(rig.group.phase(), Phase::Gathering);
    rig.pids.remove(&1);
    rig.pass(rig.group.config.timing.last_call + Duration::from_secs(1));
    assert_eq!(rig.group.phase(), Phase::Preflight);
    rig.reach_running();
    assert_eq!((rig.group.view().world_size, rig.group.seats.clone()), (2, vec![WorkerId(0), WorkerId(2)]));
}

#[test]
fn workers_that_never_register_are_told_by_number() {
    let mut config = config(2, 0);
    config.restarts.max = 100;
    config.timing.launch = Duration::from_secs(1000);
    let mut rig = Rig::new(config, Memory::default());
    rig.register(0);
    rig.pids.remove(&1);
    rig.pass(rig.group.config.timing.gather + Duration::from_secs(1));
    assert_eq!(rig.cause().code, CauseCode::GatherTimeout);
    assert!(rig.cause().message.contains("workers 1"), "{}", rig.cause().message);
}

#[test]
fn a_commit_is_on_the_disk_before_the_fence_is_told_and_a_restart_begins_there() {
    let mut rig = Rig::running(config(2, 0));
    rig.disk = false;
    for worker in 0..2 {
        rig.progress(worker, &[], Some(4));
    }
    rig.fail(0, CauseKind::Signal, "x");
    assert!(!rig.was_told(1, |message| matches!(message, ToWorker::Fence { .. })));
    let last = rig.group.last_record;
    rig.disk = true;
    rig.handle(Event::Persisted(last));
    rig.fenced_all();
    rig.reach_running();
    let starts_there = |message: &ToWorker| matches!(message, ToWorker::Assign(a) if a.generation == Generation(2) && a.start_step == Step(4));
    assert!(rig.was_told(1, starts_there));
}

fn commits(worker: u32, step: u64) -> ToLauncher {
    let rank = RankProgress {
        rank: Rank(worker),
        consumed: Vec::new(),
        committed: Some(Step(step)),
        reported: BTreeMap::new(),
        ended: false,
    };
    ToLauncher::Heartbeat {
        generation: Generation(1),
        progress: vec![rank],
        counters: Counters::default(),
        roster: 0,
    }
}

#[test]
fn a_slow_disk_makes_commits_rarer_and_loses_none() {
    let mut rig = Rig::running(config(1, 0));
    let recorded = |rig: &Rig| -> Vec<u64> {
        let commits = rig.records.iter().filter_map(|record| match record {
            Record::Commit { committed, .. } => Some(committed.0),
            _ => None,
        });
        commits.collect()
    };
    rig.disk = false;
    for step in 1..=100 {
        rig.says(0, commits(0, step));
    }
    assert_eq!(recorded(&rig), [1], "one is under way");
    rig.handle(Event::Persisted(rig.group.last_record));
    assert_eq!(recorded(&rig), [1, 100], "the next one stands for all since");
    rig.says(0, commits(0, 120));
    rig.fail(0, CauseKind::Signal, "x");
    assert_eq!(recorded(&rig), [1, 100, 120], "what was committed is written down before the fence");
}

#[test]
fn an_elastic_job_does_without_a_worker_whose_restarts_are_used_up() {
    let mut config = config(3, 0);
    config.min_workers = 2;
    let mut rig = Rig::running(config);
    rig.gone(1);
    rig.pass(Duration::from_secs(1));
    rig.says(0, ToLauncher::Fenced { generation: Generation(1) });
    rig.says(2, ToLauncher::Fenced { generation: Generation(1) });
    // One restart is spent; the second goes, and then there is none.
    for _ in 0..2 {
        assert_eq!(rig.group.phase(), Phase::Gathering);
        rig.gone(1);
        rig.handle(Event::Tick);
    }
    rig.reach_running();
    assert_eq!((rig.group.view().world_size, rig.group.seats.clone()), (2, vec![WorkerId(0), WorkerId(2)]));
    let launches = rig.launched.len();
    rig.pass(Duration::from_secs(10));
    assert_eq!(rig.launched.len(), launches, "it is not tried again beside a job that runs");
}

#[test]
fn a_rank_that_returns_0_while_others_go_on_without_it_is_the_cause() {
    let mut rig = Rig::running(config(2, 0));
    rig.progress(1, &[0], None);
    rig.exit(1, 1, 0, None);
    rig.progress(0, &[0, 1], None);
    assert_eq!(rig.group.phase(), Phase::Running, "the other one may have stopped there, too");
    rig.progress(0, &[2], None);
    rig.pass(rig.group.config.timing.suspect);
    assert_eq!((rig.cause().code, rig.cause().rank), (CauseCode::Exception, Some(Rank(1))));
    assert!(rig.cause().message.contains("returned 0 at step 1"), "{}", rig.cause().message);
    assert_eq!(rig.group.phase(), Phase::Fencing);
}

#[test]
fn cancelling_stops_in_order_and_a_second_time_at_once() {
    let mut rig = Rig::running(config(2, 0));
    rig.handle(Event::Cancel { now: false });
    assert!(rig.was_told(0, |message| matches!(message, ToWorker::Fence { grace_ms: 10_000, .. })));
    rig.says(0, ToLauncher::Fenced { generation: Generation(1) });
    assert_eq!(rig.group.phase(), Phase::Fencing);
    rig.handle(Event::Cancel { now: true });
    assert_eq!(rig.swept, [[1]], "who has not answered is killed");
    assert_eq!(rig.group.phase(), Phase::Cancelled);
    rig.gone(0);
    assert_eq!(rig.done, Some(Outcome::Cancelled));
}

#[test]
fn a_later_launcher_sweeps_then_counts_on() {
    let mut first = Rig::running(config(2, 0));
    first.fail(0, CauseKind::Signal, "x");
    let memory = Memory::of(&first.records);
    assert_eq!((memory.generation, memory.restarts), (Generation(1), 1));
    let rig = Rig::new(config(3, 0), memory);
    assert_eq!(rig.swept, [[0, 1, 2]]);
    assert_eq!(rig.group.generation(), Generation(2));
    assert_eq!(rig.launched, [0, 1, 2]);
    assert_eq!(rig.group.view().restarts, 1);
}

#[test]
fn a_worker_that_dies_again_and_again_before_the_job_runs_fails_it() {
    let mut rig = Rig::new(config(1, 0), Memory::default());
    for _ in 0..3 {
        assert_eq!(rig.group.phase(), Phase::Gathering);
        rig.gone(0);
        rig.handle(Event::Tick);
    }
    assert_eq!(rig.cause().code, CauseCode::WorkerLost);
    assert!(matches!(rig.group.phase(), Phase::Failed | Phase::Fencing));
}

#[test]
fn a_worker_that_ends_its_ranks_on_its_own_is_the_cause_and_not_its_signal() {
    let mut rig = Rig::running(config(2, 0));
    rig.fail(1, CauseKind::KilledByUs, "terminated");
    assert_eq!((rig.cause().code, rig.cause().worker), (CauseCode::WorkerLost, Some(WorkerId(1))));
    assert_eq!(rig.cause().rank, None);
}

#[test]
fn workers_that_find_other_data_than_the_others_or_than_before_are_faults() {
    let facts = |digest: &str| {
        Some(DataFacts { digest: digest.to_owned(), steps_per_epoch: 5, samples: 10, bytes: 100 })
    };
    let unknown = GroupConfig { steps_per_epoch: None, ..config(2, 0) };
    let mut rig = Rig::new(unknown.clone(), Memory::default());
    rig.register_with(0, None, facts("a"));
    rig.register_with(1, None, facts("a"));
    rig.ready_all();
    assert_eq!(rig.group.phase(), Phase::Assigned);
    assert_eq!(rig.group.config.steps_per_epoch, NonZeroU64::new(5));
    let memory = Memory::of(&rig.records);
    assert_eq!(memory.data, facts("a"));
    let mut rig = Rig::new(unknown.clone(), Memory::default());
    rig.register_with(0, None, facts("a"));
    rig.register_with(1, None, facts("b"));
    rig.ready_all();
    let Some(cause) = rig.group.view().cause else { panic!("no cause") };
    assert_eq!(cause.code, CauseCode::Preflight);
    assert!(cause.message.contains("the data set is b here"), "{}", cause.message);
    let mut rig = Rig::new(unknown, memory);
    rig.register_with(0, None, facts("b"));
    rig.register_with(1, None, facts("b"));
    rig.ready_all();
    assert!(rig.group.view().cause.is_some_and(|cause| cause.message.contains("for the job so far")));
}
