//! What other processes can see of a job: the status file that its controller keeps, corrected by the lock and the
//! journal, which tell the truth when the controller is dead.

use std::fs;

use worker::units::{Generation, Step};

use super::folder::{Folder, replace};
use super::journal::Story;
use crate::backend::numbers::shown;
use crate::backend::{Cause, CauseCode, JobStatus, Phase};
use crate::error::{ExitCode, Failure};
use crate::job::Job;
use crate::rendezvous::group;

/// Reads `job.json`.
pub(super) fn read_job(folder: &Folder) -> Result<Job, Failure> {
    let path = folder.job();
    let broken = || {
        Failure::new(ExitCode::NotFound, format!("failed to read the job in {}", path.display()))
            .hint("the folder was written by another release, or cut short; submit the job again")
    };
    let bytes = fs::read(&path).map_err(|error| broken().because(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| broken().because(&error))
}

/// A job that nobody has controlled yet.
pub(super) fn fresh(folder: &Folder, job: &Job, uid: String, created_unix_ms: u64) -> JobStatus {
    JobStatus {
        id: folder.id(),
        name: job.name.clone(),
        uid,
        backend: "local".to_owned(),
        phase: Phase::Pending,
        generation: Generation(0),
        restarts: 0,
        restarts_max: job.restarts.max,
        created_unix_ms,
        started_unix_ms: None,
        ended_unix_ms: None,
        workers: job.workers.count.get(),
        ranks: job.ranks().get(),
        step: Step(0),
        steps_total: None,
        committed: Step(0),
        cause: None,
        summary: None,
        rank_status: Vec::new(),
        server_status: Vec::new(),
        controller_pid: None,
        folder: folder.path().to_owned(),
    }
}

/// Writes the status file.
pub(super) fn write(folder: &Folder, status: &JobStatus) -> std::io::Result<()> {
    replace(&folder.status(), &serde_json::to_vec_pretty(status)?)
}

/// What is known of a job now.
pub(super) fn read(folder: &Folder) -> Result<JobStatus, Failure> {
    // The lock is looked at first: a controller that ends between the two looks has written its last status.
    let is_controlled = folder.is_controlled();
    let mut status =
        match fs::read(folder.status()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            Some(status) => status,
            None => {
                let story = read_story(folder)?;
                fresh(folder, &read_job(folder)?, story.uid().unwrap_or_default(), story.created())
            }
        };
    status.folder = folder.path().to_owned();
    status.controller_pid = folder.controller();
    if !is_controlled && !status.phase.is_over() {
        orphaned(&mut status, &read_story(folder)?);
    }
    Ok(status)
}

pub(super) fn read_story(folder: &Folder) -> Result<Story, Failure> {
    Story::read(&folder.journal()).map_err(|error| {
        let path = folder.journal();
        Failure::new(ExitCode::NotFound, format!("failed to read {}", path.display())).because(&error)
    })
}

/// The journal has no end and nobody holds the lock.
fn orphaned(status: &mut JobStatus, story: &Story) {
    let memory = story.memory();
    status.generation = status.generation.max(memory.generation);
    status.committed = status.committed.max(memory.committed);
    status.restarts = status.restarts.max(memory.restarts);
    match &memory.outcome {
        // It died after the end was written and before the status was.
        Some(group::Outcome::Succeeded) => status.phase = Phase::Succeeded,
        Some(group::Outcome::Cancelled) => status.phase = Phase::Cancelled,
        Some(group::Outcome::Failed { cause }) => {
            status.phase = Phase::Failed;
            status.cause = Some(shown(cause));
        }
        None => {
            status.phase = Phase::Failed;
            status.cause = Some(Cause {
                code: CauseCode::LauncherDied,
                rank: None,
                worker: None,
                host: None,
                generation: status.generation,
                exit: None,
                message: "the process that controlled the job died".to_owned(),
                hint: format!("go on from step {}: launcher job resume {}", status.committed, status.id),
                log_tail: Vec::new(),
                seen_unix_ms: story.ended(),
            });
        }
    }
    status.ended_unix_ms = Some(status.ended_unix_ms.unwrap_or_else(|| story.ended()));
    for rank in &mut status.rank_status {
        rank.pid = None;
    }
    for server in &mut status.server_status {
        server.pid = None;
    }
}
