//! `launcher job …`: what a backend does is shown here.

use std::path::Path;

use tokio::sync::mpsc;
use worker::units::Rank;

use super::submit;
use crate::backend::{
    CancelOptions, JobStatus, LogLine, LogRequest, PROGRESS_QUEUE_EVENTS, Phase, ProgressEvent,
    ResumeOptions, SubmitOptions, local,
};
use crate::cli::{Backend, JobCommand, Logs, Submit};
use crate::config::{Config, StateHome};
use crate::error::{ExitCode, Failure};
use crate::output::progress::View;
use crate::output::{self, Printer};

/// Lines of logs that may wait for a slow reader.
const LOG_QUEUE_LINES: usize = 1024;

/// Runs one of the verbs.
///
/// # Errors
/// When it failed; a job that failed is a code.
pub async fn run(command: JobCommand, printer: Printer, config: &Config) -> Result<ExitCode, Failure> {
    if let JobCommand::Submit(flags) = &command
        && flags.on == Backend::Kubernetes
    {
        return Err(Failure::new(ExitCode::Unavailable, "this build cannot run jobs on kubernetes")
            .hint("leave --on out to run it on this host"));
    }
    let home = config.state_home()?;
    match command {
        JobCommand::Submit(flags) => submit(&flags, printer, &home).await,
        JobCommand::List => list(printer, &home).await,
        JobCommand::Status { job } => {
            let status = local::status(&home, &job).await?;
            printer.data(&status, output::job::status)?;
            Ok(ExitCode::Ok)
        }
        JobCommand::Logs(flags) => logs(flags, printer, &home).await,
        JobCommand::Cancel { job, now } => {
            let status = local::cancel(&home, &job, CancelOptions { now }).await?;
            printer.data(&status, output::job::summary)?;
            Ok(ExitCode::Ok)
        }
        JobCommand::Resume { job, workers, detach } => {
            let (events, view) = watch(printer);
            let status = local::resume(&home, &job, ResumeOptions { workers, detach }, events).await;
            view.await.ok();
            tell(&status?, detach, printer)
        }
    }
}

async fn submit(flags: &Submit, printer: Printer, home: &StateHome) -> Result<ExitCode, Failure> {
    let options = SubmitOptions { detach: flags.detach };
    let dry_run = flags.dry_run;
    let job = submit::job(flags)?;
    submit::refuse_what_this_build_lacks(&job)?;
    if dry_run {
        let plan = local::plan(home, &job).await?;
        printer.data(&plan, output::job::plan)?;
        return Ok(ExitCode::Ok);
    }
    let detach = options.detach;
    let (events, view) = watch(printer);
    let status = local::submit(home, job, options, events).await;
    view.await.ok();
    tell(&status?, detach, printer)
}

/// Shows progress until the sender is gone.
fn watch(printer: Printer) -> (mpsc::Sender<ProgressEvent>, tokio::task::JoinHandle<()>) {
    let (sender, mut receiver) = mpsc::channel(PROGRESS_QUEUE_EVENTS);
    let task = tokio::spawn(async move {
        let mut view = View::new(printer);
        while let Some(event) = receiver.recv().await {
            view.take(&event);
        }
        view.finish();
    });
    (sender, task)
}

/// What an attached job came to: the numbers as data, a failure's report beside them.
fn tell(status: &JobStatus, detached: bool, printer: Printer) -> Result<ExitCode, Failure> {
    if detached {
        printer.data(status, |status| format!("{}\n", status.id))?;
        printer.note(format_args!("`launcher job logs -f {}` follows it", status.id));
        return Ok(ExitCode::Ok);
    }
    // A reader that is gone changes nothing about how the job ended.
    let printed = match printer.data(status, output::job::summary) {
        Err(failure) if failure.code == ExitCode::Ok => Ok(()),
        printed => printed,
    };
    match (&status.cause, status.phase) {
        (Some(cause), Phase::Failed) => printer.error_text(&output::job::failure(status, cause)),
        (_, Phase::Failed) => printer.error_text(&format!("error: job {} failed\n", status.id)),
        (_, Phase::Cancelled) => {
            let at = status.committed;
            printer.note(format_args!("`launcher job resume {}` goes on at step {at}", status.id));
        }
        _ => {}
    }
    printed.map(|()| output::job::exit_code(status))
}

#[expect(clippy::disallowed_methods, reason = "a list shows ages, and this shell owns the clock")]
async fn list(printer: Printer, home: &StateHome) -> Result<ExitCode, Failure> {
    let jobs = local::list(home).await?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    if jobs.is_empty() && !printer.json {
        printer.note(format_args!("no jobs in {}", Path::display(&home.0)));
        return Ok(ExitCode::Ok);
    }
    printer.data(&jobs, |jobs| output::job::list(jobs, now))?;
    Ok(ExitCode::Ok)
}

async fn logs(flags: Logs, printer: Printer, home: &StateHome) -> Result<ExitCode, Failure> {
    let Logs { job, follow, rank, tail, system } = flags;
    let request = LogRequest { rank: rank.map(Rank), system, tail, follow };
    let one = request.rank.is_some();
    let (sender, mut lines) = mpsc::channel::<LogLine>(LOG_QUEUE_LINES);
    let home = home.clone();
    let reader = tokio::spawn(async move { local::logs(&home, &job, request, sender).await });
    while let Some(line) = lines.recv().await {
        match (printer.json, one) {
            (true, _) => printer.json_line(&line)?,
            (false, true) => printer.text(&format!("{}\n", line.text))?,
            (false, false) => printer.text(&format!("{}: {}\n", line.log, line.text))?,
        }
    }
    match reader.await {
        Ok(result) => result.map(|()| ExitCode::Ok),
        Err(error) => Err(Failure::new(ExitCode::Internal, "failed to read the logs").because(&error)),
    }
}
