//! `launcher job … --on kubernetes`: the same verbs, carried out by a cluster.

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{job, submit};
use crate::backend::kubernetes::client::connect;
use crate::backend::kubernetes::jobs::Jobs;
use crate::backend::kubernetes::{logs, preview};
use crate::backend::{CancelOptions, LogLine, ResumeOptions, SubmitOptions};
use crate::cli::cluster::ClusterFlags;
use crate::cli::{JobCommand, Logs, Submit};
use crate::error::{ExitCode, Failure};
use crate::output::{self, Printer};

/// Runs one of the verbs.
///
/// # Errors
/// When it failed; a job that failed is a code.
pub async fn run(command: JobCommand, printer: Printer) -> Result<ExitCode, Failure> {
    match command {
        JobCommand::Submit(flags) if flags.dry_run => plan(&flags, true, printer).await,
        JobCommand::Submit(flags) => submit(&flags, printer).await,
        JobCommand::Plan(flags) => plan(&flags, false, printer).await,
        JobCommand::List { place } => {
            let jobs = jobs(&place.cluster).await?;
            let list = jobs.list().await?;
            if list.is_empty() && !printer.json {
                printer.note(format_args!("no jobs in the namespace {}", jobs.namespace()));
                return Ok(ExitCode::Ok);
            }
            job::show_list(&list, printer)
        }
        JobCommand::Status { job, place } => {
            let (status, reasons) = jobs(&place.cluster).await?.status(&job).await?;
            if printer.json {
                let mut value = serde_json::to_value(&status).unwrap_or_default();
                value["reasons"] = json!(reasons);
                printer.json(&value)?;
            } else {
                printer.text(&output::job::status(&status))?;
                reasons.iter().for_each(|reason| printer.note(format_args!("  because: {reason}")));
            }
            Ok(ExitCode::Ok)
        }
        JobCommand::Logs(flags) => show_logs(flags, printer).await,
        JobCommand::Cancel { job, now, place } => {
            let status = jobs(&place.cluster).await?.cancel(&job, CancelOptions { now }).await?;
            printer.data(&status, output::job::summary)?;
            Ok(ExitCode::Ok)
        }
        JobCommand::Resume { job, workers, detach, place } => {
            let jobs = jobs(&place.cluster).await?;
            let (events, view) = job::watch(printer);
            let status = jobs.resume(&job, &ResumeOptions { workers, detach }, events).await;
            view.await.ok();
            job::tell(&status?, detach, printer)
        }
    }
}

async fn jobs(flags: &ClusterFlags) -> Result<Jobs, Failure> {
    let (client, namespace) = connect(flags).await?;
    Ok(Jobs::new(client, namespace))
}

async fn submit(flags: &Submit, printer: Printer) -> Result<ExitCode, Failure> {
    let (document, job) = submit::job_for_cluster(flags)?;
    submit::refuse_what_this_build_lacks(&job)?;
    let jobs = jobs(&flags.place.cluster).await?;
    let (events, view) = job::watch(printer);
    let options = SubmitOptions { detach: flags.detach };
    let status = jobs.submit(&document, &options, flags.wait, events).await;
    view.await.ok();
    job::tell(&status?, flags.detach, printer)
}

/// Where the job would go, and with `objects` also everything that would be made.
async fn plan(flags: &Submit, objects: bool, printer: Printer) -> Result<ExitCode, Failure> {
    let (document, job) = submit::job_for_cluster(flags)?;
    submit::refuse_what_this_build_lacks(&job)?;
    let jobs = jobs(&flags.place.cluster).await?;
    let preview = preview::preview(&jobs, &job, &document).await?;
    if printer.json {
        let mut value = serde_json::to_value(&preview.plan).unwrap_or_default();
        if objects {
            value["objects"] = Value::Array(preview.objects.clone());
        }
        value["reasons"] = json!(preview.reasons());
        printer.json(&value)?;
    } else {
        printer.text(&preview.text())?;
        if objects {
            printer.text(&preview.yaml()?)?;
        }
    }
    match preview.refusal {
        Some(refusal) if refusal.never => Err(preview::never_fits(&refusal)),
        _ => Ok(ExitCode::Ok),
    }
}

async fn show_logs(flags: Logs, printer: Printer) -> Result<ExitCode, Failure> {
    let jobs = jobs(&flags.place.cluster).await?;
    let (job, request) = job::log_request(flags);
    let is_one = request.rank.is_some();
    let (sender, lines) = mpsc::channel::<LogLine>(job::LOG_QUEUE_LINES);
    let reader = tokio::spawn(async move { logs::send(&jobs, &job, request, sender).await });
    job::show_lines(lines, is_one, printer).await?;
    match reader.await {
        Ok(result) => result.map(|()| ExitCode::Ok),
        Err(error) => Err(Failure::new(ExitCode::Internal, "failed to read the logs").because(&error)),
    }
}
