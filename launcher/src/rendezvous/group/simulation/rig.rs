//! One schedule: the group, its agents, the network between them, the faults, and the invariants.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::num::NonZeroU64;
use std::time::Duration;

use worker::rendezvous::message::{CauseKind, Registration, ToWorker};
use worker::units::{Generation, Incarnation, Rank, WorkerId};

use super::super::evidence::Cause;
use super::super::{
    Action, Event, Group, GroupConfig, Memory, Now, Outcome, Record, RecordId, RestartPolicy, Timing,
};
use super::Dice;
use super::agent::{Agent, Effect, Program, digest_of, evidence};
use crate::backend::{CauseCode, Phase};

mod servers;

use servers::Servers;

/// Milliseconds of virtual time in which faults happen.
const FAULTS_UNTIL: u64 = 700;
/// By then every job has ended (I6): all its limits one after the other, for every restart that it has.
const END: u64 = 120_000;
/// The group's tick and the agents' heartbeat, in milliseconds.
const BEAT: u64 = 40;
/// Messages of the past that may come again.
const HISTORY_MAX: usize = 32;

/// How a schedule ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Succeeded = 0,
    Failed = 1,
    Cancelled = 2,
}

/// What is going to happen. A launcher's events carry its life: a dead one's are void.
#[derive(Clone, Debug)]
enum Due {
    ToGroup(u32, Box<Event>),
    /// What a worker says in one breath arrives in that order, or not at all: it is one stream.
    Breath(u32, Vec<Event>),
    ToAgent(u32, Box<ToWorker>),
    Written(u32, RecordId, Box<Record>),
    Beat(u32),
    Tick(u32),
    Sweep(u32, Generation, Vec<WorkerId>),
    Gone(u32),
    Fault,
    Heal(WorkerId),
    Thaw(u32),
    NewLauncher,
}

pub(super) struct Rig {
    dice: Dice,
    verbose: bool,
    now: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    dues: Vec<Option<Due>>,
    free: Vec<usize>,
    config: GroupConfig,
    program: Program,
    group: Option<Group>,
    life: u32,
    journal: Vec<Record>,
    agents: BTreeMap<u32, Agent>,
    current: BTreeMap<WorkerId, u32>,
    next_pid: u32,
    cut_off: BTreeSet<WorkerId>,
    /// Stopped processes: they neither speak nor end.
    frozen: BTreeSet<u32>,
    history: Vec<Event>,
    loss: u64,
    // What the invariants need.
    living: BTreeMap<Generation, usize>,
    /// Ranks and stores of agents that were killed: alive until swept.
    orphans: BTreeMap<WorkerId, Vec<Generation>>,
    executed: BTreeSet<(Generation, Rank)>,
    gathered: (u32, Generation),
    failed_ranks: BTreeSet<(Generation, Rank)>,
    hurt_workers: BTreeSet<WorkerId>,
    was_cancelled: bool,
    checked: Generation,
    servers: Servers,
}

impl Rig {
    pub(super) fn new(seed: u64, verbose: bool) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let workers = 1 + dice.small(4);
        let ms = Duration::from_millis;
        let config = GroupConfig {
            workers,
            min_workers: if dice.percent(60) { workers } else { 1 + dice.small(workers) },
            spares: if dice.percent(60) { 0 } else { 1 + dice.small(2) },
            servers: if dice.percent(50) { 0 } else { 1 + dice.small(2) },
            ranks_per_worker: 1 + dice.small(2),
            steps_per_epoch: NonZeroU64::new(3),
            finds_workers: false,
            restarts: RestartPolicy { max: dice.small(12), window: ms(60_000), backoff: ms(5) },
            timing: Timing {
                heartbeat: ms(BEAT),
                lease: ms(10 * BEAT),
                launch: ms(1000),
                gather: ms(4000),
                last_call: ms(100),
                servers: ms(200),
                start: ms(1500),
                suspect: ms(20),
                stop_grace: ms(100),
                stop_margin: ms(300),
                resend: ms(2 * BEAT),
            },
            fingerprints: BTreeMap::new(),
        };
        let servers = Servers::new(config.servers > 0 && dice.percent(30));
        let steps = servers.steps(2 + dice.below(6));
        let program = Program { steps, commit_every: 1 + dice.below(3) };
        let loss = if dice.percent(50) && !servers.only { dice.below(25) } else { 0 };
        let mut rig = Self {
            verbose,
            now: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            dues: Vec::new(),
            free: Vec::new(),
            group: Some(Group::new(config.clone(), Memory::default())),
            config,
            program,
            life: 1,
            journal: Vec::new(),
            agents: BTreeMap::new(),
            current: BTreeMap::new(),
            next_pid: 100,
            cut_off: BTreeSet::new(),
            frozen: BTreeSet::new(),
            history: Vec::new(),
            loss,
            living: BTreeMap::new(),
            orphans: BTreeMap::new(),
            executed: BTreeSet::new(),
            gathered: (0, Generation(0)),
            failed_ranks: BTreeSet::new(),
            hurt_workers: BTreeSet::new(),
            was_cancelled: false,
            checked: Generation(0),
            servers,
            dice,
        };
        for _ in 0..rig.dice.below(6) {
            let at = rig.dice.below(FAULTS_UNTIL);
            rig.at(at, Due::Fault);
        }
        rig.at(0, Due::ToGroup(1, Box::new(Event::Start)));
        rig.at(0, Due::Tick(1));
        rig
    }

    pub(super) fn run(mut self) -> End {
        if self.verbose {
            println!("{:?}\n{:?} loss {} %", self.config, self.program, self.loss);
        }
        while let Some(Reverse((at, _, slot))) = self.queue.pop() {
            assert!(at < END, "I6: the job has not ended; it is {:?}", self.group.as_ref().map(Group::view));
            self.now = at;
            let Some(due) = self.dues[slot].take() else { continue };
            self.free.push(slot);
            if self.verbose && !matches!(due, Due::Beat(_) | Due::Tick(_)) {
                println!("{at:6} {due:?}");
            }
            self.happen(due);
            assert!(self.living.len() <= 1, "I1: two generations live: {:?}", self.living);
            if let Some(outcome) = self.group.as_ref().and_then(Group::outcome).cloned() {
                return self.end(&outcome);
            }
        }
        panic!("I6: nothing is due and the job has not ended");
    }

    fn end(&self, outcome: &Outcome) -> End {
        assert!(self.living.is_empty(), "something of {:?} is left", self.living);
        assert!(self.agents.values().all(|agent| !agent.is_alive), "a worker process is left");
        self.check_end_among_servers(outcome);
        match outcome {
            Outcome::Succeeded => {
                let summary = self.group.as_ref().map(Group::summary).expect("it has just ended");
                let steps = self.program.steps;
                let digest = (0..steps).map(digest_of).fold(0_u128, u128::wrapping_add);
                assert_eq!(summary.totals.steps, steps, "I3: steps");
                assert_eq!(summary.totals.digest.0, digest, "I3: order digest");
                End::Succeeded
            }
            Outcome::Failed { cause } => {
                self.check_cause(cause);
                End::Failed
            }
            Outcome::Cancelled => {
                assert!(self.was_cancelled, "nobody has cancelled it");
                End::Cancelled
            }
        }
    }

    fn check_cause(&self, cause: &Cause) {
        assert_ne!(cause.code, CauseCode::KilledByUs, "I7");
        assert!(cause.worker.is_none_or(|worker| worker.0 < self.first_server()), "I8: {cause:?}");
        let is_true = match (cause.rank, cause.worker) {
            (Some(rank), _) => self.failed_ranks.contains(&(cause.generation, rank)),
            (None, Some(worker)) => self.hurt_workers.contains(&worker) || self.loss > 0,
            (None, None) => cause.code == CauseCode::GatherTimeout,
        };
        assert!(is_true, "I7: {cause:?} did not happen");
    }

    fn at(&mut self, at: u64, due: Due) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.dues.push(None);
            self.dues.len() - 1
        });
        self.dues[slot] = Some(due);
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence, slot)));
    }

    fn soon(&mut self, limit: u64, due: Due) {
        let at = self.now + self.dice.below(limit);
        self.at(at, due);
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::ToGroup(life, event) if life == self.life => self.tell_group(*event),
            Due::Breath(life, events) if life == self.life => {
                for event in events {
                    self.tell_group(event);
                }
            }
            Due::Written(life, id, record) if life == self.life => {
                self.journal.push(*record);
                self.soon(3, Due::ToGroup(life, Box::new(Event::Persisted(id))));
            }
            Due::Tick(life) if life == self.life => {
                self.tell_group(Event::Tick);
                self.check_rosters();
                self.at(self.now + BEAT, Due::Tick(life));
            }
            Due::Sweep(life, generation, workers) => self.sweep(life, generation, &workers),
            Due::ToAgent(pid, message) => {
                self.with_agent(pid, |agent, out| agent.hear(*message, out));
            }
            Due::Beat(pid) => self.beat(pid),
            Due::Gone(pid) => {
                let worker = self.agents[&pid].worker;
                let gone = Event::Gone { worker, pid, how: "ended".to_owned() };
                self.at(self.now, Due::ToGroup(self.life, Box::new(gone)));
            }
            Due::Fault => self.fault(),
            Due::Heal(worker) => {
                self.cut_off.remove(&worker);
            }
            Due::Thaw(pid) => {
                self.frozen.remove(&pid);
                self.at(self.now, Due::Beat(pid));
            }
            Due::NewLauncher => {
                self.life += 1;
                self.group = Some(Group::new(self.config.clone(), Memory::of(&self.journal)));
                self.at(self.now, Due::ToGroup(self.life, Box::new(Event::Start)));
                self.at(self.now, Due::Tick(self.life));
            }
            // A dead launcher's.
            Due::ToGroup(..) | Due::Breath(..) | Due::Written(..) | Due::Tick(_) => {}
        }
    }

    fn tell_group(&mut self, event: Event) {
        let Some(group) = &mut self.group else { return };
        if matches!(event, Event::Registered(_) | Event::Message { .. }) && self.dice.percent(10) {
            if self.history.len() >= HISTORY_MAX {
                self.history.remove(0);
            }
            self.history.push(event.clone());
        }
        let now = Now { elapsed: Duration::from_millis(self.now), unix_ns: self.now * 1_000_000 };
        let actions = group.handle(event, now);
        if group.phase() == Phase::Running && group.generation() != self.checked {
            self.checked = group.generation();
            let world_size = group.view().world_size;
            for rank in (0..world_size).map(Rank) {
                assert!(self.executed.contains(&(self.checked, rank)), "I4: rank {rank} is not there");
            }
        }
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        let life = self.life;
        match action {
            Action::Persist { id, record } => {
                if let Record::Fence { cause: Some(cause), .. } = record.as_ref() {
                    self.check_cause(cause);
                }
                // Writing keeps its order; a launcher that dies before it is done has not written.
                self.at(self.now + 1, Due::Written(life, id, record));
            }
            Action::Launch { worker } => self.launch(worker),
            Action::Sweep { generation, workers } => self.soon(10, Due::Sweep(life, generation, workers)),
            Action::Send { worker, incarnation, message } => self.send(worker, incarnation, &message),
            Action::Restarting { cause, .. } => self.check_cause(&cause),
            Action::Server { worker, .. } => assert!(worker.0 >= self.first_server(), "it is none"),
            Action::Done(_) => {}
        }
    }

    fn send(&mut self, worker: WorkerId, incarnation: Incarnation, message: &ToWorker) {
        if let ToWorker::Gather { generation } = *message {
            let (life, last) = self.gathered;
            let grows = generation > last || generation == last && life == self.life;
            assert!(grows, "I5: generation {generation} after {last}");
            self.gathered = (self.life, generation);
        }
        match *message {
            ToWorker::Gather { generation } => {
                let taken = self.journal.contains(&Record::Generation { generation });
                assert!(taken, "generation {generation} is gathered before that is written");
            }
            ToWorker::Fence { generation, .. } => {
                let fenced = Memory::of(&self.journal).fenced;
                assert!(fenced >= generation, "generation {generation} is fenced before that is written");
            }
            _ => {}
        }
        let Some(pid) = self.agents.values().find(|a| a.incarnation() == incarnation).map(|a| a.pid) else {
            return;
        };
        if self.cut_off.contains(&worker) {
            return;
        }
        for _ in 0..self.copies() {
            self.soon(12, Due::ToAgent(pid, Box::new(message.clone())));
        }
    }

    /// How often a message arrives.
    fn copies(&mut self) -> u32 {
        if self.now > FAULTS_UNTIL || self.loss == 0 {
            1
        } else if self.dice.percent(self.loss) {
            0
        } else {
            1 + u32::from(self.dice.percent(5))
        }
    }

    fn launch(&mut self, worker: WorkerId) {
        let old = self.current.get(&worker).and_then(|pid| self.agents.get(pid));
        assert!(old.is_none_or(|old| !old.is_alive), "a worker is launched beside another of its number");
        let pid = self.next_pid;
        self.next_pid += 1;
        let mut agent = Agent::new(worker, pid, self.now);
        agent.faults = self.found_by(worker);
        self.agents.insert(pid, agent);
        self.current.insert(worker, pid);
        let life = self.life;
        self.at(self.now, Due::ToGroup(life, Box::new(Event::Launched { worker, pid })));
        self.soon(20, Due::Beat(pid));
    }

    fn beat(&mut self, pid: u32) {
        let now = self.now;
        let lease = u64::try_from(self.config.timing.lease.as_millis()).unwrap_or(u64::MAX);
        let program = self.program;
        if self.frozen.contains(&pid) {
            return;
        }
        let Some(agent) = self.agents.get_mut(&pid).filter(|agent| agent.is_alive) else { return };
        let worker = agent.worker;
        if !self.cut_off.contains(&worker) {
            agent.last_contact = now;
        }
        if now > agent.last_contact + lease {
            // It gives up before the launcher may.
            self.with_agent(pid, |agent, out| {
                agent.stop(out);
                out.push(Effect::Exit);
            });
            return;
        }
        if !agent.is_welcome {
            let registration = agent.registration();
            self.register(worker, &registration);
        }
        self.with_agent(pid, |agent, out| {
            agent.step(program, out);
            agent.say_again(out);
        });
        self.at(now + BEAT, Due::Beat(pid));
    }

    fn register(&mut self, worker: WorkerId, registration: &Registration) {
        if self.cut_off.contains(&worker) {
            return;
        }
        for _ in 0..self.copies() {
            let event = Event::Registered(Box::new(registration.clone()));
            self.soon(12, Due::ToGroup(self.life, Box::new(event)));
        }
    }

    fn with_agent(&mut self, pid: u32, act: impl FnOnce(&mut Agent, &mut Vec<Effect>)) {
        if self.frozen.contains(&pid) {
            return;
        }
        let Some(agent) = self.agents.get_mut(&pid).filter(|agent| agent.is_alive) else { return };
        let mut out = Vec::new();
        act(agent, &mut out);
        let (worker, incarnation, is_welcome) = (agent.worker, agent.incarnation(), agent.is_welcome);
        let mut breath = Vec::new();
        for effect in out {
            match effect {
                Effect::Say(message) if is_welcome && !self.cut_off.contains(&worker) => {
                    breath.push(Event::Message { worker, incarnation, message });
                }
                Effect::Say(_) => {}
                Effect::Executed(generation, rank) => {
                    assert!(self.executed.insert((generation, rank)), "I2: {generation}/{rank} runs twice");
                    *self.living.entry(generation).or_default() += 1;
                }
                Effect::StoreOpened(generation) => *self.living.entry(generation).or_default() += 1,
                Effect::Stopped(generation, count) => self.died(generation, count),
                Effect::Failed(generation, rank) => {
                    self.failed_ranks.insert((generation, rank));
                }
                Effect::Exit => self.exit(pid),
            }
        }
        if !breath.is_empty() {
            for copy in 0..self.copies() {
                // A second copy may come much later.
                let limit = if copy == 0 { 12 } else { 500 };
                self.soon(limit, Due::Breath(self.life, breath.clone()));
            }
        }
    }

    fn died(&mut self, generation: Generation, count: usize) {
        let left = self.living.get_mut(&generation).expect("only what lives can die");
        *left -= count;
        if *left == 0 {
            self.living.remove(&generation);
        }
    }

    fn exit(&mut self, pid: u32) {
        if let Some(agent) = self.agents.get_mut(&pid)
            && std::mem::replace(&mut agent.is_alive, false)
        {
            self.hurt_workers.insert(agent.worker);
            self.soon(10, Due::Gone(pid));
        }
    }

    /// SIGKILL to the agent: its ranks and its store's clients do not notice.
    fn kill(&mut self, pid: u32) {
        let Some(agent) = self.agents.get_mut(&pid).filter(|agent| agent.is_alive) else { return };
        let worker = agent.worker;
        let mut out = Vec::new();
        agent.stop(&mut out);
        for effect in out {
            if let Effect::Stopped(generation, count) = effect {
                self.orphans.entry(worker).or_default().extend(std::iter::repeat_n(generation, count));
            }
        }
        self.exit(pid);
    }

    fn sweep(&mut self, life: u32, generation: Generation, workers: &[WorkerId]) {
        for worker in workers {
            if let Some(pid) = self.current.get(worker).copied() {
                self.kill(pid);
            }
            for generation in self.orphans.remove(worker).unwrap_or_default() {
                self.died(generation, 1);
            }
        }
        let swept = Event::Swept { generation, workers: workers.to_vec() };
        self.soon(20, Due::ToGroup(life, Box::new(swept)));
    }

    fn fault(&mut self) {
        if self.servers.only {
            return self.fault_of_a_server();
        }
        let worker = WorkerId(self.dice.small(self.first_server() + self.config.servers));
        let pid = self.current.get(&worker).copied().unwrap_or(0);
        let kind = match self.dice.below(100) {
            0..16 => return self.kill(pid),
            16..20 => {
                // Somebody asks it to end: it ends its ranks and says so, which is no cause.
                self.hurt_workers.insert(worker);
                return self.with_agent(pid, |agent, out| {
                    agent.stop(out);
                    out.push(Effect::Exit);
                });
            }
            20..25 => {
                self.hurt_workers.insert(worker);
                self.frozen.insert(pid);
                if self.dice.percent(50) {
                    self.soon(1500, Due::Thaw(pid));
                }
                return;
            }
            25..37 => CauseKind::Exception,
            37..45 => CauseKind::Signal,
            45..48 => CauseKind::Data,
            48..52 => CauseKind::OutOfMemory,
            52..57 => CauseKind::PeerInduced,
            57..72 => {
                self.cut_off.insert(worker);
                self.hurt_workers.insert(worker);
                return self.soon(900, Due::Heal(worker));
            }
            72..80 => {
                // Its connection breaks: it registers again.
                if let Some(agent) = self.agents.get_mut(&pid) {
                    agent.is_welcome = false;
                }
                return;
            }
            80..90 => {
                // The dead speak.
                let pick = usize::try_from(self.dice.roll() % 64).unwrap_or(0);
                if let Some(event) = self.history.get(pick % self.history.len().max(1)).cloned() {
                    self.soon(50, Due::ToGroup(self.life, Box::new(event)));
                }
                return;
            }
            90..97 => return self.kill_launcher(),
            _ => {
                self.was_cancelled = true;
                let now = self.dice.percent(30);
                return self.at(self.now, Due::ToGroup(self.life, Box::new(Event::Cancel { now })));
            }
        };
        let pick = usize::try_from(self.dice.roll() % 8).unwrap_or(0);
        let seen = evidence(kind, self.now * 1_000_000, None);
        if kind == CauseKind::PeerInduced {
            // Only ever an answer to somebody else's end.
            let other = self.current.values().copied().find(|other| *other != pid).unwrap_or(pid);
            let first = evidence(CauseKind::Exception, self.now * 1_000_000, None);
            self.with_agent(other, |agent, out| agent.fail_a_rank(pick, first, out));
        }
        self.with_agent(pid, |agent, out| agent.fail_a_rank(pick, seen, out));
    }

    /// The launcher dies: what it had not written is not written, and its workers see their pipes close.
    fn kill_launcher(&mut self) {
        if self.group.take().is_none() {
            return;
        }
        self.life += 1;
        let pids: Vec<u32> = self.current.values().copied().collect();
        for pid in pids {
            if self.dice.percent(60) {
                self.with_agent(pid, |agent, out| {
                    agent.stop(out);
                    out.push(Effect::Exit);
                });
            }
        }
        self.hurt_workers.extend(self.current.keys());
        let at = self.now + 1 + self.dice.below(200);
        self.at(at, Due::NewLauncher);
    }
}
