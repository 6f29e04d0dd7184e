//! Worker processes: starting, watching, killing, and making sure that nothing of them is left.
//!
//! A worker is this same program with the hidden command `worker-agent`. Its configuration, which holds a private
//! key, goes over its standard input, which then stays open: its end tells the worker that we are gone.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{Notify, mpsc, watch};
use worker::config::WorkerConfig;
use worker::units::{Generation, WorkerId};

use super::folder::private_file;

/// Ends and sweeps that the controller has not looked at: one each per worker of a big local job.
const EVENTS_MAX: usize = 1024;
/// The hidden command.
pub(super) const AGENT_COMMAND: &str = "worker-agent";

/// What happened to a process.
#[derive(Debug)]
pub(super) enum ProcessEvent {
    /// It has ended.
    Gone { worker: WorkerId, pid: u32, how: String },
    /// Nothing is left of these workers and their ranks.
    Swept { generation: Generation, workers: Vec<WorkerId> },
    /// Something is left that cannot be killed.
    Unswept { why: Box<dyn std::error::Error + Send + Sync> },
}

/// All worker processes of a job.
#[derive(Debug)]
pub(super) struct Processes {
    program: PathBuf,
    job_uid: String,
    total: usize,
    logs: PathBuf,
    running: BTreeMap<WorkerId, Running>,
    events: mpsc::Sender<ProcessEvent>,
}

#[derive(Debug)]
struct Running {
    pid: u32,
    kill: Arc<Notify>,
    gone: watch::Receiver<bool>,
}

impl Processes {
    /// None yet; `program` is this one's path, `total` the number of workers of all kinds, `logs` the folder that
    /// they and their ranks leave files in.
    pub(super) fn new(
        program: PathBuf,
        job_uid: String,
        total: usize,
        logs: PathBuf,
    ) -> (Self, mpsc::Receiver<ProcessEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        (Self { program, job_uid, total, logs, running: BTreeMap::new(), events }, receiver)
    }

    /// Starts a worker and returns its process id.
    pub(super) fn launch(&mut self, config: &WorkerConfig, log: &std::path::Path) -> io::Result<u32> {
        let mut line = serde_json::to_vec(config)?;
        line.push(b'\n');
        let log = private_file().append(true).create(true).open(log)?;
        let mut child = Command::new(&self.program)
            .arg(AGENT_COMMAND)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Not the terminal's group: Ctrl-C is for us, and we stop the workers in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (Some(pid), Some(stdin)) = (child.id(), child.stdin.take()) else {
            return Err(io::Error::other("the process ended at once"));
        };
        let kill = Arc::new(Notify::new());
        let (ended, gone) = watch::channel(false);
        self.running.insert(config.worker, Running { pid, kill: Arc::clone(&kill), gone });
        let watcher = Watcher { worker: config.worker, pid, kill, ended, events: self.events.clone() };
        tokio::spawn(watcher.run(child, stdin, line));
        Ok(pid)
    }

    /// Kills these workers and all that carries their cookie, removes the files that only a living worker removes, and
    /// tells when that is done.
    pub(super) fn sweep(&self, generation: Generation, workers: Vec<WorkerId>) {
        let mut gone = Vec::new();
        for worker in &workers {
            if let Some(running) = self.running.get(worker) {
                tracing::debug!(%worker, pid = running.pid, "killing");
                running.kill.notify_one();
                gone.push(running.gone.clone());
            }
        }
        // All workers: then also what earlier generations, or an earlier launcher's, have left.
        let cookies: Vec<String> = if workers.len() >= self.total {
            vec![self.job_uid.clone()]
        } else {
            workers.iter().map(|worker| worker::sweep::cookie(&self.job_uid, generation, *worker)).collect()
        };
        let (events, logs) = (self.events.clone(), self.logs.clone());
        tokio::spawn(async move {
            for mut gone in gone {
                // An error means that the watcher is gone, so the process is, too.
                let _ = gone.wait_for(|gone| *gone).await;
            }
            let left_by = workers.clone();
            let swept = tokio::task::spawn_blocking(move || {
                let killed = cookies.iter().map(|cookie| worker::sweep::kill_all(cookie));
                let killed = killed.collect::<io::Result<Vec<_>>>();
                // After the kill: nobody writes there any more.
                for worker in left_by {
                    if let Err(error) = worker::files::remove_leftovers(&logs, worker) {
                        tracing::warn!(%error, %worker, "cannot remove what a killed worker left");
                    }
                }
                killed
            });
            let event = match swept.await {
                Ok(Ok(killed)) => {
                    let killed: usize = killed.iter().sum();
                    if killed > 0 {
                        tracing::info!(killed, "killed processes that were left");
                    }
                    ProcessEvent::Swept { generation, workers }
                }
                Ok(Err(error)) => ProcessEvent::Unswept { why: error.into() },
                Err(error) => ProcessEvent::Unswept { why: error.into() },
            };
            // The controller is gone only at the end of everything.
            let _ = events.send(event).await;
        });
    }
}

/// Holds one process and its standard input until it ends.
struct Watcher {
    worker: WorkerId,
    pid: u32,
    kill: Arc<Notify>,
    ended: watch::Sender<bool>,
    events: mpsc::Sender<ProcessEvent>,
}

impl Watcher {
    async fn run(self, mut child: Child, mut stdin: ChildStdin, config: Vec<u8>) {
        // A worker that does not read its configuration ends, or never registers: both are noticed.
        let feed = async {
            let _ = stdin.write_all(&config).await;
            let _ = stdin.flush().await;
            std::future::pending::<()>().await;
        };
        let kill = self.kill.notified();
        let killed = tokio::select! {
            () = feed => false,
            () = kill => true,
            _ = child.wait() => false,
        };
        if killed {
            // Fails only when it has ended already.
            let _ = child.start_kill();
        }
        let how = match child.wait().await {
            Ok(status) => format!("its process ended ({status})"),
            Err(error) => format!("its process cannot be waited for: {error}"),
        };
        let gone = ProcessEvent::Gone { worker: self.worker, pid: self.pid, how };
        // First the news, then the flag that a sweep waits for: so `Gone` is always told before `Swept`.
        let _ = self.events.send(gone).await;
        let _ = self.ended.send(true);
    }
}
