//! What can be seen of a group from outside: for status, progress and the summary.

use std::collections::BTreeMap;

use datapath::Counters;
use worker::rendezvous::message::{DataFacts, ExitStatus};
use worker::units::{Generation, Rank, Step, WorkerId};

use crate::backend::Phase;

use super::evidence::Cause;
use super::memory::{GroupSummary, Outcome};
use super::progress::{Settled, Work};
use super::state::{EndStage, State, World};
use super::{Group, Member};

/// A group at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// How far it is.
    pub phase: Phase,
    /// The generation.
    pub generation: Generation,
    /// Restarts so far.
    pub restarts: u32,
    /// Workers with ranks.
    pub workers: u32,
    /// Ranks of them.
    pub world_size: u32,
    /// The next step that not every rank has acknowledged.
    pub step: Step,
    /// The committed step.
    pub committed: Step,
    /// Why it failed, or last restarted.
    pub cause: Option<Cause>,
    /// What is waited for; may be empty.
    pub waiting_for: String,
}

/// One rank at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankView {
    /// Which.
    pub rank: Rank,
    /// Its worker.
    pub worker: WorkerId,
    /// Its host's name.
    pub host: String,
    /// Its process while it runs.
    pub pid: Option<u32>,
    /// How it ended.
    pub exit: Option<ExitStatus>,
    /// Steps that it acknowledged.
    pub step: Step,
    /// Steps that it saved.
    pub committed: Step,
}

impl Group {
    /// How far the job is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Pending | State::Clearing { .. } => Phase::Pending,
            State::Gathering { .. } => Phase::Gathering,
            State::Preflight { .. } => Phase::Preflight,
            State::Assigned { .. } => Phase::Assigned,
            State::Joining { .. } => Phase::Joining,
            State::Running { .. } => Phase::Running,
            State::Suspect { .. } => Phase::Suspect,
            State::Ending { outcome: Outcome::Succeeded, stage: EndStage::Recording(_) } => Phase::Running,
            State::Fencing { .. } | State::Ending { stage: EndStage::Recording(_), .. } => Phase::Fencing,
            State::Ending { outcome, .. } | State::Over(outcome) => match outcome {
                Outcome::Succeeded => Phase::Succeeded,
                Outcome::Failed { .. } => Phase::Failed,
                Outcome::Cancelled => Phase::Cancelled,
            },
        }
    }

    /// The generation that is being gathered or runs; 0 before the first.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// How the job ended, when nothing of it is left.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.state {
            State::Over(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Everything but the ranks.
    #[must_use]
    pub fn view(&self) -> View {
        let world = self.world();
        let seats = world.map_or(self.seats.len(), |world| world.seats.len());
        let workers = match u32::try_from(seats) {
            Ok(0) | Err(_) => self.config.workers,
            Ok(workers) => workers,
        };
        let mut view = View {
            phase: self.phase(),
            generation: self.generation,
            restarts: self.restarts,
            workers,
            world_size: workers.saturating_mul(self.config.ranks_per_worker),
            step: world.map_or(self.start.committed, |world| world.progress.step()),
            committed: world.map_or(self.start.committed, |world| world.progress.committed()),
            cause: self.last_cause.clone(),
            waiting_for: self.waiting_for(),
        };
        if let Some(ended) = &self.ended {
            view.step = Step(ended.totals.steps);
            view.committed = ended.committed;
        }
        view
    }

    /// The ranks of the active generation, or of the last one when the job is over.
    #[must_use]
    pub fn ranks(&self) -> Vec<RankView> {
        let Some(world) = self.world() else { return self.last_ranks.clone() };
        (0..world.world_size()).filter_map(|rank| rank_view(world, Rank(rank))).collect()
    }

    /// The numbers so far.
    #[must_use]
    pub fn summary(&self) -> GroupSummary {
        if let Some(ended) = &self.ended {
            return ended.clone();
        }
        let (totals, work, committed) = match self.world() {
            Some(world) => (world.progress.totals(), world.progress.work(), world.progress.committed()),
            None => (self.start.settled.clone(), self.start.work, self.start.committed),
        };
        let Settled { totals, epochs } = totals;
        GroupSummary {
            generation: self.generation,
            restarts: self.restarts,
            world_size: self.view().world_size,
            committed,
            totals,
            epochs,
            work,
            reported: self.reported.clone(),
            counters: self.counters(),
            server_counters: self.server_counters(),
        }
    }

    /// What was consumed so far, repeated steps included.
    #[must_use]
    pub fn work(&self) -> Work {
        match (self.world(), &self.ended) {
            (Some(world), _) => world.progress.work(),
            (None, Some(ended)) => ended.work,
            (None, None) => self.start.work,
        }
    }

    /// All workers' data planes together, since this launcher's start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = self.counters_of_the_gone;
        for counters in self.counters.values() {
            sum += *counters;
        }
        sum
    }

    /// The data servers' alone.
    fn server_counters(&self) -> Counters {
        let mut sum = self.server_counters_of_the_gone;
        for (_, counters) in self.counters.iter().filter(|(worker, _)| self.is_server(**worker)) {
            sum += *counters;
        }
        sum
    }

    /// When the job is over its workers still tell what they did until they heard of it.
    pub(super) fn count_last_words(&mut self) {
        if self.ended.is_none() {
            return;
        }
        let (counters, server_counters) = (self.counters(), self.server_counters());
        if let Some(ended) = &mut self.ended {
            (ended.counters, ended.server_counters) = (counters, server_counters);
        }
    }

    /// The data set, where the workers found it and agree.
    #[must_use]
    pub fn data(&self) -> Option<&DataFacts> {
        self.data.as_ref()
    }

    /// The values that trainers reported, in all generations.
    #[must_use]
    pub fn reported(&self) -> &BTreeMap<String, f64> {
        &self.reported
    }

    fn waiting_for(&self) -> String {
        let list = |workers: Vec<WorkerId>| {
            let names: Vec<String> = workers.iter().map(ToString::to_string).collect();
            names.join(", ")
        };
        match &self.state {
            State::Gathering { .. } => {
                let missing = self.candidates().filter(|(_, member)| !member.is_eligible());
                let missing: Vec<WorkerId> = missing.map(|(worker, _)| *worker).collect();
                if missing.is_empty() { String::new() } else { format!("workers {}", list(missing)) }
            }
            State::Preflight { members, .. } => {
                let late = members.iter().copied().filter(|worker| {
                    self.members.get(worker).and_then(Member::present).is_none_or(|p| p.ready.is_none())
                });
                let late: Vec<WorkerId> = late.collect();
                match late.is_empty() {
                    true => format!("data servers (workers {})", list(self.awaited_servers())),
                    false => format!("the checks of workers {}", list(late)),
                }
            }
            State::Assigned { .. } => "the store".to_owned(),
            State::Joining { world } => {
                let late = world.seats.iter().map(|seat| seat.worker);
                let late: Vec<WorkerId> = late.filter(|worker| !world.started.contains(worker)).collect();
                format!("the start of workers {}", list(late))
            }
            _ => String::new(),
        }
    }
}

fn rank_view(world: &World, rank: Rank) -> Option<RankView> {
    let seat = world.owner(rank)?;
    let exit = world.exits.get(&rank).copied();
    let position = world.progress.position(rank)?;
    Some(RankView {
        rank,
        worker: seat.worker,
        host: seat.host.clone(),
        pid: if exit.is_some() { None } else { world.pids.get(&rank).copied() },
        exit,
        step: position.step,
        committed: position.committed,
    })
}
