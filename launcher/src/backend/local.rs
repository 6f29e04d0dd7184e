//! Jobs on this host: one controller process per job, workers as child processes of it.
//!
//! ```text
//! submit ── prepare (data, program, places) ── folder ── controller ── worker-agent × N ── ranks
//! list, status, logs ── folder (status file, lock, journal, logs)
//! cancel ── signal to the controller          resume ── a new controller on the same folder
//! ```
//! A folder `jobs/<id>/` holds `job.json`, `journal.jsonl`, `status.json`, `controller.lock`, `slipway.manifest`,
//! `logs/`, `checkpoints/` and `python/`. Whoever holds the lock controls the job; a free lock and a journal without
//! an end is a launcher that died.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::mpsc;

use super::{
    CancelOptions, JobStatus, LogLine, LogRequest, PROGRESS_QUEUE_EVENTS, Plan, ProgressEvent, ResumeOptions,
    SubmitOptions,
};
use crate::config::StateHome;
use crate::error::{ExitCode, Failure};
use crate::job::Job;
use crate::process::spawn_detached;
use folder::{Folder, private_file, replace_durably};
use journal::{Entry, Journal};
use setup::Setup;

mod controller;
mod folder;
mod journal;
mod logs;
mod prepare;
mod processes;
mod report;
mod setup;
mod signals;
mod state;

/// The hidden command that controls a detached job.
const CONTROLLER_COMMAND: &str = "job-controller";
/// How long a cancelled job may take to end, beyond its own grace: then `cancel` says so.
const CANCEL_MAX: Duration = Duration::from_secs(60);
/// How long a detached controller may take to hold its lock.
const DETACH_MAX: Duration = Duration::from_secs(20);
/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(20);

/// What [`submit`] would do, and whether it could; creates nothing.
///
/// # Errors
/// When the job cannot run here: data, program or resources are missing.
pub async fn plan(_home: &StateHome, job: &Job) -> Result<Plan, Failure> {
    let prepared = prepare::prepare(job).await?;
    Ok(prepare::plan(job, &prepared))
}

/// Runs a job to its end in this process (or, detached, until it exists) and returns its status then.
/// A job that fails is a status with a cause, no error.
///
/// # Errors
/// When the job cannot be started; then nothing of it is left.
pub async fn submit(
    home: &StateHome,
    job: Job,
    options: SubmitOptions,
    events: mpsc::Sender<ProgressEvent>,
) -> Result<JobStatus, Failure> {
    // Everything that can be found wrong is found before anything is created.
    let prepared = prepare::prepare(&job).await?;
    let cannot_create = |error: &dyn std::error::Error| {
        let path = home.jobs();
        Failure::new(ExitCode::CannotCreate, format!("failed to create a job in {}", path.display()))
            .because(error)
            .hint("set SLIPWAY_HOME to a folder that you may write")
    };
    let folder = Folder::create(home, &job.name).map_err(|error| cannot_create(&error))?;
    // Locked before it is a job: nobody sees it without a controller.
    let made = match take_lock(&folder).await {
        Ok(lock) => create(&folder, &job).map(|uid| (lock, uid)).map_err(|error| cannot_create(&error)),
        Err(failure) => Err(failure),
    };
    let (lock, uid) = made.inspect_err(|_| {
        // What was made a moment ago is of no use to anybody.
        let _ = std::fs::remove_dir_all(folder.path());
    })?;
    let submitted = ProgressEvent::Submitted { id: folder.id(), folder: folder.path().to_owned() };
    let _ = events.send(submitted).await;
    if options.detach {
        return detach(&folder, lock).await;
    }
    let setup = Setup::new(&folder, job, uid, Default::default(), prepared)?;
    Box::pin(controlled(folder, lock, setup, events)).await
}

/// All jobs, newest first, without their ranks.
///
/// # Errors
/// When the state folder cannot be read; a missing one is an empty list.
#[expect(clippy::unused_async, reason = "the signature is what the command line builds on")]
pub async fn list(home: &StateHome) -> Result<Vec<JobStatus>, Failure> {
    let mut jobs = Vec::new();
    for folder in all(home)? {
        // A job that another release wrote must not hide the others.
        match state::read(&folder) {
            Ok(mut status) => {
                status.rank_status.clear();
                status.server_status.clear();
                jobs.push(status);
            }
            Err(error) => tracing::warn!(id = folder.id(), error = error.message, "a job cannot be read"),
        }
    }
    jobs.sort_by(|a, b| (b.created_unix_ms, &b.id).cmp(&(a.created_unix_ms, &a.id)));
    Ok(jobs)
}

/// One job, by id or by name (the newest of that name).
///
/// # Errors
/// When there is none.
#[expect(clippy::unused_async, reason = "the signature is what the command line builds on")]
pub async fn status(home: &StateHome, job: &str) -> Result<JobStatus, Failure> {
    state::read(&find(home, job)?)
}

/// Sends the lines that were asked for, in order per log, until there are none, the receiver is gone, or (when
/// following) the job is over.
///
/// # Errors
/// When there is no such job, rank or log.
pub async fn logs(
    home: &StateHome,
    job: &str,
    request: LogRequest,
    lines: mpsc::Sender<LogLine>,
) -> Result<(), Failure> {
    logs::send(&find(home, job)?, &request, &lines).await
}

/// Cancels a job and waits until nothing of it runs.
///
/// # Errors
/// When there is no such job.
pub async fn cancel(home: &StateHome, job: &str, options: CancelOptions) -> Result<JobStatus, Failure> {
    let folder = find(home, job)?;
    let wish = if options.now { Signal::QUIT } else { Signal::TERM };
    let ended = tokio::time::timeout(CANCEL_MAX, async {
        let mut told = None;
        while folder.is_controlled() {
            // A controller that has just begun may not have said yet who it is, or be about to hand the job over.
            let controller = folder.controller();
            if controller != told && controller.is_some_and(|pid| tell(&folder, pid, wish)) {
                told = controller;
            }
            tokio::time::sleep(POLL).await;
        }
    });
    if ended.await.is_err() {
        return Err(Failure::new(ExitCode::Temporary, format!("failed to see the end of {}", folder.id()))
            .hint("it is still being cancelled; `launcher job cancel --now` does not wait for the ranks"));
    }
    state::read(&folder)
}

/// Sends a signal to the controller; false when that has ended in the meantime.
fn tell(folder: &Folder, pid: u32, wish: Signal) -> bool {
    let process = Pid::from_raw(i32::try_from(pid).unwrap_or_default());
    let process = process.and_then(|process| pidfd_open(process, PidfdFlags::empty()).ok());
    process.is_some_and(|process| {
        // Looked at again after it was opened: this is the process that holds the lock.
        folder.controller() == Some(pid) && pidfd_send_signal(&process, wish).is_ok()
    })
}

/// Starts an ended, cancelled or orphaned job again at its last committed step; otherwise like [`submit`].
///
/// # Errors
/// When there is no such job or it still runs.
pub async fn resume(
    home: &StateHome,
    job: &str,
    options: ResumeOptions,
    events: mpsc::Sender<ProgressEvent>,
) -> Result<JobStatus, Failure> {
    let folder = find(home, job)?;
    let mut job = state::read_job(&folder)?;
    let before = state::read(&folder)?;
    if before.phase == super::Phase::Succeeded {
        return Err(Failure::new(
            ExitCode::Usage,
            format!("failed to resume {}: it has succeeded", before.id),
        )
        .hint("submit it again to run it from the beginning"));
    }
    let lock = take_lock(&folder).await?;
    if let Some(workers) = options.workers {
        job.workers.count = workers;
        job.workers.min = job.workers.min.min(workers);
        if let Some(data) = &job.data
            && data.order.global_batch < job.ranks()
        {
            let batch = data.order.global_batch;
            return Err(Failure::new(
                ExitCode::JobFile,
                format!("failed to feed {} ranks with global batches of {batch} samples", job.ranks()),
            )
            .hint("resume with fewer workers"));
        }
    }
    let prepared = prepare::prepare(&job).await?;
    if options.workers.is_some() {
        let cannot_write = |error: std::io::Error| {
            Failure::new(ExitCode::CannotCreate, "failed to write the job").because(&error)
        };
        let bytes = serde_json::to_vec_pretty(&job).map_err(|error| cannot_write(error.into()))?;
        replace_durably(&folder.job(), &bytes).map_err(cannot_write)?;
    }
    let submitted = ProgressEvent::Submitted { id: folder.id(), folder: folder.path().to_owned() };
    let _ = events.send(submitted).await;
    if options.detach {
        return detach(&folder, lock).await;
    }
    let story = state::read_story(&folder)?;
    let setup = Setup::new(&folder, job, uid_of(&story)?, story.memory(), prepared)?;
    Box::pin(controlled(folder, lock, setup, events)).await
}

/// Controls the job in `folder` to its end: the body of the hidden command `job-controller`.
///
/// # Errors
/// When the folder holds no job, or another process controls it.
pub async fn control(folder: &Path) -> Result<JobStatus, Failure> {
    let folder = Folder::at(folder);
    let job = state::read_job(&folder)?;
    let lock = take_lock(&folder).await?;
    let prepared = prepare::prepare(&job).await?;
    let story = state::read_story(&folder)?;
    let setup = Setup::new(&folder, job, uid_of(&story)?, story.memory(), prepared)?;
    let (events, mut unheard) = mpsc::channel(PROGRESS_QUEUE_EVENTS);
    tokio::spawn(async move { while unheard.recv().await.is_some() {} });
    Box::pin(controlled(folder, lock, setup, events)).await
}

/// Writes a new job down and returns its uid.
fn create(folder: &Folder, job: &Job) -> std::io::Result<String> {
    let random = getrandom::u64().and_then(|high| Ok((high, getrandom::u64()?)));
    let (high, low) = random.map_err(|error| std::io::Error::other(error.to_string()))?;
    let uid = format!("{high:016x}{low:016x}");
    let created = Entry::Created { uid: uid.clone() };
    Journal::open(&folder.journal())?.append(crate::backend::clock::unix_ms(), &created, true)?;
    // Last: a folder with it is a job.
    replace_durably(&folder.job(), &serde_json::to_vec_pretty(job)?)?;
    Ok(uid)
}

fn uid_of(story: &journal::Story) -> Result<String, Failure> {
    story.uid().ok_or_else(|| {
        Failure::new(ExitCode::NotFound, "failed to read the job's journal: its first line is damaged")
            .hint("submit the job again")
    })
}

async fn take_lock(folder: &Folder) -> Result<folder::Lock, Failure> {
    let failed = |error: std::io::Error| {
        let path = folder.path().display();
        Failure::new(ExitCode::CannotCreate, format!("failed to lock {path}")).because(&error)
    };
    folder.lock().await.map_err(failed)?.ok_or_else(|| {
        let controller = folder.controller().map_or_else(String::new, |pid| format!(" (process {pid})"));
        Failure::new(ExitCode::Temporary, format!("failed to control {}: it runs{controller}", folder.id()))
            .hint(format!("cancel it first: launcher job cancel {}", folder.id()))
    })
}

/// Runs the controller under this process's signals: the first asks, the second does not wait.
async fn controlled(
    folder: Folder,
    lock: folder::Lock,
    setup: Setup,
    events: mpsc::Sender<ProgressEvent>,
) -> Result<JobStatus, Failure> {
    let (listeners, wishes) = signals::listen()
        .map_err(|error| Failure::new(ExitCode::Internal, "failed to listen for signals").because(&error))?;
    let end = controller::run(folder, lock, setup, wishes, events).await;
    drop(listeners);
    end
}

/// Starts a controller process, gives it the lock, and returns when it controls the job.
async fn detach(folder: &Folder, lock: folder::Lock) -> Result<JobStatus, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(ExitCode::Internal, "failed to start the job's controller").because(&error)
    };
    let log = private_file().append(true).create(true).open(folder.launcher_log()).map_err(failed)?;
    let mut command = std::process::Command::new(controller::this_program().map_err(failed)?);
    command.arg(CONTROLLER_COMMAND).arg(folder.path()).stdin(lock.hand_over());
    command.stdout(log.try_clone().map_err(failed)?).stderr(log);
    // No folder of the user's is kept busy.
    let mut child = spawn_detached(command.current_dir("/")).map_err(failed)?;
    // It holds our end of the lock.
    drop(command);
    let begun = tokio::time::timeout(DETACH_MAX, async {
        while folder.controller() != Some(child.id()) {
            // It may end before anybody looks: then its status is the job's.
            if child.try_wait().ok().flatten().is_some() {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    });
    if begun.await.is_err() {
        return Err(Failure::new(ExitCode::Temporary, "failed to see the job's controller begin")
            .hint(format!("look at {}", folder.launcher_log().display())));
    }
    state::read(folder)
}

fn all(home: &StateHome) -> Result<Vec<Folder>, Failure> {
    Folder::all(home).map_err(|error| {
        let path = home.jobs();
        Failure::new(ExitCode::NotFound, format!("failed to list the jobs in {}", path.display()))
            .because(&error)
    })
}

/// By id, else the newest job of that name.
fn find(home: &StateHome, job: &str) -> Result<Folder, Failure> {
    let folders = all(home)?;
    if let Some(folder) = folders.iter().find(|folder| folder.id() == job) {
        return Ok(folder.clone());
    }
    let named = folders.into_iter().filter(|folder| folder.name() == job);
    let newest = named.max_by_key(|folder| state::read_story(folder).map_or(0, |story| story.created()));
    newest.ok_or_else(|| {
        Failure::new(ExitCode::NotFound, format!("failed to find a job {job:?}"))
            .hint("`launcher job list` shows all jobs, with their ids and names")
    })
}
