//! What the command line does with jobs of a cluster: it writes and reads `TrainingJob`s, and does nothing that
//! `kubectl` could not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use worker::units::{Generation, Rank, Step, WorkerId};

use super::client::refused;
use super::crd::status::Status;
use super::names;
use super::resource::TrainingJob;
use super::sources::list;
use crate::backend::{
    CancelOptions, JobStatus, Phase, Progress, ProgressEvent, RankStatus, ResumeOptions, SubmitOptions,
};
use crate::error::{ExitCode, Failure, in_full};

/// How long a cancelled job may take to end, beyond its own grace: then `cancel` says so.
const CANCEL_MAX: Duration = Duration::from_secs(120);

/// One namespace of a cluster.
#[derive(Clone)]
pub struct Jobs {
    client: Client,
    namespace: String,
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Jobs {
    /// The jobs of `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: String) -> Self {
        Self { client, namespace }
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    fn api(&self) -> Api<TrainingJob> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates the job in `document`, a checked `TrainingJob`, and follows it to its end (or, detached, returns at once).
    /// A job that no cluster of these hosts could ever hold is taken back, unless `waits` says that hosts may come.
    ///
    /// # Errors
    /// When it cannot be created; then nothing of it is left.
    pub async fn submit(
        &self,
        document: &Value,
        options: &SubmitOptions,
        waits: bool,
        events: mpsc::Sender<ProgressEvent>,
    ) -> Result<JobStatus, Failure> {
        let object = object(document)?;
        let params = PostParams { field_manager: Some("launcher".to_owned()), ..PostParams::default() };
        let name = object.name_any();
        let created = self.api().create(&params, &object).await;
        let created = created.map_err(|error| refused(&format!("create the job {name}"), &error))?;
        let submitted = ProgressEvent::Submitted { id: name.clone(), folder: PathBuf::new() };
        let _ = events.send(submitted).await;
        if options.detach {
            return Ok(shown(&created));
        }
        self.follow(&name, created.uid().unwrap_or_default(), !waits, events).await
    }

    /// What creating it would be answered: the API server's own checks, with nothing created.
    ///
    /// # Errors
    /// When it would be refused.
    pub async fn try_create(&self, document: &Value) -> Result<(), Failure> {
        let object = object(document)?;
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let tried = self.api().create(&params, &object).await;
        tried.map(|_| ()).map_err(|error| refused("create the job (as a trial)", &error))
    }

    /// All jobs, newest first, without their ranks.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn list(&self) -> Result<Vec<JobStatus>, Failure> {
        let found = list(&self.api()).await.map_err(|error| refused("list the jobs", &error))?;
        let mut jobs: Vec<JobStatus> =
            found.iter().map(|job| JobStatus { rank_status: Vec::new(), ..shown(job) }).collect();
        jobs.sort_by(|a, b| (b.created_unix_ms, &b.id).cmp(&(a.created_unix_ms, &a.id)));
        Ok(jobs)
    }

    /// One job, by its name.
    ///
    /// # Errors
    /// When there is none.
    pub async fn status(&self, job: &str) -> Result<(JobStatus, Vec<String>), Failure> {
        let found = self.find(job).await?;
        let reasons = found.status.as_ref().map(|status| status.reasons.clone()).unwrap_or_default();
        Ok((shown(&found), reasons))
    }

    /// The object of a job.
    ///
    /// # Errors
    /// When there is none.
    pub async fn find(&self, job: &str) -> Result<TrainingJob, Failure> {
        let found =
            self.api().get_opt(job).await.map_err(|error| refused(&format!("read the job {job}"), &error))?;
        found.ok_or_else(|| {
            Failure::new(ExitCode::NotFound, format!("failed to find a job {job:?} in {}", self.namespace))
                .hint("`launcher job list --on kubernetes` shows all jobs of a namespace; --namespace names another")
        })
    }

    /// Cancels a job and waits until nothing of it runs.
    ///
    /// # Errors
    /// When there is no such job, or it does not end.
    pub async fn cancel(&self, job: &str, options: CancelOptions) -> Result<JobStatus, Failure> {
        let found = self.find(job).await?;
        if phase(&found).is_over() {
            return Ok(shown(&found));
        }
        self.annotate(job, &cancelling(options.now)).await?;
        let over = self.until(job, |job| phase(job).is_over());
        match tokio::time::timeout(CANCEL_MAX, over).await {
            Ok(ended) => ended.map(|job| shown(&job)),
            Err(_) => Err(Failure::new(ExitCode::Temporary, format!("failed to see the end of {job}")).hint(
                "it is still being cancelled; `launcher job cancel --now` does not wait for the ranks",
            )),
        }
    }

    /// Starts an ended, cancelled or suspended job again at its last committed step; otherwise like [`Self::submit`].
    ///
    /// # Errors
    /// When there is no such job or it still runs.
    pub async fn resume(
        &self,
        job: &str,
        options: &ResumeOptions,
        events: mpsc::Sender<ProgressEvent>,
    ) -> Result<JobStatus, Failure> {
        let found = self.find(job).await?;
        match phase(&found) {
            Phase::Succeeded => {
                return Err(Failure::new(
                    ExitCode::Usage,
                    format!("failed to resume {job}: it has succeeded"),
                )
                .hint("submit it again to run it from the beginning"));
            }
            Phase::Failed | Phase::Cancelled | Phase::Suspended => {}
            running => {
                let phase = crate::output::job::phase(running);
                return Err(Failure::new(
                    ExitCode::Temporary,
                    format!("failed to resume {job}: it is {phase}"),
                )
                .hint(format!("cancel it first: launcher job cancel {job} --on kubernetes")));
            }
        }
        let random = getrandom::u64()
            .map_err(|error| Failure::new(ExitCode::Internal, format!("failed to draw a number: {error}")))?;
        let mut change = json!({
            "metadata": {"annotations": {
                names::ANNOTATION_CANCEL: null,
                names::ANNOTATION_RESUME: format!("{random:016x}"),
            }},
            "spec": {"suspend": null},
        });
        if let Some(workers) = options.workers {
            // The kind's own rule: the number of workers changes only while nothing may run.
            self.annotate(job, &json!({"spec": {"suspend": true}})).await?;
            change["spec"]["workers"] = json!({"count": workers, "min": null});
        }
        self.annotate(job, &change).await?;
        let before = phase(&found);
        let begun = self.until(job, |job| phase(job) != before).await?;
        if options.detach {
            return Ok(shown(&begun));
        }
        self.follow(job, found.uid().unwrap_or_default(), false, events).await
    }

    async fn annotate(&self, job: &str, change: &Value) -> Result<(), Failure> {
        let params = PatchParams { field_manager: Some("launcher".to_owned()), ..PatchParams::default() };
        let patched = self.api().patch(job, &params, &Patch::Merge(change)).await;
        patched.map(|_| ()).map_err(|error| refused(&format!("change the job {job}"), &error))
    }

    /// The job, when it is as it should be.
    async fn until(&self, job: &str, holds: impl Fn(&TrainingJob) -> bool) -> Result<TrainingJob, Failure> {
        let mut events = self.watch(job);
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(found) | Event::InitApply(found)) if holds(&found) => return Ok(found),
                Ok(Event::Delete(_)) => break,
                Ok(_) => {}
                Err(error) => tracing::warn!(error = in_full(&error), "cannot watch the job"),
            }
        }
        Err(gone(job))
    }

    fn watch(
        &self,
        job: &str,
    ) -> futures_util::stream::BoxStream<'static, Result<Event<TrainingJob>, watcher::Error>> {
        let config = watcher::Config::default().fields(&format!("metadata.name={job}"));
        watcher(self.api(), config).default_backoff().boxed()
    }

    /// Tells what happens until the job is over; signals cancel it, the second without grace.
    async fn follow(
        &self,
        job: &str,
        uid: String,
        refuses: bool,
        events: mpsc::Sender<ProgressEvent>,
    ) -> Result<JobStatus, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(ExitCode::Internal, "failed to listen for signals").because(&error)
            })
        };
        let (mut interrupt, mut terminate) =
            (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        let mut watched = self.watch(job);
        let mut follower = Follower { events, last: Status::default(), is_first: true };
        let mut wishes = 0_u32;
        loop {
            let mut is_asked = false;
            tokio::select! {
                event = watched.next() => match event {
                    Some(Ok(Event::Apply(found) | Event::InitApply(found))) => {
                        if found.uid().as_deref() != Some(&uid) {
                            return Err(gone(job));
                        }
                        follower.take(&found).await;
                        if phase(&found).is_over() {
                            return Ok(shown(&found));
                        }
                        if let Some(refused) = never_fits(&found).filter(|_| refuses) {
                            return Err(self.take_back(job, refused).await);
                        }
                    }
                    Some(Ok(Event::Delete(found))) if found.uid().as_deref() == Some(&uid) => {
                        return Err(gone(job));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => tracing::warn!(error = in_full(&error), "cannot watch the job"),
                    None => return Err(gone(job)),
                },
                _ = interrupt.recv() => is_asked = true,
                _ = terminate.recv() => is_asked = true,
            }
            if is_asked {
                let now = wishes > 0;
                wishes += 1;
                let _ = follower.events.send(ProgressEvent::Cancelling { now }).await;
                self.annotate(job, &cancelling(now)).await?;
            }
        }
    }

    async fn take_back(&self, job: &str, reasons: Vec<String>) -> Failure {
        let taken = self.api().delete(job, &DeleteParams::background()).await;
        let mut refused = Failure::new(
            ExitCode::Unavailable,
            format!("failed to place the job {job}: it would not fit if nothing else ran"),
        );
        refused.causes = reasons;
        match taken {
            Ok(_) => refused.hint(
                "ask for fewer workers or for less of each; --wait keeps it until the cluster has grown, and \
                 `launcher job plan` shows what there is",
            ),
            Err(error) => refused.hint(format!("it could not be taken back, so it waits: {error}")),
        }
    }
}

fn object(document: &Value) -> Result<TrainingJob, Failure> {
    serde_json::from_value(document.clone())
        .map_err(|error| Failure::new(ExitCode::Internal, "failed to write the job").because(&error))
}

fn gone(job: &str) -> Failure {
    Failure::new(ExitCode::NotFound, format!("failed to follow {job}: somebody deleted it"))
}

fn cancelling(now: bool) -> Value {
    json!({"metadata": {"annotations": {names::ANNOTATION_CANCEL: if now { "now" } else { "grace" }}}})
}

fn phase(job: &TrainingJob) -> Phase {
    job.status.as_ref().map_or(Phase::Pending, |status| status.phase)
}

/// The reasons why a job could never start on the hosts that there are.
fn never_fits(job: &TrainingJob) -> Option<Vec<String>> {
    let status = job.status.as_ref()?;
    let is_so = status.conditions.iter().any(|one| one.type_ == "Placed" && one.reason == "NeverFits");
    (is_so && status.phase == Phase::Pending).then(|| status.reasons.clone())
}

/// Turns what a status says into news.
struct Follower {
    events: mpsc::Sender<ProgressEvent>,
    last: Status,
    is_first: bool,
}

impl Follower {
    async fn take(&mut self, job: &TrainingJob) {
        let Some(status) = job.status.clone() else { return };
        let is_moved = status.phase != self.last.phase || status.generation != self.last.generation;
        let is_waiting = status.phase == Phase::Pending && status.reasons != self.last.reasons;
        if status.restarts > self.last.restarts
            && !self.is_first
            && let Some(cause) = status.cause.clone()
        {
            let restarting = ProgressEvent::Restarting {
                cause,
                restart: status.restarts,
                restarts_max: status.restarts_max,
                backoff_ms: 0,
                from_step: Step(status.committed),
            };
            self.send(restarting).await;
        }
        if is_moved || is_waiting || self.is_first {
            let message = match (&status.cause, status.phase) {
                (Some(cause), Phase::Failed | Phase::Fencing) => cause.message.clone(),
                _ => {
                    let reasons = status.reasons.iter();
                    let reasons = reasons.map(|reason| reason.strip_prefix("waits for ").unwrap_or(reason));
                    reasons.collect::<Vec<_>>().join("; ")
                }
            };
            let generation = Generation(status.generation);
            self.send(ProgressEvent::Phase { phase: status.phase, generation, message }).await;
        }
        if status.step != self.last.step && status.steps_total.is_some() {
            // Dropped when the listener is slow: the next one says it again.
            let _ = self.events.try_send(ProgressEvent::Progress(progress(&status)));
        }
        self.is_first = false;
        self.last = status;
    }

    async fn send(&self, event: ProgressEvent) {
        // A listener that is gone is no error.
        let _ = self.events.send(event).await;
    }
}

fn progress(status: &Status) -> Progress {
    let rates = status.rates.unwrap_or_default();
    let summary = status.summary.clone().unwrap_or_default();
    Progress {
        generation: Generation(status.generation),
        step: Step(status.step),
        steps_total: status.steps_total.map(Step),
        steps_per_epoch: None,
        samples_per_second: rates.samples_per_second,
        bytes_per_second: rates.bytes_per_second,
        bytes_read: summary.bytes_read,
        paths: summary.paths,
        reported: summary.reported,
    }
}

/// A job as every backend shows it.
#[must_use]
pub fn shown(job: &TrainingJob) -> JobStatus {
    let status = job.status.clone().unwrap_or_default();
    let time = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        time.as_ref().and_then(|time| u64::try_from(time.0.as_millisecond()).ok())
    };
    JobStatus {
        id: job.name_any(),
        name: job.name_any(),
        uid: job.uid().unwrap_or_default(),
        backend: "kubernetes".to_owned(),
        phase: status.phase,
        generation: Generation(status.generation),
        restarts: status.restarts,
        restarts_max: status.restarts_max,
        created_unix_ms: time(&job.metadata.creation_timestamp).unwrap_or(0),
        started_unix_ms: time(&status.started_at),
        ended_unix_ms: time(&status.ended_at),
        workers: status.workers,
        ranks: status.ranks,
        step: Step(status.step),
        steps_total: status.steps_total.map(Step),
        committed: Step(status.committed),
        rank_status: ranks(&status),
        server_status: status.servers,
        cause: status.cause,
        summary: status.summary,
        controller_pid: None,
        folder: PathBuf::new(),
    }
}

/// The ranks by their workers' places; a rank's own steps stay with the controller.
fn ranks(status: &Status) -> Vec<RankStatus> {
    let each = status.ranks.checked_div(status.workers).unwrap_or(0);
    let seated = status.placement.iter().filter(|place| place.worker < status.workers);
    let ranks = seated.flat_map(|place| {
        (0..each).map(move |local| RankStatus {
            rank: Rank(place.worker * each + local),
            worker: WorkerId(place.worker),
            host: place.host.clone(),
            pid: None,
            exit: None,
            step: Step(status.step),
            committed: Step(status.committed),
            log: PathBuf::new(),
        })
    });
    let by_rank: BTreeMap<Rank, RankStatus> = ranks.map(|rank| (rank.rank, rank)).collect();
    by_rank.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Paths;
    use crate::backend::kubernetes::crd::status::Place;

    #[test]
    fn ranks_follow_their_workers_places() {
        let place = |worker: u32, host: &str| Place { worker, host: host.to_owned(), numa_node: None };
        let status = Status {
            ranks: 4,
            workers: 2,
            placement: vec![place(1, "b"), place(0, "a"), place(2, "spare")],
            ..Status::default()
        };
        let shown: Vec<(u32, String)> =
            ranks(&status).into_iter().map(|rank| (rank.rank.0, rank.host)).collect();
        assert_eq!(shown, [(0, "a".into()), (1, "a".into()), (2, "b".into()), (3, "b".into())]);
        assert_eq!(progress(&status).paths, Paths::default());
    }

    #[tokio::test]
    async fn a_status_becomes_news_once() {
        let (events, mut heard) = mpsc::channel(16);
        let mut follower = Follower { events, last: Status::default(), is_first: true };
        let waiting = Status { reasons: vec!["no room".to_owned()], ..Status::default() };
        let mut job = TrainingJob { status: Some(waiting), ..TrainingJob::default() };
        follower.take(&job).await;
        follower.take(&job).await;
        job.status = Some(Status { phase: Phase::Running, generation: 1, ..Status::default() });
        follower.take(&job).await;
        drop(follower);
        let mut told = Vec::new();
        while let Some(event) = heard.recv().await {
            let ProgressEvent::Phase { phase, message, .. } = event else { panic!("{event:?}") };
            told.push((phase, message));
        }
        assert_eq!(told, [(Phase::Pending, "no room".to_owned()), (Phase::Running, String::new())]);
    }
}
