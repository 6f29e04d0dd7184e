//! What a controller tells: the status file for other processes, and events for whoever is attached.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use worker::units::Step;

use super::folder::Folder;
use super::setup::Setup;
use super::state;
use crate::backend::numbers::{self, Meter, shown};
use crate::backend::{JobStatus, Paths, Phase, Progress, ProgressEvent, RankStatus};
use crate::rendezvous::group::{self, Group, ServerNews};

/// How often numbers are told and the status file is written, at the most.
const PACE: Duration = Duration::from_millis(250);

/// Tells.
#[derive(Debug)]
pub(super) struct Reporter {
    folder: Folder,
    events: mpsc::Sender<ProgressEvent>,
    status: JobStatus,
    steps_per_epoch: Option<u64>,
    /// Seconds of earlier controllers.
    seconds_before: f64,
    started_unix_ms: Option<u64>,
    told: Option<Duration>,
    last_step: Option<Step>,
    reported: BTreeMap<String, f64>,
    meter: Meter,
}

impl Reporter {
    pub(super) fn new(folder: Folder, setup: &Setup, events: mpsc::Sender<ProgressEvent>) -> Self {
        let created = crate::backend::clock::unix_ms();
        let before = state::read(&folder).ok();
        let mut status = state::fresh(&folder, &setup.job, setup.uid.clone(), created);
        status.steps_total = setup.steps_total().map(Step);
        status.controller_pid = Some(std::process::id());
        let mut seconds_before = 0.0;
        if let Some(before) = before {
            status.created_unix_ms = before.created_unix_ms;
            if setup.is_resumed() {
                status.started_unix_ms = before.started_unix_ms;
                seconds_before = before.summary.map_or(0.0, |summary| summary.seconds);
            }
        }
        Self {
            folder,
            events,
            status,
            steps_per_epoch: setup.steps_per_epoch.map(std::num::NonZeroU64::get),
            seconds_before,
            started_unix_ms: None,
            told: None,
            last_step: None,
            reported: BTreeMap::new(),
            meter: Meter::default(),
        }
    }

    /// Waits for a slow listener; one that is gone is no error.
    pub(super) async fn tell(&self, event: ProgressEvent) {
        let _ = self.events.send(event).await;
    }

    pub(super) async fn phase(&mut self, group: &Group, unix_ms: u64) {
        let view = group.view();
        if view.phase == Phase::Running || view.phase == Phase::Joining {
            self.started_unix_ms.get_or_insert(unix_ms);
            self.status.started_unix_ms.get_or_insert(unix_ms);
        }
        let message = match (&view.phase, &view.cause) {
            (Phase::Failed | Phase::Fencing, Some(cause)) => cause.message.clone(),
            _ => view.waiting_for.clone(),
        };
        self.take(group, unix_ms);
        self.save();
        self.tell(ProgressEvent::Phase { phase: view.phase, generation: view.generation, message }).await;
    }

    pub(super) async fn restarting(&self, group: &Group, cause: &group::Cause, backoff: Duration) {
        let view = group.view();
        self.tell(ProgressEvent::Restarting {
            cause: self.shown(cause),
            restart: view.restarts,
            restarts_max: self.status.restarts_max,
            backoff_ms: u64::try_from(backoff.as_millis()).unwrap_or(u64::MAX),
            from_step: view.committed,
        })
        .await;
    }

    /// Something happened to a data server; the job goes on.
    pub(super) async fn server(&mut self, group: &Group, news: ServerNews, message: String, unix_ms: u64) {
        self.take(group, unix_ms);
        self.save();
        if news == ServerNews::Back {
            tracing::info!(message, "a data server is there");
            return;
        }
        tracing::info!(reason = news.code(), message, "a data server is not there");
        self.tell(ProgressEvent::Warning { code: news.code().to_owned(), message }).await;
    }

    /// Tells numbers, at most at the pace.
    pub(super) fn refresh(&mut self, group: &Group, elapsed: Duration, unix_ms: u64) {
        if self.told.is_some_and(|told| elapsed < told + PACE) {
            return;
        }
        self.told = Some(elapsed);
        let before = self.status.clone();
        self.take(group, unix_ms);
        if self.status.phase.is_over() {
            return;
        }
        if before != self.status {
            self.save();
        }
        if *group.reported() != self.reported {
            self.reported.clone_from(group.reported());
            let event = ProgressEvent::Reported { step: self.status.step, values: self.reported.clone() };
            // Dropped when the listener is slow: the next one says it again.
            let _ = self.events.try_send(event);
        }
        if self.status.steps_total.is_none() {
            return;
        }
        let progress = self.progress(group, elapsed);
        if self.last_step != Some(progress.step) {
            self.last_step = Some(progress.step);
            let _ = self.events.try_send(ProgressEvent::Progress(progress));
        }
    }

    /// The last word.
    pub(super) fn finish(mut self, group: &Group, unix_ms: u64) -> JobStatus {
        self.status.ended_unix_ms = Some(unix_ms);
        self.take(group, unix_ms);
        self.status.controller_pid = None;
        self.save();
        self.status
    }

    fn progress(&mut self, group: &Group, elapsed: Duration) -> Progress {
        let (samples_per_second, bytes_per_second) = self.meter.rates(group, elapsed);
        let counters = group.counters();
        Progress {
            generation: self.status.generation,
            step: self.status.step,
            steps_total: self.status.steps_total,
            steps_per_epoch: self.steps_per_epoch,
            samples_per_second,
            bytes_per_second,
            bytes_read: counters.store_bytes,
            paths: Paths::of(&counters),
            reported: group.reported().clone(),
        }
    }

    /// Takes the group's view into the status.
    fn take(&mut self, group: &Group, unix_ms: u64) {
        let view = group.view();
        let status = &mut self.status;
        status.phase = view.phase;
        status.generation = view.generation;
        status.restarts = view.restarts;
        status.workers = view.workers;
        status.ranks = view.world_size;
        status.step = view.step;
        status.committed = view.committed;
        status.rank_status = group
            .ranks()
            .into_iter()
            .map(|rank| RankStatus {
                rank: rank.rank,
                worker: rank.worker,
                host: rank.host,
                pid: rank.pid,
                exit: rank.exit,
                step: rank.step,
                committed: rank.committed,
                log: self.folder.rank_log(rank.rank),
            })
            .collect();
        status.server_status = numbers::servers(group);
        let until = status.ended_unix_ms.unwrap_or(unix_ms);
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a job fit a double exactly")]
        let seconds =
            self.started_unix_ms.map_or(0.0, |started| until.saturating_sub(started) as f64 / 1000.0);
        let seconds = seconds + self.seconds_before;
        status.summary = Some(numbers::summary(&group.summary(), self.steps_per_epoch, seconds));
        self.status.cause = view.cause.map(|cause| self.shown(&cause));
    }

    fn shown(&self, cause: &group::Cause) -> crate::backend::Cause {
        let mut shown = shown(cause);
        let rank = self.status.rank_status.iter().find(|rank| Some(rank.worker) == shown.worker);
        shown.host = rank.map(|rank| rank.host.clone());
        shown
    }

    fn save(&self) {
        if let Err(error) = state::write(&self.folder, &self.status) {
            // The journal decides; this file only shows.
            tracing::warn!(%error, "cannot write the status file");
        }
    }
}
