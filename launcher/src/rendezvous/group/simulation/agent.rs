//! A worker, reduced to what the group can see of it: what it answers, what it runs, and how it dies.

use std::collections::BTreeMap;

use datapath::Counters;
use datapath::order::OrderDigest;
use datapath::plane::Role;
use worker::rendezvous::message::{
    Assignment, CauseKind, ConsumedStep, Evidence, ExitStatus, HostFacts, PeerAddress, PreflightFault,
    RankProgress, Registration, ToLauncher, ToWorker,
};
use worker::units::{Generation, Incarnation, Rank, Step, WorkerId};

/// One worker process and its ranks. The ranks of a killed agent live on until they are swept.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) worker: WorkerId,
    pub(super) pid: u32,
    pub(super) is_alive: bool,
    pub(super) is_welcome: bool,
    pub(super) last_contact: u64,
    /// No generation up to this one will ever run here.
    floor: Generation,
    pub(super) run: Option<Run>,
    /// What its check finds, as long as it lives.
    pub(super) faults: Vec<PreflightFault>,
}

#[derive(Debug)]
pub(super) struct Run {
    pub(super) generation: Generation,
    /// The list of peers, by its number; of it the data servers.
    roster: u64,
    pub(super) servers: Vec<WorkerId>,
    assignment: Option<Assignment>,
    has_store: bool,
    ranks: Vec<RankProcess>,
    is_started: bool,
}

#[derive(Debug)]
struct RankProcess {
    rank: Rank,
    next: u64,
    committed: u64,
    exit: Option<(ExitStatus, Option<Evidence>)>,
}

/// What happened inside an agent that others must know.
#[derive(Debug)]
pub(super) enum Effect {
    Say(ToLauncher),
    /// A rank was executed.
    Executed(Generation, Rank),
    /// Ranks or a store of it live no longer.
    Stopped(Generation, usize),
    StoreOpened(Generation),
    /// The process ends.
    Exit,
    /// A rank fails on its own; its peers may follow.
    Failed(Generation, Rank),
}

/// What a job does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    pub(super) steps: u64,
    pub(super) commit_every: u64,
}

impl Agent {
    pub(super) fn new(worker: WorkerId, pid: u32, now: u64) -> Self {
        Self {
            worker,
            pid,
            is_alive: true,
            is_welcome: false,
            last_contact: now,
            floor: Generation(0),
            run: None,
            faults: Vec::new(),
        }
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        Incarnation(u64::from(self.pid) * 7919)
    }

    pub(super) fn registration(&self) -> Registration {
        Registration {
            worker: self.worker,
            incarnation: self.incarnation(),
            pid: self.pid,
            host: HostFacts::default(),
            data_address: None,
            running: self.run.as_ref().map(|run| run.generation),
            data: None,
        }
    }

    pub(super) fn hear(&mut self, message: ToWorker, out: &mut Vec<Effect>) {
        match message {
            ToWorker::Welcome { .. } => {
                self.is_welcome = true;
                self.say_again(out);
            }
            ToWorker::Refuse { .. } | ToWorker::Finish => {
                self.stop(out);
                out.push(Effect::Exit);
            }
            ToWorker::Gather { generation } if generation > self.floor => {
                if self.run.as_ref().is_some_and(|run| run.generation < generation) {
                    self.stop(out);
                }
                self.run.get_or_insert_with(|| Run {
                    generation,
                    roster: 0,
                    servers: Vec::new(),
                    assignment: None,
                    has_store: false,
                    ranks: Vec::new(),
                    is_started: false,
                });
                self.say_again(out);
            }
            ToWorker::Assign(assignment) => self.assign(assignment, out),
            ToWorker::Peers { generation, roster, peers } => self.meet(generation, roster, &peers),
            ToWorker::Start { generation, .. } => self.start(generation, out),
            ToWorker::Fence { generation, .. } => {
                if self.run.as_ref().is_some_and(|run| run.generation <= generation) {
                    self.stop(out);
                }
                if self.run.is_none() {
                    self.floor = self.floor.max(generation);
                }
                out.push(Effect::Say(ToLauncher::Fenced { generation }));
            }
            ToWorker::Gather { .. } => {}
        }
    }

    fn assign(&mut self, assignment: Assignment, out: &mut Vec<Effect>) {
        let Some(run) = self.run.as_mut().filter(|run| run.generation == assignment.generation) else {
            return;
        };
        if run.assignment.is_none() {
            run.has_store = assignment.serves_store;
            if run.has_store {
                out.push(Effect::StoreOpened(run.generation));
            }
            run.roster = assignment.roster;
            run.servers = servers(&assignment.peers);
            run.assignment = Some(assignment);
        }
        self.say_again(out);
    }

    fn meet(&mut self, generation: Generation, roster: u64, peers: &[PeerAddress]) {
        let run = self.run.as_mut().filter(|run| run.generation == generation && run.assignment.is_some());
        if let Some(run) = run.filter(|run| roster > run.roster) {
            run.roster = roster;
            run.servers = servers(peers);
        }
    }

    fn start(&mut self, generation: Generation, out: &mut Vec<Effect>) {
        let Some(run) = self.run.as_mut().filter(|run| run.generation == generation) else { return };
        let Some(assignment) = &run.assignment else { return };
        if !run.is_started {
            run.is_started = true;
            let from = assignment.start_step.0;
            for rank in &assignment.ranks {
                out.push(Effect::Executed(generation, *rank));
                run.ranks.push(RankProcess { rank: *rank, next: from, committed: from, exit: None });
            }
        }
        self.say_again(out);
    }

    /// Every rank makes a step or ends.
    pub(super) fn step(&mut self, program: Program, out: &mut Vec<Effect>) {
        let Some(run) = &mut self.run else { return };
        for rank in run.ranks.iter_mut().filter(|rank| rank.exit.is_none()) {
            if rank.next >= program.steps {
                rank.exit = Some((ExitStatus::Code { code: 0 }, None));
                out.push(Effect::Stopped(run.generation, 1));
                continue;
            }
            rank.next += 1;
            if rank.next % program.commit_every == 0 {
                rank.committed = rank.next;
            }
        }
    }

    /// One of its ranks ends by itself. Returns which.
    pub(super) fn fail_a_rank(&mut self, pick: usize, evidence: Evidence, out: &mut Vec<Effect>) {
        let Some(run) = &mut self.run else { return };
        let generation = run.generation;
        let mut living: Vec<&mut RankProcess> =
            run.ranks.iter_mut().filter(|rank| rank.exit.is_none()).collect();
        if living.is_empty() {
            return;
        }
        let count = living.len();
        let rank = &mut living[pick % count];
        let evidence = Evidence { rank: Some(rank.rank), ..evidence };
        let is_signal = evidence.cause == CauseKind::Signal;
        let status = if is_signal { ExitStatus::Signal { signal: 9 } } else { ExitStatus::Code { code: 1 } };
        out.push(Effect::Failed(generation, rank.rank));
        rank.exit = Some((status, Some(evidence)));
        out.push(Effect::Stopped(generation, 1));
        self.say_again(out);
    }

    /// Ends the current generation here: ranks, store and all. What the ranks' ends look like is our doing.
    pub(super) fn stop(&mut self, out: &mut Vec<Effect>) {
        let Some(run) = self.run.take() else { return };
        self.floor = self.floor.max(run.generation);
        let mut living = usize::from(run.has_store);
        for rank in run.ranks.iter().filter(|rank| rank.exit.is_none()) {
            living += 1;
            let evidence = evidence(CauseKind::KilledByUs, 0, Some(rank.rank));
            out.push(Effect::Say(ToLauncher::Exited {
                generation: run.generation,
                rank: rank.rank,
                status: ExitStatus::Signal { signal: 15 },
                evidence: Some(evidence),
            }));
        }
        if living > 0 {
            out.push(Effect::Stopped(run.generation, living));
        }
    }

    /// Everything that is true here now; also the heartbeat. Nothing is ever acknowledged, so all of it is repeated.
    pub(super) fn say_again(&self, out: &mut Vec<Effect>) {
        let Some(run) = &self.run else {
            return out.push(Effect::Say(heartbeat(Generation(0), 0, Vec::new())));
        };
        let generation = run.generation;
        let mut say = |message| out.push(Effect::Say(message));
        let Some(assignment) = &run.assignment else {
            return say(ToLauncher::Ready { generation, faults: self.faults.clone() });
        };
        if run.has_store && !run.is_started {
            say(ToLauncher::StoreOpen { generation, address: ([127, 0, 0, 1], 1).into() });
        }
        if run.is_started {
            say(ToLauncher::Started { generation, pids: BTreeMap::new() });
        }
        let from = assignment.start_step.0;
        let progress = run.ranks.iter().map(|rank| RankProgress {
            rank: rank.rank,
            consumed: (from..rank.next)
                .map(|step| consumed(step, rank.rank, assignment.world_size))
                .collect(),
            committed: Some(Step(rank.committed)),
            reported: BTreeMap::new(),
            ended: rank.exit.is_some(),
        });
        // Before its start a worker tells of no generation.
        let roster = if run.is_started { run.roster } else { 0 };
        say(heartbeat(generation, roster, progress.collect()));
        for rank in &run.ranks {
            if let Some((status, evidence)) = &rank.exit {
                say(ToLauncher::Exited {
                    generation,
                    rank: rank.rank,
                    status: *status,
                    evidence: evidence.clone(),
                });
            }
        }
    }
}

fn servers(peers: &[PeerAddress]) -> Vec<WorkerId> {
    peers.iter().filter(|peer| peer.role == Role::Server).map(|peer| peer.worker).collect()
}

fn heartbeat(generation: Generation, roster: u64, progress: Vec<RankProgress>) -> ToLauncher {
    ToLauncher::Heartbeat { generation, progress, counters: Counters::default(), roster }
}

/// An observation.
pub(super) fn evidence(cause: CauseKind, seen_unix_ns: u64, rank: Option<Rank>) -> Evidence {
    Evidence { rank, cause, seen_unix_ns, message: String::new(), hint: String::new(), log_tail: Vec::new() }
}

/// A rank's share of a step: shares differ, their sum is [`digest_of`] for any world size.
fn consumed(step: u64, rank: Rank, world_size: u32) -> ConsumedStep {
    let share = |rank: u32| u128::from(step + 1) * u128::from(rank + 3) * 0x9e37_79b9_7f4a_7c15;
    let digest = if rank.0 + 1 < world_size {
        share(rank.0)
    } else {
        (0..rank.0).fold(digest_of(step), |left, other| left.wrapping_sub(share(other)))
    };
    ConsumedStep { step: Step(step), samples: 1, bytes: 1, digest: OrderDigest(digest) }
}

/// A step's order digest.
pub(super) fn digest_of(step: u64) -> u128 {
    (u128::from(step) + 1).wrapping_mul(0xda94_2042_e4dd_58b5_9e37_79b9_7f4a_7c15)
}
