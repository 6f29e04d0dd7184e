//! `launcher job …`: what a backend does is shown here.

use std::path::Path;

use tokio::sync::mpsc;
use worker::units::Rank;

use super::{cluster, submit};
use crate::backend::{
    CancelOptions, JobStatus, LogLine, LogRequest, PROGRESS_QUEUE_EVENTS, Phase, ProgressEvent,
    ResumeOptions, SubmitOptions, local,
};
use crate::cli::{Backend, JobCommand, Logs, Place, Submit};
use crate::config::{Config, StateHome};
use crate::error::{ExitCode, Failure};
use crate::output::progress::View;
use crate::output::{self, Printer};

/// Lines of logs that may wait for a slow reader.
pub(super) const LOG_QUEUE_LINES: usize = 1024;

/// Runs one of the verbs.
///
/// # Errors
/// When it failed; a job that failed is a code.
pub async fn run(command: JobCommand, printer: Printer, config: &Config) -> Result<ExitCode, Failure> {
    if place(&command).on == Backend::Kubernetes {
        return cluster::run(command, printer).await;
    }
    let home = config.state_home()?;
    match command {
        JobCommand::Submit(flags) => Box::pin(submit(&flags, printer, &home)).await,
        JobCommand::Plan(flags) => plan(&flags, printer, &home).await,
        JobCommand::List { .. } => list(printer, &home).await,
        JobCommand::Status { job, .. } => {
            let status = local::status(&home, &job).await?;
            printer.data(&status, output::job::status)?;
            Ok(ExitCode::Ok)
        }
        JobCommand::Logs(flags) => logs(flags, printer, &home).await,
        JobCommand::Cancel { job, now, .. } => {
            let status = local::cancel(&home, &job, CancelOptions { now }).await?;
            printer.data(&status, output::job::summary)?;
            Ok(ExitCode::Ok)
        }
        JobCommand::Resume { job, workers, detach, .. } => {
            let (events, view) = watch(printer);
            let status =
                Box::pin(local::resume(&home, &job, ResumeOptions { workers, detach }, events)).await;
            view.await.ok();
            tell(&status?, detach, printer)
        }
    }
}

fn place(command: &JobCommand) -> &Place {
    match command {
        JobCommand::Submit(flags) | JobCommand::Plan(flags) => &flags.place,
        JobCommand::Logs(flags) => &flags.place,
        JobCommand::List { place }
        | JobCommand::Status { place, .. }
        | JobCommand::Cancel { place, .. }
        | JobCommand::Resume { place, .. } => place,
    }
}

async fn submit(flags: &Submit, printer: Printer, home: &StateHome) -> Result<ExitCode, Failure> {
    if flags.dry_run {
        return plan(flags, printer, home).await;
    }
    let job = submit::job(flags)?;
    submit::refuse_what_this_host_lacks(&job)?;
    let detach = flags.detach;
    let (events, view) = watch(printer);
    let status = Box::pin(local::submit(home, job, SubmitOptions { detach }, events)).await;
    view.await.ok();
    tell(&status?, detach, printer)
}

async fn plan(flags: &Submit, printer: Printer, home: &StateHome) -> Result<ExitCode, Failure> {
    let job = submit::job(flags)?;
    submit::refuse_what_this_host_lacks(&job)?;
    let plan = local::plan(home, &job).await?;
    printer.data(&plan, output::job::plan)?;
    Ok(ExitCode::Ok)
}

/// Shows progress until the sender is gone.
pub(super) fn watch(printer: Printer) -> (mpsc::Sender<ProgressEvent>, tokio::task::JoinHandle<()>) {
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
pub(super) fn tell(status: &JobStatus, detached: bool, printer: Printer) -> Result<ExitCode, Failure> {
    let on = if status.backend == "local" { String::new() } else { format!(" --on {}", status.backend) };
    if detached {
        printer.data(status, |status| format!("{}\n", status.id))?;
        printer.note(format_args!("`launcher job logs -f {}{on}` follows it", status.id));
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
            printer.note(format_args!("`launcher job resume {}{on}` goes on at step {at}", status.id));
        }
        _ => {}
    }
    printed.map(|()| output::job::exit_code(status))
}

async fn list(printer: Printer, home: &StateHome) -> Result<ExitCode, Failure> {
    let jobs = local::list(home).await?;
    if jobs.is_empty() && !printer.json {
        printer.note(format_args!("no jobs in {}", Path::display(&home.0)));
        return Ok(ExitCode::Ok);
    }
    show_list(&jobs, printer)
}

#[expect(clippy::disallowed_methods, reason = "a list shows ages, and this shell owns the clock")]
pub(super) fn show_list(jobs: &Vec<JobStatus>, printer: Printer) -> Result<ExitCode, Failure> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    printer.data(jobs, |jobs| output::job::list(jobs, now))?;
    Ok(ExitCode::Ok)
}

async fn logs(flags: Logs, printer: Printer, home: &StateHome) -> Result<ExitCode, Failure> {
    let (job, request) = log_request(flags);
    let one = request.rank.is_some();
    let (sender, lines) = mpsc::channel::<LogLine>(LOG_QUEUE_LINES);
    let home = home.clone();
    let reader = tokio::spawn(async move { local::logs(&home, &job, request, sender).await });
    show_lines(lines, one, printer).await?;
    match reader.await {
        Ok(result) => result.map(|()| ExitCode::Ok),
        Err(error) => Err(Failure::new(ExitCode::Internal, "failed to read the logs").because(&error)),
    }
}

/// Which job, and what of its logs.
pub(super) fn log_request(flags: Logs) -> (String, LogRequest) {
    let Logs { job, follow, rank, tail, system, place: _ } = flags;
    (job, LogRequest { rank: rank.map(Rank), system, tail, follow })
}

/// Prints lines as they come; those of one log without its name.
pub(super) async fn show_lines(
    mut lines: mpsc::Receiver<LogLine>,
    is_one: bool,
    printer: Printer,
) -> Result<(), Failure> {
    while let Some(line) = lines.recv().await {
        match (printer.json, is_one) {
            (true, _) => printer.json_line(&line)?,
            (false, true) => printer.text(&format!("{}\n", line.text))?,
            (false, false) => printer.text(&format!("{}: {}\n", line.log, line.text))?,
        }
    }
    Ok(())
}
