//! Data servers in a schedule: what happens to them, and what must not follow from it.

use std::collections::BTreeSet;

use worker::rendezvous::message::PreflightFault;
use worker::units::{Generation, WorkerId};

use super::super::super::{Group, Outcome, ServerState};
use super::{BEAT, Due, Effect, Rig};
use crate::backend::Phase;

/// Steps of a job whose data servers alone have trouble: it is still running when they had it.
const STEPS: u64 = 25;
/// Milliseconds after which all workers have the latest list of peers, where no message is lost.
const SETTLED: u64 = 8 * BEAT;

/// What a schedule knows of its data servers.
#[derive(Debug)]
pub(super) struct Servers {
    /// Nobody else has trouble.
    pub(super) only: bool,
    serving: BTreeSet<WorkerId>,
    changed: u64,
}

impl Servers {
    pub(super) fn new(only: bool) -> Self {
        Self { only, serving: BTreeSet::new(), changed: 0 }
    }

    pub(super) fn steps(&self, otherwise: u64) -> u64 {
        if self.only { STEPS } else { otherwise }
    }
}

impl Rig {
    pub(super) fn first_server(&self) -> u32 {
        self.config.workers + self.config.spares
    }

    /// What a new process finds when it opens the data: some data servers cannot read them.
    pub(super) fn found_by(&mut self, worker: WorkerId) -> Vec<PreflightFault> {
        if worker.0 < self.first_server() || !self.dice.percent(15) {
            return Vec::new();
        }
        let (code, message, hint) = ("source_unreadable".to_owned(), "cannot read".to_owned(), String::new());
        vec![PreflightFault { code, message, hint }]
    }

    /// It dies, is told to end, stops, or cannot be reached for a while.
    pub(super) fn fault_of_a_server(&mut self) {
        let worker = WorkerId(self.first_server() + self.dice.small(self.config.servers));
        let pid = self.current.get(&worker).copied().unwrap_or(0);
        match self.dice.below(100) {
            0..45 => self.kill(pid),
            45..55 => self.with_agent(pid, |agent, out| {
                agent.stop(out);
                out.push(Effect::Exit);
            }),
            55..70 => {
                self.frozen.insert(pid);
                if self.dice.percent(50) {
                    self.soon(1500, Due::Thaw(pid));
                }
            }
            70..85 => {
                self.cut_off.insert(worker);
                self.soon(900, Due::Heal(worker));
            }
            _ => {
                if let Some(agent) = self.agents.get_mut(&pid) {
                    agent.is_welcome = false;
                }
            }
        }
    }

    /// I8.
    pub(super) fn check_end_among_servers(&self, outcome: &Outcome) {
        if self.servers.only {
            assert_eq!(*outcome, Outcome::Succeeded, "I8");
            let view = self.group.as_ref().map(Group::view).expect("it has just ended");
            assert_eq!((view.generation, view.restarts), (Generation(1), 0), "I8");
        }
    }

    /// I9.
    pub(super) fn check_rosters(&mut self) {
        let Some(group) = &self.group else { return };
        let serving = group.servers().into_iter().filter(|server| server.state == ServerState::Serving);
        let serving: BTreeSet<WorkerId> = serving.map(|server| server.worker).collect();
        if serving != self.servers.serving || group.phase() != Phase::Running || !self.servers.only {
            (self.servers.serving, self.servers.changed) = (serving, self.now);
            return;
        }
        if self.now < self.servers.changed + SETTLED {
            return;
        }
        let with_ranks =
            self.agents.values().filter(|agent| agent.is_alive && agent.worker.0 < self.config.workers);
        for agent in with_ranks {
            let run = agent.run.as_ref().expect("it runs");
            let known: BTreeSet<WorkerId> = run.servers.iter().copied().collect();
            assert_eq!(known, serving, "I9: worker {} in generation {}", agent.worker, run.generation);
        }
    }
}
