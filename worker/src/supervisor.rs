//! Runs the ranks of one generation as processes, sees their end, and leaves none of them.
//!
//! One thread, alive as long as the [`Supervisor`], executes and reaps: the ranks' death signal is bound to the
//! *thread* that executed them, so it must not be one of a pool. A stop is SIGTERM to every rank's process group,
//! SIGKILL after the grace time, then a sweep for descendants that left their group ([`crate::sweep`]).
//! `Stopped` is told when none is left.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{
    Pid, PidfdFlags, Rlimit, Signal, WaitOptions, WaitStatus, getpid, kill_process_group, pidfd_open,
    set_child_subreaper, wait, waitpid,
};

use serde::{Deserialize, Serialize};

use crate::process::{ProcessSpec, file_limit, spawn};
use crate::rendezvous::message::ExitStatus;
use crate::sweep;
use crate::units::{Generation, Rank};

/// How often orphans that we inherited as subreaper are reaped while nothing else happens.
const ORPHAN_INTERVAL: Duration = Duration::from_secs(1);
/// How long a process may take to end after SIGKILL when nobody can wait any longer: one that hangs in the kernel
/// (a dead disk or driver) takes for ever.
const KILL_WAIT: Duration = Duration::from_secs(20);

/// The ranks to execute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Their generation.
    pub generation: Generation,
    /// In each one's environment too; what the sweep looks for.
    pub cookie: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Where they run.
    pub workdir: PathBuf,
    /// The ranks.
    pub ranks: Vec<RankProcess>,
}

/// One rank of a [`Launch`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankProcess {
    /// Its number.
    pub rank: Rank,
    /// Laid over the inherited environment.
    pub env: BTreeMap<String, String>,
    /// CPUs to bind to; empty for no binding.
    pub cpus: Vec<u32>,
    /// Standard output and error are appended here.
    pub log: PathBuf,
}

/// What a supervisor sees.
#[derive(Debug)]
pub enum SupervisorEvent {
    /// All ranks have been executed.
    Started {
        /// Of which generation.
        generation: Generation,
        /// Their processes.
        pids: BTreeMap<Rank, u32>,
    },
    /// A rank could not be executed; the ones after it were not tried.
    NotStarted {
        /// Of which generation.
        generation: Generation,
        /// Which.
        rank: Rank,
        /// Why.
        error: io::Error,
    },
    /// A rank ended.
    Exited(RankExit),
    /// Nothing of the generation is left.
    Stopped {
        /// Which.
        generation: Generation,
    },
}

/// The end of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankExit {
    /// Its generation.
    pub generation: Generation,
    /// Its number.
    pub rank: Rank,
    /// How it ended.
    pub status: ExitStatus,
    /// Whether we had sent it a signal before.
    pub stopped_by_us: bool,
    /// Where in its log this generation begins, in bytes.
    pub log_start: u64,
    /// What is known of the container that it ran in.
    #[serde(default)]
    pub container: Container,
}

/// Where a rank ran, as far as its end is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Container {
    /// In the agent's own: what the kernel counts for us, it counts for the rank.
    #[default]
    Ours,
    /// In another one, which is still there.
    Other {
        /// Whether the kernel has killed for want of memory there since the launch.
        oom_counted: bool,
    },
    /// In another one, which is gone: how the rank itself ended will never be known.
    Gone,
}

/// The handle; dropping it kills what runs, sweeps, and joins the thread.
#[derive(Debug)]
pub struct Supervisor {
    orders: Sender<Order>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Order {
    Launch(Launch),
    Stop { generation: Generation, grace: Duration },
    Shutdown,
}

/// Whose children the supervisor may reap and kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// All of this process: it becomes a child subreaper, and every descendant dies with a generation.
    Whole,
    /// Only what the supervisor executed and what carries its cookie: for processes that have other children.
    OwnOnly,
}

impl Supervisor {
    /// Starts the thread. `tell` is called on it and must not block for long.
    ///
    /// # Errors
    /// When the kernel refuses an eventfd or a thread.
    pub fn start(family: Family, tell: impl Fn(SupervisorEvent) + Send + 'static) -> io::Result<Self> {
        if family == Family::Whole {
            set_child_subreaper(Some(getpid()))?;
        }
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (orders, inbox) = channel();
        let thread = Thread {
            family,
            files: file_limit(),
            inbox,
            wake: Arc::clone(&wake),
            tell: Box::new(tell),
            current: None,
        };
        let thread = std::thread::Builder::new().name("supervisor".into()).spawn(move || thread.run())?;
        Ok(Self { orders, wake, thread: Some(thread) })
    }

    /// Executes ranks; answered by `Started` or `NotStarted`. One generation at a time: whatever ran before is
    /// killed first.
    pub fn launch(&self, launch: Launch) {
        self.order(Order::Launch(launch));
    }

    /// Ends a generation; answered by `Stopped`, also when nothing runs.
    pub fn stop(&self, generation: Generation, grace: Duration) {
        self.order(Order::Stop { generation, grace });
    }

    fn order(&self, order: Order) {
        // The thread ends only after the handle's drop, so neither can fail for long; a full eventfd is awake.
        let _ = self.orders.send(order);
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.order(Order::Shutdown);
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has been printed there; its ranks died with it.
            let _ = thread.join();
        }
    }
}

struct Thread {
    family: Family,
    files: Rlimit,
    inbox: Receiver<Order>,
    wake: Arc<OwnedFd>,
    tell: Box<dyn Fn(SupervisorEvent) + Send>,
    current: Option<Running>,
}

struct Running {
    generation: Generation,
    cookie: String,
    ranks: Vec<Process>,
    stop: Option<Stop>,
}

struct Process {
    rank: Rank,
    pid: Pid,
    handle: OwnedFd,
    log_start: u64,
    signalled: bool,
    ended: bool,
}

struct Stop {
    kill_at: Instant,
    killed: bool,
}

#[expect(clippy::disallowed_methods, reason = "a shell: grace times run on the real clock")]
fn now() -> Instant {
    Instant::now()
}

impl Thread {
    fn run(mut self) {
        loop {
            self.sleep();
            let mut drained = [0; 8];
            // Nonblocking: an empty one is fine, we may have been woken by a process.
            let _ = rustix::io::read(&self.wake, &mut drained);
            loop {
                match self.inbox.try_recv() {
                    Ok(Order::Launch(launch)) => self.launch(&launch),
                    Ok(Order::Stop { generation, grace }) => self.begin_stop(generation, grace),
                    Ok(Order::Shutdown) | Err(TryRecvError::Disconnected) => return self.kill_current(),
                    Err(TryRecvError::Empty) => break,
                }
            }
            self.reap();
            self.continue_stop();
        }
    }

    /// Until an order, a rank's end, the end of a grace time, or the next look for orphans.
    fn sleep(&self) {
        let mut waits = vec![PollFd::new(&self.wake, PollFlags::IN)];
        let mut limit = self.current.is_some().then_some(ORPHAN_INTERVAL);
        if let Some(running) = &self.current {
            let living = running.ranks.iter().filter(|process| !process.ended);
            waits.extend(
                living.map(|process| PollFd::from_borrowed_fd(process.handle.as_fd(), PollFlags::IN)),
            );
            if let Some(Stop { kill_at, killed: false }) = running.stop {
                let left = kill_at.saturating_duration_since(now());
                limit = Some(limit.map_or(left, |limit| limit.min(left)));
            }
        }
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        // EINTR means one early look, nothing else.
        let _ = poll(&mut waits, limit.as_ref());
    }

    fn launch(&mut self, launch: &Launch) {
        self.kill_current();
        let generation = launch.generation;
        let mut running =
            Running { generation, cookie: launch.cookie.clone(), ranks: Vec::new(), stop: None };
        let mut failed = None;
        for rank in &launch.ranks {
            match self.execute(launch, rank) {
                Ok(process) => running.ranks.push(process),
                Err(error) => {
                    failed = Some((rank.rank, error));
                    break;
                }
            }
        }
        let pids = running
            .ranks
            .iter()
            .map(|process| (process.rank, process.pid.as_raw_nonzero().get().unsigned_abs()));
        let pids = pids.collect();
        self.current = Some(running);
        (self.tell)(match failed {
            None => SupervisorEvent::Started { generation, pids },
            Some((rank, error)) => SupervisorEvent::NotStarted { generation, rank, error },
        });
    }

    fn execute(&self, launch: &Launch, rank: &RankProcess) -> io::Result<Process> {
        let (output, log_start) = open_log(&rank.log, launch.generation)?;
        let pid = spawn(ProcessSpec {
            command: &launch.command,
            env: &rank.env,
            removed: &crate::environment::REMOVED,
            workdir: &launch.workdir,
            cpus: &rank.cpus,
            output,
            files: self.files,
        })?;
        // Not reaped before we do it, so the number is still this process's.
        let handle = pidfd_open(pid, PidfdFlags::empty()).inspect_err(|_| {
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        })?;
        Ok(Process { rank: rank.rank, pid, handle, log_start, signalled: false, ended: false })
    }

    fn begin_stop(&mut self, generation: Generation, grace: Duration) {
        let Some(running) = self.current.as_mut().filter(|running| running.generation == generation) else {
            return (self.tell)(SupervisorEvent::Stopped { generation });
        };
        let kill_at = now() + grace;
        match &mut running.stop {
            // A second stop can only be more urgent.
            Some(stop) => stop.kill_at = stop.kill_at.min(kill_at),
            None => {
                running.stop = Some(Stop { kill_at, killed: false });
                // A stopped (SIGSTOP) process would not see SIGTERM before it goes on.
                running.signal(Signal::TERM);
                running.signal(Signal::CONT);
            }
        }
    }

    fn continue_stop(&mut self) {
        let Some(running) = &mut self.current else { return };
        let Some(stop) = &mut running.stop else { return };
        if !stop.killed && now() >= stop.kill_at {
            stop.killed = true;
            running.signal(Signal::KILL);
        }
        if running.ranks.iter().all(|process| process.ended) {
            let generation = running.generation;
            self.sweep();
            self.current = None;
            (self.tell)(SupervisorEvent::Stopped { generation });
        }
    }

    /// Kills without grace and waits for the end.
    fn kill_current(&mut self) {
        let give_up = now() + KILL_WAIT;
        while let Some(running) = &mut self.current {
            let generation = running.generation;
            if now() >= give_up {
                tracing::error!(%generation, "ranks do not end after SIGKILL: the kernel holds them");
                return;
            }
            if running.stop.as_ref().is_none_or(|stop| !stop.killed) {
                running.stop = Some(Stop { kill_at: now(), killed: false });
            }
            self.continue_stop();
            if self.current.as_ref().is_some_and(|running| running.generation == generation) {
                self.sleep();
                self.reap();
            }
        }
    }

    fn sweep(&mut self) {
        let Some(running) = &self.current else { return };
        let mut swept = sweep::kill_all(&running.cookie);
        if self.family == Family::Whole {
            swept = swept.and_then(|some| Ok(some + sweep::kill_descendants()?));
        }
        match swept {
            Ok(0) => {}
            Ok(count) => {
                tracing::info!(count, generation = %running.generation, "killed processes that a rank left behind")
            }
            Err(error) => tracing::error!(%error, generation = %running.generation, "cannot sweep"),
        }
        self.reap();
    }

    fn reap(&mut self) {
        if self.family == Family::Whole {
            // Orphans come in here as well; nobody asks for their status. ECHILD ends the loop too.
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                self.ended(pid, status);
            }
            return;
        }
        let living = self.current.iter().flat_map(|running| &running.ranks).filter(|process| !process.ended);
        let living: Vec<Pid> = living.map(|process| process.pid).collect();
        for pid in living {
            if let Ok(Some((pid, status))) = waitpid(Some(pid), WaitOptions::NOHANG) {
                self.ended(pid, status);
            }
        }
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus) {
        let Some(running) = &mut self.current else { return };
        let process = running.ranks.iter_mut().find(|process| process.pid == pid && !process.ended);
        let (Some(process), Some(status)) = (process, exit_status(status)) else { return };
        process.ended = true;
        (self.tell)(SupervisorEvent::Exited(RankExit {
            generation: running.generation,
            rank: process.rank,
            status,
            stopped_by_us: process.signalled,
            log_start: process.log_start,
            container: Container::Ours,
        }));
    }
}

impl Running {
    /// To the group of every rank that is not reaped yet: until then its number cannot belong to anybody else.
    fn signal(&mut self, signal: Signal) {
        for process in self.ranks.iter_mut().filter(|process| !process.ended) {
            process.signalled = true;
            if let Err(error) = kill_process_group(process.pid, signal) {
                tracing::warn!(rank = %process.rank, %error, "cannot signal a rank");
            }
        }
    }
}

/// Opens a rank's log for appending, writes the generation's line, and says where its output begins.
fn open_log(path: &Path, generation: Generation) -> io::Result<(File, u64)> {
    let mut log = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let bytes = log.seek(SeekFrom::End(0))?;
    let mut last = [b'\n'];
    if bytes > 0 {
        log.seek(SeekFrom::Start(bytes - 1))?;
        log.read_exact(&mut last)?;
    }
    let break_line = if last == [b'\n'] { "" } else { "\n" };
    log.write_all(format!("{break_line}--- generation {generation} ---\n").as_bytes())?;
    let start = log.seek(SeekFrom::End(0))?;
    Ok((log, start))
}

fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    let code = status.exit_status().map(|code| ExitStatus::Code { code });
    code.or_else(|| status.terminating_signal().map(|signal| ExitStatus::Signal { signal }))
}

#[cfg(test)]
mod tests;
