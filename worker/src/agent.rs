//! One worker's life, from its registration to its exit: the loop around `machine` and `shell`.

mod data;
mod examine;
mod machine;
mod meeting;
mod preflight;
mod rotate;
mod shell;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath::fault::in_full;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;

use crate::config::WorkerConfig;
use crate::pod::link::Orders;
use crate::pod::status::Status;
use crate::ranks::RanksEvent;
use crate::rendezvous::client::{Client, ClientConfig, SessionEvent};
use crate::rendezvous::message::{Registration, ToLauncher, ToWorker};
use crate::supervisor::Family;
use crate::units::Incarnation;
use data::DataSide;
pub(crate) use examine::oom_kills;
use machine::{Action, Event, Machine, Without};
use shell::{Note, Notes, Parts, RanksHome, Shell};

/// Threads of the worker's runtime at the most: the rest of the host belongs to the ranks.
const THREADS_MAX: usize = 4;
/// How long tasks that are cut off at the end may still hold the runtime (a read from a dead file system, say).
const RUNTIME_END_MAX: Duration = Duration::from_secs(1);
/// Bytes of the lifeline that are read and thrown away at once; nobody should write any.
const LIFELINE_BYTES: usize = 64;

/// What ends when the launcher ends: the worker's standard input, usually.
pub type Lifeline = Box<dyn Read + Send>;

/// How a worker ended. Whatever it is, no rank, socket or temporary file of this worker is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The launcher said that the job is over.
    Finished,
    /// The launcher does not want this worker.
    Refused {
        /// Its reason.
        reason: String,
    },
    /// The launcher is gone: its pipe closed, or the lease ran out.
    LauncherLost,
    /// Somebody sent SIGTERM or SIGINT.
    Terminated,
    /// The worker itself cannot go on.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

impl Outcome {
    /// The process's exit code: 0 finished, 77 refused (`EX_NOPERM`), 75 launcher lost (`EX_TEMPFAIL`),
    /// 143 terminated (128 + SIGTERM), 70 failed (`EX_SOFTWARE`).
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Finished => 0,
            Self::Refused { .. } => 77,
            Self::LauncherLost => 75,
            Self::Terminated => 143,
            Self::Failed { .. } => 70,
        }
    }
}

/// The whole of `worker agent`: the configuration is the first line of standard input, whose end is the launcher's.
#[must_use]
pub fn main() -> ExitCode {
    crate::telemetry::init(|name| std::env::var_os(name)?.into_string().ok());
    let config = match WorkerConfig::read(&mut io::stdin().lock()) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(error = %in_full(&error), "cannot start");
            return ExitCode::from(64);
        }
    };
    ExitCode::from(run(config, Some(Box::new(io::stdin()))).code())
}

/// Runs one worker until its end. Blocks; makes its own runtime. The calling process must have no other children:
/// it becomes their reaper. Without a lifeline only the lease tells that the launcher is gone.
#[must_use]
pub fn run(config: WorkerConfig, lifeline: Option<Lifeline>) -> Outcome {
    // Before there are other threads: they inherit it.
    if let Err(error) = crate::host::stay_near(&config.cpus) {
        tracing::warn!(%error, cpus = ?config.cpus, "cannot stay on the NUMA node of the CPUs");
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).clamp(2, THREADS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return Outcome::Failed { reason: format!("cannot start a runtime: {error}") },
    };
    let outcome = runtime.block_on(live(config, lifeline, Family::Whole));
    runtime.shutdown_timeout(RUNTIME_END_MAX);
    match &outcome {
        Outcome::Finished => tracing::info!("finished"),
        other => tracing::warn!(outcome = ?other, "ended"),
    }
    outcome
}

/// What a worker that is a pod has beside its configuration.
#[derive(Debug)]
pub(crate) struct Pod {
    /// The ranks' container takes these.
    pub(crate) orders: Orders,
    /// And tells this.
    pub(crate) events: mpsc::Receiver<RanksEvent>,
    /// What probes and metrics show.
    pub(crate) status: Arc<Status>,
    /// What stands for a process number in the registration: the launcher starts pods, not processes.
    pub(crate) number: u32,
    /// The node's name.
    pub(crate) node: String,
    /// Where the data plane listens.
    pub(crate) data_bind: IpAddr,
}

/// The life of a worker that is a pod.
pub(crate) async fn live_in_pod(config: WorkerConfig, pod: Pod) -> Outcome {
    let Pod { orders, events, status, number, node, data_bind } = pod;
    let surroundings = Around {
        ranks: RanksHome::There(orders, events),
        pid: number,
        node: Some(node),
        data_bind,
        without: Without::Waits,
        status: Some(status),
    };
    live_among(config, None, surroundings).await
}

/// The life of a data server that is a pod: there are no ranks, in no container.
pub(crate) async fn live_as_server(
    config: WorkerConfig,
    status: Arc<Status>,
    number: u32,
    node: String,
    data_bind: IpAddr,
) -> Outcome {
    let surroundings = Around {
        ranks: RanksHome::Here(Family::OwnOnly, BTreeMap::new()),
        pid: number,
        node: Some(node),
        data_bind,
        without: Without::Serves,
        status: Some(status),
    };
    live_among(config, None, surroundings).await
}

/// The worker's life on a host. `family` is [`Family::OwnOnly`] in tests, whose process has other children.
async fn live(config: WorkerConfig, lifeline: Option<Lifeline>, family: Family) -> Outcome {
    let inherited: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let around = Around {
        ranks: RanksHome::Here(family, inherited),
        pid: std::process::id(),
        node: None,
        data_bind: config.bind,
        without: Without::Ends,
        status: None,
    };
    live_among(config, lifeline, around).await
}

/// What differs between a worker on a host and one in a pod.
struct Around {
    ranks: RanksHome,
    pid: u32,
    node: Option<String>,
    data_bind: IpAddr,
    without: Without,
    status: Option<Arc<Status>>,
}

async fn live_among(config: WorkerConfig, lifeline: Option<Lifeline>, around: Around) -> Outcome {
    let signals =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()));
    let (Ok(mut terminate), Ok(interrupt), Ok(hangup)) = signals else {
        return Outcome::Failed { reason: "cannot handle signals".into() };
    };
    let prepared = tokio::select! {
        prepared = prepare(config, around) => prepared,
        // Looking for the data may take long, and nothing runs yet.
        _ = terminate.recv() => return Outcome::Terminated,
    };
    match prepared {
        Ok(mut agent) => {
            let outcome = agent.work(lifeline, Signals { terminate, interrupt, hangup }).await;
            agent.shell.close(agent.inbox).await;
            outcome
        }
        Err(reason) => Outcome::Failed { reason },
    }
}

/// What may be sent to this process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

struct Agent {
    machine: Machine,
    shell: Shell,
    inbox: mpsc::Receiver<Note>,
    sessions: mpsc::Receiver<SessionEvent>,
    started: Instant,
    status: Option<Arc<Status>>,
}

async fn prepare(config: WorkerConfig, around: Around) -> Result<Agent, String> {
    let Around { ranks, pid, node, data_bind, without, status } = around;
    #[expect(clippy::disallowed_methods, reason = "a shell: the machine's time begins here")]
    let started = Instant::now();
    let machine = Machine::new(config.data.is_some(), config.hang_ms.map(Duration::from_millis), without);
    if let Some(status) = status.as_ref().filter(|_| config.data.is_some()) {
        status.doing("opens the data set");
    }
    let data = DataSide::start(&config, data_bind).await;
    let mut host = crate::host::facts(&config.cpus);
    host.name = node.unwrap_or(host.name);
    let registration = Registration {
        worker: config.worker,
        incarnation: Incarnation(getrandom::u64().map_err(|error| format!("cannot draw a number: {error}"))?),
        pid,
        host,
        data_address: data.as_ref().ok().and_then(Option::as_ref).map(DataSide::address),
        running: None,
        data: data.as_ref().ok().and_then(Option::as_ref).and_then(DataSide::found),
    };
    let (registration, watched) = watch::channel(registration);
    let client = ClientConfig {
        launcher: config.launcher,
        launcher_name: &config.launcher_name,
        bind: config.bind,
        identity: &config.identity,
    };
    let (client, sessions) = Client::start(&client, watched).map_err(|error| in_full(&error))?;
    let parts = Parts { config, home: ranks, client, registration, data, status: status.clone() };
    let (shell, inbox) = Shell::start(parts).map_err(|error| format!("cannot supervise: {error}"))?;
    if let Some(status) = &status {
        status.doing("looks for the launcher");
    }
    Ok(Agent { machine, shell, inbox, sessions, started, status })
}

impl Agent {
    /// Until the machine says exit.
    async fn work(&mut self, lifeline: Option<Lifeline>, mut signals: Signals) -> Outcome {
        let has_lifeline = lifeline.is_some();
        if let Err(error) = lifeline.map_or(Ok(()), |lifeline| watch_lifeline(lifeline, self.shell.notes())) {
            return Outcome::Failed { reason: format!("cannot watch for the launcher's end: {error}") };
        }
        loop {
            let deadline = tokio::time::Instant::from_std(self.started + self.machine.deadline());
            let event = tokio::select! {
                Some(note) = self.inbox.recv() => self.shell.translate(note),
                Some(session) = self.sessions.recv() => of_session(session),
                _ = signals.terminate.recv() => Event::Terminated,
                // A terminal sends these to the launcher as well, which decides.
                _ = signals.interrupt.recv() => if has_lifeline { Event::Tick } else { Event::Terminated },
                _ = signals.hangup.recv() => if has_lifeline { Event::Tick } else { Event::Terminated },
                () = sleep_until(deadline) => Event::Tick,
            };
            tracing::debug!(?event, "event");
            if let Some(status) = &self.status {
                show_event(status, &event);
            }
            for action in self.machine.handle(event, self.started.elapsed()) {
                tracing::debug!(?action, "action");
                if let Some(status) = &self.status {
                    show_action(status, &action);
                }
                if let Some(outcome) = self.shell.perform(action) {
                    return outcome;
                }
            }
        }
    }
}

/// What an event tells those who look at a pod from outside.
fn show_event(status: &Status, event: &Event) {
    match event {
        Event::Message(ToWorker::Welcome { .. }) => {
            status.connected(true);
            status.doing("is registered, and waits for its gang");
        }
        Event::Message(ToWorker::Finish) => status.doing("the job is over"),
        Event::Lost { .. } => {
            status.connected(false);
            status.doing("looks for the launcher");
        }
        _ => {}
    }
}

/// What an action tells them.
fn show_action(status: &Status, action: &Action) {
    match action {
        Action::Check(generation) => status.doing(format!("checks itself for generation {generation}")),
        Action::Send(_, ToLauncher::Ready { generation, faults }) => status.doing(match faults.first() {
            None => format!("is ready for generation {generation}, and waits for its gang"),
            Some(fault) => format!("cannot take part in generation {generation}: {}", fault.message),
        }),
        Action::Launch { assignment, .. } => {
            status.launched(assignment.generation.0);
            status.doing(format!("has ranks to run in generation {}", assignment.generation));
        }
        Action::Leave(_) => {
            status.idle();
            status.doing("waits for the next generation");
        }
        _ => {}
    }
}

fn of_session(event: SessionEvent) -> Event {
    match event {
        SessionEvent::Connected(session) => Event::Connected(session),
        SessionEvent::Message(message) => Event::Message(message),
        SessionEvent::Lost { silent, reason } => {
            tracing::warn!(%reason, "the connection to the launcher is down");
            Event::Lost { silent }
        }
        SessionEvent::Incompatible { reason } => Event::Incompatible { reason },
    }
}

/// Tells when the lifeline ends. The thread stays behind when the worker ends first; it holds nothing.
fn watch_lifeline(mut lifeline: Lifeline, notes: Notes) -> io::Result<()> {
    let watch = move || {
        let mut ignored = [0; LIFELINE_BYTES];
        loop {
            match lifeline.read(&mut ignored) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => break,
                _ => {}
            }
        }
        let _ = notes.blocking_send(Note::Event(Event::LifelineEnded));
    };
    std::thread::Builder::new().name("lifeline".into()).spawn(watch).map(|_| ())
}

#[cfg(test)]
mod tests;
