//! `worker exec`: the first process of the ranks' container, which is the user's image. Executes ranks when the sidecar
//! says so, tells what becomes of them, and shows their output.
//!
//! It decides nothing. Without its sidecar no rank runs: when the connection ends, all are killed before another one is
//! made, because a fence that nobody can hear must hold all the same.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::log_copy::LogCopy;
use super::message::{ErrorWords, FromRanks, Surroundings, ToRanks};
use super::settings::POD_UID_VARIABLE;
use super::socket;
use crate::agent::oom_kills;
use crate::supervisor::{Container, Family, Launch, Supervisor, SupervisorEvent};
use crate::units::Generation;

/// Seconds from SIGTERM to SIGKILL when the kubelet stops the pod; [`GRACE_DEFAULT`] without it.
pub const GRACE_VARIABLE: &str = "SLIPWAY_GRACE_S";
/// Within the 30 seconds that Kubernetes gives a pod by default, with time left to tell and to show the last lines.
const GRACE_DEFAULT: Duration = Duration::from_secs(25);
/// The first pause between two attempts to connect, and the longest: a sidecar that starts again is found at once, and one
/// that is downloaded again costs nothing.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// What waits to be told: a few words per rank.
const EVENTS_MAX: usize = 1_024;
/// Orders that wait.
const ORDERS_MAX: usize = 16;
/// How long a sidecar may take nothing: longer than that it cannot keep its lease either, and its ranks must not run on.
const SAY_MAX: Duration = Duration::from_secs(10);
/// How long the last lines of the ranks may take to be shown at the end: nobody may be reading.
const LOGS_END_MAX: Duration = Duration::from_secs(2);
/// Exit codes: 128 + SIGTERM; `EX_CONFIG`; `EX_SOFTWARE`.
const EXIT_TERMINATED: u8 = 143;
const EXIT_CONFIG: u8 = 78;
const EXIT_FAILED: u8 = 70;

/// The whole of `worker exec`.
#[must_use]
pub fn main() -> ExitCode {
    let variable = |name: &str| std::env::var_os(name)?.into_string().ok();
    crate::telemetry::init(variable);
    let Some(pod_uid) = variable(POD_UID_VARIABLE).filter(|uid| !uid.is_empty()) else {
        tracing::error!("{POD_UID_VARIABLE}: it is not set; hint: {}", super::settings::DOWNWARD);
        return ExitCode::from(EXIT_CONFIG);
    };
    let grace = match variable(GRACE_VARIABLE).map(|text| text.parse()) {
        None => GRACE_DEFAULT,
        Some(Ok(seconds)) => Duration::from_secs(seconds),
        Some(Err(error)) => {
            tracing::error!("{GRACE_VARIABLE}: {error}; hint: it is a number of seconds");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    // One thread: the CPUs belong to the ranks.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let code = match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(live(&pod_uid, grace));
            runtime.shutdown_timeout(LOGS_END_MAX);
            code
        }
        Err(error) => Err(error),
    };
    ExitCode::from(code.unwrap_or_else(|error| {
        tracing::error!(%error, "cannot go on");
        EXIT_FAILED
    }))
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Lost,
    Over,
    Terminated,
}

async fn live(pod_uid: &str, grace: Duration) -> io::Result<u8> {
    let mut terminate = signal(SignalKind::terminate())?;
    let logs = LogCopy::start(io::stdout())?;
    let end = loop {
        let stream = tokio::select! {
            stream = connect(pod_uid) => stream,
            _ = terminate.recv() => break End::Terminated,
        };
        match serve(stream, &mut terminate, grace, &logs).await? {
            End::Lost => tracing::warn!("the sidecar is gone: its ranks are killed, and it is waited for"),
            end => break end,
        }
    };
    // Not waited for beyond the runtime's own end: nobody may be reading our output.
    let _ = tokio::time::timeout(LOGS_END_MAX, tokio::task::spawn_blocking(move || logs.close())).await;
    Ok(if end == End::Over { 0 } else { EXIT_TERMINATED })
}

/// Tries for as long as it takes: the sidecar is started first, and again whenever it ends.
async fn connect(pod_uid: &str) -> UnixStream {
    let mut pause = PAUSE_FIRST;
    loop {
        match socket::connect(pod_uid) {
            Ok(stream) => return stream,
            Err(error) => tracing::debug!(%error, "the sidecar is not there"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// One connection, with a supervisor of its own: when either ends, so do the ranks.
async fn serve(
    stream: UnixStream,
    terminate: &mut Signal,
    grace: Duration,
    logs: &LogCopy,
) -> io::Result<End> {
    let (reader, writer) = stream.into_split();
    let (tell, events) = mpsc::channel(EVENTS_MAX);
    let supervisor = Supervisor::start(Family::Whole, move |event| {
        // Fails when the connection is over; then nobody needs to know.
        let _ = tell.blocking_send(event);
    })?;
    let (orders, reading) = read_orders(reader);
    let mut session = Session { supervisor, events, orders, writer, running: None, oom_kills: 0 };
    let end = session.carry(terminate, grace, logs).await;
    reading.abort();
    let Session { supervisor, events, .. } = session;
    // The thread may be about to tell something: it must not wait for us.
    drop(events);
    // Kills what runs, sweeps, and waits for the end of it.
    let _ = tokio::task::spawn_blocking(move || drop(supervisor)).await;
    Ok(end)
}

/// Frames are read by a task of their own, because half a frame must not be lost when something else happens.
fn read_orders(mut reader: OwnedReadHalf) -> (mpsc::Receiver<ToRanks>, AbortHandle) {
    let (sender, orders) = mpsc::channel(ORDERS_MAX);
    let task = tokio::spawn(async move {
        loop {
            match socket::read(&mut reader).await {
                Ok(order) => {
                    if sender.send(order).await.is_err() {
                        return;
                    }
                }
                Err(error) => return tracing::debug!(%error, "the sidecar says nothing more"),
            }
        }
    });
    (orders, task.abort_handle())
}

struct Session {
    supervisor: Supervisor,
    events: mpsc::Receiver<SupervisorEvent>,
    orders: mpsc::Receiver<ToRanks>,
    writer: OwnedWriteHalf,
    /// What was launched and is not told as stopped.
    running: Option<Generation>,
    /// The kernel's count at the launch.
    oom_kills: u64,
}

impl Session {
    async fn carry(&mut self, terminate: &mut Signal, grace: Duration, logs: &LogCopy) -> End {
        if self.say(&FromRanks::Hello(surroundings())).await.is_err() {
            return End::Lost;
        }
        let mut terminating = false;
        loop {
            let result = tokio::select! {
                order = self.orders.recv() => match order {
                    Some(ToRanks::Over) => return End::Over,
                    Some(ToRanks::Launch(_)) if terminating => Ok(()),
                    Some(ToRanks::Launch(launch)) => self.launch(launch, logs).await,
                    Some(ToRanks::Stop { generation, grace_ms }) => {
                        self.supervisor.stop(generation, Duration::from_millis(grace_ms));
                        Ok(())
                    }
                    None => return if terminating { End::Terminated } else { End::Lost },
                },
                Some(event) = self.events.recv() => self.tell(event, logs).await,
                _ = terminate.recv() => {
                    let grace = if terminating { Duration::ZERO } else { grace };
                    terminating = true;
                    if let Some(generation) = self.running {
                        self.supervisor.stop(generation, grace);
                    }
                    self.say(&FromRanks::Terminating).await
                }
            };
            if terminating && self.running.is_none() {
                return End::Terminated;
            }
            if result.is_err() {
                return if terminating { End::Terminated } else { End::Lost };
            }
        }
    }

    async fn launch(&mut self, launch: Launch, logs: &LogCopy) -> io::Result<()> {
        self.oom_kills = oom_kills(Path::new("/"));
        if !launch.workdir.is_dir() {
            let Some(rank) = launch.ranks.first().map(|process| process.rank) else { return Ok(()) };
            let what = format!("the working directory {} is not a folder here", launch.workdir.display());
            let error = ErrorWords::from(&io::Error::new(io::ErrorKind::NotFound, what));
            return self.say(&FromRanks::NotStarted { generation: launch.generation, rank, error }).await;
        }
        logs.follow(&launch);
        self.running = Some(launch.generation);
        self.supervisor.launch(launch);
        Ok(())
    }

    async fn tell(&mut self, event: SupervisorEvent, logs: &LogCopy) -> io::Result<()> {
        let mut message = FromRanks::from(event);
        match &mut message {
            FromRanks::Exited(exit) => {
                logs.ended(exit.rank);
                let oom_counted = oom_kills(Path::new("/")) > self.oom_kills;
                exit.container = Container::Other { oom_counted };
            }
            FromRanks::Stopped { generation } if self.running == Some(*generation) => self.running = None,
            _ => {}
        }
        self.say(&message).await
    }

    async fn say(&mut self, message: &FromRanks) -> io::Result<()> {
        let frame = socket::frame(message)?;
        let written = tokio::time::timeout(SAY_MAX, self.writer.write_all(&frame)).await;
        written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// What ranks inherit here. What is not UTF-8 they inherit too, but nobody decides anything by it.
fn surroundings() -> Surroundings {
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let workdir = std::env::current_dir().ok().filter(|folder| folder.to_str().is_some());
    Surroundings { env, cpus: crate::host::own_cpus(), workdir: workdir.unwrap_or_else(|| "/".into()) }
}
