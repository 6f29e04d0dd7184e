//! Jobs as text: lists, status, summaries, plans and the report of a failure (pure).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use worker::host::sysfs::ranges;
use worker::rendezvous::message::ExitStatus;

use super::{as_f64, bytes, seconds, table};
use crate::backend::{
    Cause, CauseCode, JobStatus, Paths, Phase, Plan, PlannedWorker, RankStatus, ServerPhase, ServerStatus,
    Summary,
};
use crate::error::ExitCode;

/// Ranks that a plan or status lists by name; more are only counted.
const RANKS_LISTED_MAX: usize = 16;

/// The word for a phase, the same as in JSON.
#[must_use]
pub fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "pending",
        Phase::Suspended => "suspended",
        Phase::Gathering => "gathering",
        Phase::Preflight => "preflight",
        Phase::Assigned => "assigned",
        Phase::Joining => "joining",
        Phase::Running => "running",
        Phase::Suspect => "suspect",
        Phase::Fencing => "fencing",
        Phase::Succeeded => "succeeded",
        Phase::Failed => "failed",
        Phase::Cancelled => "cancelled",
    }
}

/// How a command that waited for this job ends.
#[must_use]
pub fn exit_code(status: &JobStatus) -> ExitCode {
    match (status.phase, status.cause.as_ref().map(|cause| cause.code)) {
        (Phase::Cancelled, _) => ExitCode::Cancelled,
        (Phase::Failed, Some(CauseCode::Hang)) => ExitCode::Hang,
        (Phase::Failed, Some(CauseCode::Unplaceable)) => ExitCode::Unavailable,
        (Phase::Failed, Some(CauseCode::Internal)) => ExitCode::Internal,
        (Phase::Failed, _) => ExitCode::JobFailed,
        _ => ExitCode::Ok,
    }
}

/// One line per job.
#[must_use]
pub fn list(jobs: &[JobStatus], now_unix_ms: u64) -> String {
    let mut rows =
        vec![["ID", "PHASE", "RANKS", "STEP", "RESTARTS", "AGE", "CAUSE"].map(str::to_owned).to_vec()];
    rows.extend(jobs.iter().map(|job| {
        let age = as_f64(now_unix_ms.saturating_sub(job.created_unix_ms)) / 1000.0;
        vec![
            job.id.clone(),
            phase(job.phase).to_owned(),
            job.ranks.to_string(),
            steps(job),
            format!("{}/{}", job.restarts, job.restarts_max),
            seconds(age.floor()).replace(".0 s", "s"),
            job.cause.as_ref().map(short_cause).unwrap_or_default(),
        ]
    }));
    table(&rows)
}

fn steps(job: &JobStatus) -> String {
    match job.steps_total {
        Some(total) => format!("{}/{total}", job.step),
        None => "-".to_owned(),
    }
}

fn short_cause(cause: &Cause) -> String {
    let first = cause.message.lines().next().unwrap_or_default();
    match cause.rank {
        Some(rank) => format!("rank {rank}: {first}"),
        None => first.to_owned(),
    }
}

/// Everything about one job.
#[must_use]
pub fn status(job: &JobStatus) -> String {
    let mut text = format!("{} {}\n", job.id, phase(job.phase));
    let mut line = |name: &str, value: String| {
        writeln!(text, "  {name:<10} {value}").ok();
    };
    let workers = if job.workers == 1 { "1 worker".to_owned() } else { format!("{} workers", job.workers) };
    line("ranks", format!("{} on {workers}, generation {}", job.ranks, job.generation));
    if job.summary.is_none() {
        line("restarts", format!("{} of {}", job.restarts, job.restarts_max));
    }
    if job.steps_total.is_some() {
        line("steps", format!("{} ({} committed)", steps(job), job.committed));
    }
    match job.controller_pid {
        Some(pid) => line("controller", format!("process {pid}")),
        None if !job.phase.is_over() && job.is_local() => line("controller", "none: it died".to_owned()),
        None => {}
    }
    if job.is_local() {
        line("folder", job.folder.display().to_string());
    }
    if let Some(summary) = &job.summary {
        text.push_str(&numbers(summary));
    }
    if !job.rank_status.is_empty() {
        let mut rows =
            vec![["  RANK", "WORKER", "HOST", "PROCESS", "STEP", "STATE"].map(str::to_owned).to_vec()];
        rows.extend(job.rank_status.iter().map(|rank| rank_row(rank, job)));
        text.push_str(&table(&rows));
    }
    if !job.server_status.is_empty() {
        let mut rows = vec![["  SERVER", "WORKER", "HOST", "PROCESS", "STATE"].map(str::to_owned).to_vec()];
        rows.extend(job.server_status.iter().take(RANKS_LISTED_MAX).map(server_row));
        text.push_str(&table(&rows));
        if job.server_status.len() > RANKS_LISTED_MAX {
            writeln!(text, "  and {} more data servers", job.server_status.len() - RANKS_LISTED_MAX).ok();
        }
    }
    if let Some(cause) = &job.cause {
        text.push_str(&failure(job, cause));
    }
    text
}

fn server_row(server: &ServerStatus) -> Vec<String> {
    let phase = match server.phase {
        ServerPhase::Starting => "starting",
        ServerPhase::Serving => "serving",
        ServerPhase::Served => "served",
        ServerPhase::Lost => "lost",
    };
    let state = match server.message.as_str() {
        "" => phase.to_owned(),
        why => format!("{phase}: {why}"),
    };
    vec![
        format!("  {}", server.server),
        server.worker.to_string(),
        if server.host.is_empty() { "-".to_owned() } else { server.host.clone() },
        server.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        state,
    ]
}

fn rank_row(rank: &RankStatus, job: &JobStatus) -> Vec<String> {
    let state = match (rank.exit, rank.pid) {
        (Some(exit), _) => exit_status(exit),
        // A cluster's ranks are where their pods are; how each is doing stays with the controller.
        (None, _) if !job.is_local() => phase(job.phase).to_owned(),
        (None, Some(_)) => "running".to_owned(),
        (None, None) => "not started".to_owned(),
    };
    vec![
        format!("  {}", rank.rank),
        rank.worker.to_string(),
        rank.host.clone(),
        rank.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        rank.step.to_string(),
        state,
    ]
}

fn exit_status(exit: ExitStatus) -> String {
    match exit {
        ExitStatus::Code { code } => format!("exit code {code}"),
        ExitStatus::Signal { signal } => format!("signal {signal}{}", signal_name(signal)),
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        13 => " (SIGPIPE)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

/// The end of an attached job: one line and its numbers.
#[must_use]
pub fn summary(job: &JobStatus) -> String {
    let mut text = format!("{} {}", job.id, phase(job.phase));
    if let Some(summary) = &job.summary {
        writeln!(text, " in {}", seconds(summary.seconds)).ok();
        text.push_str(&numbers(summary));
    } else {
        text.push('\n');
    }
    text
}

fn numbers(summary: &Summary) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(text, "  {name:<10} {value}").ok();
    };
    if summary.steps > 0 || summary.samples > 0 {
        line("steps", format!("{} ({} epochs)", summary.steps, summary.epochs));
        let rates =
            format!("{:.1} samples/s, {}", summary.samples_per_second, rate(summary.bytes_per_second));
        line("samples", format!("{} ({}), {rates}", summary.samples, bytes(summary.sample_bytes)));
        let tier = match summary.bytes_from_tier {
            0 => String::new(),
            kept => format!(", {} from local tiers", bytes(kept)),
        };
        let servers = match summary.bytes_read_by_servers {
            0 => String::new(),
            read => format!(" ({} of it by data servers)", bytes(read)),
        };
        line("read", format!("{} from the store{servers}{tier}", bytes(summary.bytes_read)));
        line("exchanged", format!("{} between workers", bytes(summary.bytes_exchanged)));
        line("paths", paths(&summary.paths));
    }
    if let Some(digest) = summary.order_digest.filter(|_| summary.steps > 0) {
        line("order", digest.to_string());
    }
    if !summary.reported.is_empty() {
        line("reported", metrics(&summary.reported));
    }
    if summary.restarts > 0 {
        line("restarts", format!("{} ({} generations)", summary.restarts, summary.generations));
    }
    text
}

pub(super) fn rate(bytes_per_second: f64) -> String {
    if bytes_per_second >= 1e8 {
        return format!("{:.2} GB/s", bytes_per_second / 1e9);
    }
    format!("{:.2} MB/s", bytes_per_second / 1e6)
}

/// Where bytes came from, in shares.
pub(super) fn paths(paths: &Paths) -> String {
    let Paths { local, quic, rdma } = *paths;
    let total = local.saturating_add(quic).saturating_add(rdma);
    if total == 0 {
        return "none yet".to_owned();
    }
    let used = [("local", local), ("quic", quic), ("rdma", rdma)];
    let share = |(name, bytes): (&str, u64)| format!("{name} {:.0}%", 100.0 * as_f64(bytes) / as_f64(total));
    used.into_iter().filter(|(_, bytes)| *bytes > 0).map(share).collect::<Vec<_>>().join(", ")
}

/// Reported values, `name value` each.
pub(super) fn metrics(values: &BTreeMap<String, f64>) -> String {
    values.iter().map(|(name, value)| format!("{name} {}", metric(*value))).collect::<Vec<_>>().join(", ")
}

fn metric(value: f64) -> String {
    if value == 0.0 || (1e-3..1e6).contains(&value.abs()) {
        let text = format!("{value:.4}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    format!("{value:.3e}")
}

/// Why a job failed: which rank, why, the end of its log, and what to do.
#[must_use]
pub fn failure(job: &JobStatus, cause: &Cause) -> String {
    let verb = match job.phase {
        Phase::Failed => "error: job {} failed",
        Phase::Cancelled => "note: job {} had trouble before it was cancelled",
        Phase::Succeeded => "note: job {} had trouble before it succeeded",
        _ => "warning: job {} has trouble",
    };
    let mut text = verb.replace("{}", &job.id);
    let who = match (cause.rank, cause.worker) {
        (Some(rank), Some(worker)) => format!(": rank {rank} (worker {worker}{})", on(cause)),
        (Some(rank), None) => format!(": rank {rank}{}", on(cause)),
        (None, Some(worker)) => format!(": worker {worker}{}", on(cause)),
        (None, None) => String::new(),
    };
    text.push_str(&who);
    if let Some(exit) = cause.exit {
        write!(text, " ended with {}", exit_status(exit)).ok();
    }
    text.push('\n');
    // What has just been said is no reason.
    let said = cause.exit.map(exit_status);
    for line in cause.message.lines().filter(|line| said.as_deref() != Some(*line)) {
        writeln!(text, "  because: {line}").ok();
    }
    if job.restarts > 0 {
        writeln!(text, "  after: {} of {} restarts", job.restarts, job.restarts_max).ok();
    }
    if !cause.log_tail.is_empty() {
        let whose = cause.rank.map_or_else(|| "its log".to_owned(), |rank| format!("the log of rank {rank}"));
        writeln!(text, "  the end of {whose}:").ok();
        for line in &cause.log_tail {
            writeln!(text, "    | {line}").ok();
        }
    }
    let hint = match cause.rank {
        _ if !cause.hint.is_empty() => cause.hint.clone(),
        Some(rank) => format!("`launcher job logs {} --rank {rank}` shows all of it", job.id),
        None => format!("`launcher job logs {} --system` shows what led to it", job.id),
    };
    writeln!(text, "  hint: {hint}").ok();
    text
}

fn on(cause: &Cause) -> String {
    cause.host.as_ref().map(|host| format!(" on {host}")).unwrap_or_default()
}

/// What would be done.
#[must_use]
pub fn plan(plan: &Plan) -> String {
    let mut text = format!("{} would run {} ranks on {}\n", plan.name, plan.ranks, plan.backend);
    writeln!(text, "  command    {}", plan.command.join(" ")).ok();
    writeln!(text, "  workdir    {}", plan.workdir.display()).ok();
    if let Some(data) = &plan.data {
        writeln!(text, "  data       {}", data.source).ok();
        let shape = format!("{} chunks of {} shards", data.chunks, data.shards);
        writeln!(text, "             {} samples ({}) in {shape}", data.samples, bytes(data.bytes)).ok();
        let steps = data.steps_per_epoch.saturating_mul(data.epochs);
        let order = format!("{} epochs of {} steps: {steps} steps", data.epochs, data.steps_per_epoch);
        writeln!(text, "  steps      {order} of {} samples", data.global_batch).ok();
        let (least, most) = (data.samples_per_rank.iter().min(), data.samples_per_rank.iter().max());
        match (least, most) {
            (Some(least), Some(most)) if least == most => {
                writeln!(text, "  share      {least} samples a rank").ok()
            }
            (Some(least), Some(most)) => writeln!(text, "  share      {least} to {most} samples a rank").ok(),
            _ => None,
        };
    }
    let mut rows =
        vec![["  WORKER", "HOST", "RANKS", "CPUS", "NUMA", "GPUS", "OWNS"].map(str::to_owned).to_vec()];
    rows.extend(plan.workers.iter().take(RANKS_LISTED_MAX).map(worker_row));
    text.push_str(&table(&rows));
    if plan.workers.len() > RANKS_LISTED_MAX {
        writeln!(text, "  and {} more workers", plan.workers.len() - RANKS_LISTED_MAX).ok();
    }
    for note in &plan.notes {
        writeln!(text, "  note: {note}").ok();
    }
    text
}

fn worker_row(worker: &PlannedWorker) -> Vec<String> {
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let ranks: Vec<u32> = worker.ranks.iter().map(|rank| rank.0).collect();
    vec![
        format!("  {}", worker.worker),
        worker.host.clone(),
        match (worker.serves, ranks.is_empty()) {
            (true, _) => "data server".to_owned(),
            (false, true) => "spare".to_owned(),
            (false, false) => ranges(&ranks),
        },
        or_dash(ranges(&worker.cpus)),
        or_dash(worker.numa_node.map(|node| node.to_string()).unwrap_or_default()),
        or_dash(ranges(&worker.gpus)),
        format!("{} chunks, {}", worker.chunks_owned, bytes(worker.bytes_owned)),
    ]
}

#[cfg(test)]
mod tests;
