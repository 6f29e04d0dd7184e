//! Jobs on this host: one controller process per job, workers as child processes of it.

use std::path::Path;

use tokio::sync::mpsc;

use super::{
    CancelOptions, JobStatus, LogLine, LogRequest, Plan, ProgressEvent, ResumeOptions, SubmitOptions,
};
use crate::config::StateHome;
use crate::error::{ExitCode, Failure};
use crate::job::Job;

fn not_yet(verb: &str) -> Failure {
    Failure::new(ExitCode::Unavailable, format!("failed to {verb}: this build has no local backend"))
        .hint("use a newer build")
}

/// What [`submit`] would do, and whether it could; creates nothing.
///
/// # Errors
/// When the job cannot run here: data, program or resources are missing.
#[expect(clippy::unused_async, reason = "the signature is what the command line builds on")]
pub async fn plan(_home: &StateHome, _job: &Job) -> Result<Plan, Failure> {
    Err(not_yet("plan a job"))
}

/// Runs a job to its end in this process (or, detached, until it exists) and returns its status then.
/// A job that fails is a status with a cause, no error.
///
/// # Errors
/// When the job cannot be started; then nothing of it is left.
#[expect(clippy::unused_async, reason = "the signature is what the command line builds on")]
pub async fn submit(
    _home: &StateHome,
    _job: Job,
    _options: SubmitOptions,
    _events: mpsc::Sender<ProgressEvent>,
) -> Result<JobStatus, Failure> {
    Err(not_yet("submit a job"))
}

/// All jobs, newest first, without their ranks.
///
/// # Errors
/// When the state folder cannot be read; a missing one is an empty list.
#[expect(clippy::unused_async, reason = "the signature is what the command line builds on")]
pub async fn list(_home: &StateHome) -> Result<Vec<JobStatus>, Failure> {
    Err(not_yet("list jobs"))
}

/// One job, by id or by name (the newest of that name).
///
/// # Errors
/// When there is none.
#[expect(clippy::unused_async, reason = "the signature is what the command line builds on")]
pub async fn status(_home: &StateHome, _job: &str) -> Result<JobStatus, Failure> {
    Err(not_yet("read a job's status"))
}

/// Sends the lines that were asked for, in order per log, until there are none, the receiver is gone, or (when
/// following) the job is over.
///
/// # Errors
/// When there is no such job, rank or log.
#[expect(clippy::unused_async, reason = "the signature is what the command line builds on")]
pub async fn logs(
    _home: &StateHome,
    _job: &str,
    _request: LogRequest,
    _lines: mpsc::Sender<LogLine>,
) -> Result<(), Failure> {
    Err(not_yet("read a job's logs"))
}

/// Cancels a job and waits until nothing of it runs.
///
/// # Errors
/// When there is no such job.
#[expect(clippy::unused_async, reason = "the signature is what the command line builds on")]
pub async fn cancel(_home: &StateHome, _job: &str, _options: CancelOptions) -> Result<JobStatus, Failure> {
    Err(not_yet("cancel a job"))
}

/// Starts an ended, cancelled or orphaned job again at its last committed step; otherwise like [`submit`].
///
/// # Errors
/// When there is no such job or it still runs.
#[expect(clippy::unused_async, reason = "the signature is what the command line builds on")]
pub async fn resume(
    _home: &StateHome,
    _job: &str,
    _options: ResumeOptions,
    _events: mpsc::Sender<ProgressEvent>,
) -> Result<JobStatus, Failure> {
    Err(not_yet("resume a job"))
}

/// Controls the job in `folder` to its end: the body of the hidden command `job-controller`.
///
/// # Errors
/// When the folder holds no job, or another process controls it.
#[expect(clippy::unused_async, reason = "the signature is what the command line builds on")]
pub async fn control(_folder: &Path) -> Result<JobStatus, Failure> {
    Err(not_yet("control a job"))
}
