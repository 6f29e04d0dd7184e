//! What the sidecar knows of the ranks' container, and what follows from what happens (pure).
//!
//! ```text
//! nobody there:  Launch waits ── Hello ──► sent ── Started, Exited …, Stopped ──► nothing runs
//!                    │ Stop: Stopped at once      │ connection lost: every living rank is told as gone,
//!                    ▼                            ▼ and Stopped only when nothing can be left
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::pod::message::{FromRanks, Surroundings, ToRanks};
use crate::ranks::{Prepare, RanksEvent};
use crate::rendezvous::message::ExitStatus;
use crate::supervisor::{Container, RankExit, SupervisorEvent};
use crate::units::{Generation, Rank};

/// What the kernel ends the other processes of a container with, when its first one ends (pid_namespaces(7)).
const KILL: i32 = 9;

/// What the agent wants.
pub(super) enum Order {
    Launch { generation: Generation, ranks: Vec<Rank>, prepare: Prepare },
    Stop { generation: Generation, grace: Duration },
    Over,
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch { generation, .. } => write!(f, "Launch({generation})"),
            Self::Stop { generation, .. } => write!(f, "Stop({generation})"),
            Self::Over => f.write_str("Over"),
        }
    }
}

/// What is to be done, in this order.
#[derive(Debug)]
pub(super) enum Do {
    Send(ToRanks),
    Tell(RanksEvent),
    /// Call [`Desk::gone`] when nothing of the lost container can run any more.
    WaitForEnd,
}

/// The state.
#[derive(Default)]
pub(super) struct Desk {
    /// Whoever is there, and what it found around it.
    there: Option<Surroundings>,
    /// A launch that nobody was there for.
    waiting: Option<Waiting>,
    /// What was sent and has not been told as stopped.
    running: Option<Running>,
    over: bool,
}

struct Waiting {
    generation: Generation,
    ranks: Vec<Rank>,
    prepare: Prepare,
}

struct Running {
    generation: Generation,
    living: BTreeSet<Rank>,
    stop_asked: bool,
    /// Its container is gone.
    lost: bool,
}

impl Desk {
    /// Whether the ranks' container has something to do: a launch waits, it is there, or it must learn that all is over.
    pub(super) fn wants_ranks(&self) -> bool {
        self.over || self.there.is_some() || self.waiting.is_some()
    }

    pub(super) fn order(&mut self, order: Order) -> Vec<Do> {
        match order {
            Order::Launch { generation, ranks, prepare } => {
                self.waiting = Some(Waiting { generation, ranks, prepare });
                self.launch()
            }
            Order::Stop { generation, grace } => self.stop(generation, grace),
            Order::Over => {
                self.over = true;
                self.waiting = None;
                if self.there.is_some() { vec![Do::Send(ToRanks::Over)] } else { Vec::new() }
            }
        }
    }

    pub(super) fn message(&mut self, message: FromRanks) -> Vec<Do> {
        let event = match message {
            FromRanks::Hello(surroundings) => {
                self.there = Some(surroundings);
                return if self.over { vec![Do::Send(ToRanks::Over)] } else { self.launch() };
            }
            FromRanks::Terminating => {
                let Some(running) = self.running.as_ref().filter(|running| !running.stop_asked) else {
                    return Vec::new();
                };
                return vec![Do::Tell(RanksEvent::Terminating(running.generation))];
            }
            FromRanks::Started { generation, pids } => SupervisorEvent::Started { generation, pids },
            FromRanks::NotStarted { generation, rank, error } => {
                self.ended(generation, rank);
                SupervisorEvent::NotStarted { generation, rank, error: error.into() }
            }
            FromRanks::Exited(exit) => {
                self.ended(exit.generation, exit.rank);
                SupervisorEvent::Exited(exit)
            }
            FromRanks::Stopped { generation } => {
                self.running.take_if(|running| running.generation == generation);
                SupervisorEvent::Stopped { generation }
            }
        };
        vec![Do::Tell(RanksEvent::Supervisor(event))]
    }

    /// The connection ended.
    pub(super) fn lost(&mut self) -> Vec<Do> {
        self.there = None;
        let Some(running) = &mut self.running else { return Vec::new() };
        running.lost = true;
        let (generation, stopped_by_us) = (running.generation, running.stop_asked);
        let exits = std::mem::take(&mut running.living).into_iter().map(|rank| {
            let status = ExitStatus::Signal { signal: KILL };
            let container = Container::Gone;
            let exit = RankExit { generation, rank, status, stopped_by_us, log_start: 0, container };
            Do::Tell(RanksEvent::Supervisor(SupervisorEvent::Exited(exit)))
        });
        exits.chain([Do::WaitForEnd]).collect()
    }

    /// Nothing of the container that was lost can run any more.
    pub(super) fn gone(&mut self) -> Vec<Do> {
        let Some(running) = self.running.take_if(|running| running.lost) else { return Vec::new() };
        if running.stop_asked { stopped(running.generation) } else { Vec::new() }
    }

    fn launch(&mut self) -> Vec<Do> {
        let Some(surroundings) = &self.there else { return Vec::new() };
        let Some(Waiting { generation, ranks, prepare }) = self.waiting.take() else { return Vec::new() };
        let living = ranks.into_iter().collect();
        self.running = Some(Running { generation, living, stop_asked: false, lost: false });
        vec![Do::Send(ToRanks::Launch(prepare(surroundings)))]
    }

    fn stop(&mut self, generation: Generation, grace: Duration) -> Vec<Do> {
        if self.waiting.take_if(|waiting| waiting.generation == generation).is_some() {
            return stopped(generation);
        }
        let Some(running) = self.running.as_mut().filter(|running| running.generation == generation) else {
            return stopped(generation);
        };
        running.stop_asked = true;
        if running.lost { Vec::new() } else { vec![Do::Send(ToRanks::stop(generation, grace))] }
    }

    fn ended(&mut self, generation: Generation, rank: Rank) {
        if let Some(running) = self.running.as_mut().filter(|running| running.generation == generation) {
            running.living.remove(&rank);
        }
    }
}

fn stopped(generation: Generation) -> Vec<Do> {
    vec![Do::Tell(RanksEvent::Supervisor(SupervisorEvent::Stopped { generation }))]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::supervisor::Launch;

    const G: Generation = Generation(3);

    fn launch(generation: Generation) -> Order {
        let prepare = move |surroundings: &Surroundings| Launch {
            generation,
            cookie: String::new(),
            command: vec!["true".into()],
            workdir: surroundings.workdir.clone(),
            ranks: Vec::new(),
        };
        Order::Launch { generation, ranks: vec![Rank(0), Rank(1)], prepare: Box::new(prepare) }
    }

    fn hello() -> FromRanks {
        FromRanks::Hello(Surroundings { env: BTreeMap::new(), cpus: Vec::new(), workdir: "/app".into() })
    }

    fn stop(generation: Generation) -> Order {
        Order::Stop { generation, grace: Duration::from_secs(1) }
    }

    fn exited(rank: u32) -> FromRanks {
        FromRanks::Exited(RankExit {
            generation: G,
            rank: Rank(rank),
            status: ExitStatus::Code { code: 0 },
            stopped_by_us: false,
            log_start: 0,
            container: Container::Ours,
        })
    }

    fn words(todo: &[Do]) -> String {
        let words = todo.iter().map(|action| match action {
            Do::Send(ToRanks::Launch(launch)) => {
                format!("launch {} in {}", launch.generation, launch.workdir.display())
            }
            Do::Send(ToRanks::Stop { generation, .. }) => format!("stop {generation}"),
            Do::Send(ToRanks::Over) => "over".into(),
            Do::Tell(RanksEvent::Terminating(generation)) => format!("terminating {generation}"),
            Do::Tell(RanksEvent::Supervisor(SupervisorEvent::Exited(exit))) => {
                format!("exited {} {:?}", exit.rank, exit.container)
            }
            Do::Tell(RanksEvent::Supervisor(SupervisorEvent::Stopped { generation })) => {
                format!("stopped {generation}")
            }
            Do::Tell(RanksEvent::Supervisor(other)) => format!("{other:?}"),
            Do::WaitForEnd => "wait".into(),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_launch_waits_for_its_container_and_knows_what_is_there() {
        let mut desk = Desk::default();
        assert!(!desk.wants_ranks());
        assert_eq!(words(&desk.order(launch(G))), "");
        assert!(desk.wants_ranks(), "the barrier opens");
        assert_eq!(words(&desk.message(hello())), "launch 3 in /app");
        assert_eq!(words(&desk.order(stop(G))), "stop 3");
        assert_eq!(words(&desk.message(FromRanks::Stopped { generation: G })), "stopped 3");
        assert_eq!(words(&desk.order(launch(G.next()))), "launch 4 in /app", "the same container goes on");
    }

    #[test]
    fn a_launch_that_is_fenced_before_anybody_came_is_never_executed() {
        let mut desk = Desk::default();
        desk.order(launch(G));
        assert_eq!(words(&desk.order(stop(G))), "stopped 3");
        assert!(!desk.wants_ranks());
        assert_eq!(words(&desk.message(hello())), "");
        assert_eq!(words(&desk.order(stop(G))), "stopped 3", "also when nothing runs");
    }

    #[test]
    fn the_end_of_the_container_is_the_end_of_every_rank_that_still_lived() {
        let mut desk = Desk::default();
        desk.message(hello());
        desk.order(launch(G));
        assert_eq!(words(&desk.message(exited(0))), "exited 0 Ours");
        assert_eq!(words(&desk.lost()), "exited 1 Gone, wait");
        assert_eq!(words(&desk.order(stop(G))), "", "not stopped before nothing can be left");
        assert_eq!(words(&desk.gone()), "stopped 3");
        assert_eq!(words(&desk.gone()), "");
        assert_eq!(words(&desk.order(launch(G.next()))), "");
        assert_eq!(words(&desk.message(hello())), "launch 4 in /app");
    }

    #[test]
    fn a_stop_after_the_end_is_answered_at_once() {
        let mut desk = Desk::default();
        desk.message(hello());
        desk.order(launch(G));
        desk.lost();
        assert_eq!(words(&desk.gone()), "");
        assert_eq!(words(&desk.order(stop(G))), "stopped 3");
    }

    #[test]
    fn a_kubelet_that_stops_the_pod_is_told_unless_we_stop_it_ourselves() {
        let mut desk = Desk::default();
        desk.message(hello());
        assert_eq!(words(&desk.message(FromRanks::Terminating)), "");
        desk.order(launch(G));
        assert_eq!(words(&desk.message(FromRanks::Terminating)), "terminating 3");
        desk.order(stop(G));
        assert_eq!(words(&desk.message(FromRanks::Terminating)), "");
    }

    #[test]
    fn over_is_told_to_whoever_is_there_and_whoever_comes() {
        let mut desk = Desk::default();
        desk.message(hello());
        assert_eq!(words(&desk.order(Order::Over)), "over");
        assert_eq!(words(&desk.lost()), "");
        assert!(desk.wants_ranks());
        assert_eq!(words(&desk.message(hello())), "over");
    }
}
