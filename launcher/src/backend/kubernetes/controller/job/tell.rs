//! What an actor tells of its job: the status of its object, at a bounded pace.

use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use worker::units::WorkerId;

use super::{Actor, Done, Stage};
use crate::backend::clock::{clock, unix_ms};
use crate::backend::kubernetes::controller::pods::{PodStage, PodView};
use crate::backend::kubernetes::crd::status::{Child, Place, Rates, Status};
use crate::backend::kubernetes::names;
use crate::backend::kubernetes::resource::TrainingJob;
use crate::backend::numbers::{servers, shown, summary};
use crate::backend::{Cause, CauseCode, Phase, ServerStatus};
use crate::placement::Unplaceable;
use crate::rendezvous::group::Outcome;

/// How often a status is told at the most while only numbers change: a thousand jobs must not be a load.
const PACE: Duration = Duration::from_secs(2);
/// How soon a status is told when a phase changes: gathers what changes together.
const PACE_FAST: Duration = Duration::from_millis(100);

/// What has been told, and what is to be told beside the membership's own numbers.
#[derive(Debug)]
pub(super) struct Teller {
    last: Status,
    told_at: Option<Instant>,
    /// When it was last looked at whether there is news, which takes as long as the gang is large.
    looked_at: Option<Instant>,
    is_telling: bool,
    /// The last attempt failed: it is made again at the slow pace.
    is_untold: bool,
    faults: Vec<String>,
    trouble: String,
    waits_for: String,
    refusal: Option<Unplaceable>,
    asked_unix_ms: Option<u64>,
    started_unix_ms: Option<u64>,
    ended_unix_ms: Option<u64>,
    gates_since: Option<Instant>,
    gates_left: usize,
}

impl Teller {
    /// Goes on from what an earlier controller told.
    pub(super) fn new(resource: &TrainingJob) -> Self {
        let last = resource.status.clone().unwrap_or_default();
        let ms =
            |time: &Option<Time>| time.as_ref().and_then(|time| u64::try_from(time.0.as_millisecond()).ok());
        Self {
            started_unix_ms: ms(&last.started_at),
            ended_unix_ms: ms(&last.ended_at),
            last,
            told_at: None,
            looked_at: None,
            is_telling: false,
            is_untold: false,
            faults: Vec::new(),
            trouble: String::new(),
            waits_for: String::new(),
            refusal: None,
            asked_unix_ms: None,
            gates_since: None,
            gates_left: 0,
        }
    }

    /// What is wrong with what the user wrote; empty when nothing is.
    pub(super) fn faults(&mut self, faults: Vec<String>) {
        self.faults = faults;
    }

    /// Something went wrong that may pass by itself.
    pub(super) fn trouble(&mut self, what: String) {
        self.trouble = what;
    }

    pub(super) fn waits_for(&mut self, what: String) {
        self.waits_for = what;
    }

    pub(super) fn asks(&mut self, unix_ms: u64) {
        self.asked_unix_ms.get_or_insert(unix_ms);
    }

    pub(super) fn refused(&mut self, refusal: &Unplaceable) {
        self.refusal = Some(refusal.clone());
    }

    /// Places were given; how long they were waited for.
    pub(super) fn granted(&mut self, unix_ms: u64) -> Duration {
        self.refusal = None;
        let since = self.asked_unix_ms.take().unwrap_or(unix_ms);
        Duration::from_millis(unix_ms.saturating_sub(since))
    }

    pub(super) fn begins(&mut self) {
        self.runs();
        self.ended_unix_ms = None;
    }

    /// All workers run: whatever was in the way is not any more.
    pub(super) fn runs(&mut self) {
        self.trouble.clear();
        self.waits_for.clear();
    }

    /// Nothing is wanted any more.
    pub(super) fn released(&mut self) {
        self.refusal = None;
    }

    pub(super) fn ends(&mut self) {
        self.waits_for.clear();
        self.ended_unix_ms.get_or_insert_with(unix_ms);
    }

    /// For how long the job has been over, whoever saw its end.
    pub(super) fn is_over_for(&self, unix_ms: u64) -> Duration {
        Duration::from_millis(self.ended_unix_ms.map_or(0, |ended| unix_ms.saturating_sub(ended)))
    }

    /// A gate is about to be lifted.
    pub(super) fn gates_begin(&mut self, now: Instant) {
        self.gates_since.get_or_insert(now);
        self.gates_left += 1;
    }

    /// It was not.
    pub(super) fn gate_stays(&mut self) {
        self.gates_left = self.gates_left.saturating_sub(1);
    }

    /// One is; how long all of them took, with the last.
    pub(super) fn gate_lifted(&mut self, now: Instant) -> Option<Duration> {
        self.gates_left = self.gates_left.saturating_sub(1);
        if self.gates_left > 0 {
            return None;
        }
        Some(now.saturating_duration_since(self.gates_since.take()?))
    }

    pub(super) fn told(&mut self, is_told: bool) {
        self.is_telling = false;
        self.is_untold = !is_told;
    }
}

impl Actor {
    /// Tells the status, if it is another one and it is time.
    pub(super) fn tell(&mut self) {
        if self.teller.is_telling || matches!(self.stage, Stage::Finding | Stage::Leaving) {
            return;
        }
        let now = clock();
        let since = self.teller.told_at.map(|told| now.saturating_duration_since(told));
        let pace = if self.teller.is_untold { PACE } else { PACE_FAST };
        let looked = self.teller.looked_at.map(|looked| now.saturating_duration_since(looked));
        if since.is_some_and(|since| since < pace) || looked.is_some_and(|looked| looked < PACE_FAST) {
            return;
        }
        self.teller.looked_at = Some(now);
        let status = self.status();
        let is_news = status.phase != self.teller.last.phase
            // Their texts count pods, which come by the thousand.
            || status.reasons.len() != self.teller.last.reasons.len()
            || status.cause != self.teller.last.cause
            || status.servers != self.teller.last.servers;
        if status == self.teller.last && !self.teller.is_untold
            || since.is_some_and(|since| since < PACE) && !is_news
        {
            return;
        }
        self.teller.last = status.clone();
        self.teller.told_at = Some(now);
        self.teller.is_telling = true;
        let (calls, key) = (self.context.calls.clone(), self.key.clone());
        self.tasks.spawn(async move { Done::Told(calls.write_status(&key, &status).await) });
    }

    fn status(&mut self) -> Status {
        let before = self.teller.last.clone();
        let mut status = Status {
            observed_generation: self.resource.metadata.generation,
            placement: self.places(),
            child: self
                .has_child
                .then(|| Child { kind: self.context.child.kind.clone(), name: names::child(&self.key.name) }),
            ..before
        };
        if let Some(job) = &self.job {
            status.restarts_max = job.restarts.max;
            if status.workers == 0 {
                status.workers = job.workers.count.get();
                status.ranks = job.ranks().get();
            }
        }
        self.tell_stage(&mut status);
        self.tell_servers(&mut status);
        let time = |ms: Option<u64>| {
            let ms = ms.and_then(|ms| i64::try_from(ms).ok())?;
            Timestamp::from_millisecond(ms).ok().map(Time)
        };
        status.started_at = time(self.teller.started_unix_ms);
        status.ended_at = if status.phase.is_over() { time(self.teller.ended_unix_ms) } else { None };
        status.conditions = conditions(&status, &self.teller);
        status.bounded()
    }

    fn tell_stage(&mut self, status: &mut Status) {
        let mut reasons = Vec::new();
        match &mut self.stage {
            Stage::Invalid => {
                status.phase = Phase::Failed;
                status.cause = Some(invalid(&self.teller.faults));
            }
            Stage::Held => status.phase = Phase::Suspended,
            Stage::Asking
            | Stage::Creating
            | Stage::Gating { .. }
            | Stage::Finding
            | Stage::Clearing { .. } => {
                status.phase = Phase::Pending;
                status.cause = None;
            }
            Stage::Live(live) => {
                let view = live.group.view();
                // Whoever waits for the end waits until nothing runs.
                status.phase = match view.phase {
                    Phase::Succeeded if live.group.outcome().is_none() => Phase::Running,
                    Phase::Failed | Phase::Cancelled if live.group.outcome().is_none() => Phase::Fencing,
                    phase => phase,
                };
                status.generation = view.generation.0;
                status.restarts = view.restarts;
                status.workers = view.workers;
                status.ranks = view.world_size;
                status.step = view.step.0;
                status.committed = view.committed.0;
                status.cause = view.cause.as_ref().map(shown);
                // What stands for a process is a sum over a pod's uid, and says nothing.
                let servers = servers(&live.group).into_iter();
                status.servers = servers.map(|server| ServerStatus { pid: None, ..server }).collect();
                let steps = live.group.data().map(|data| data.steps_per_epoch);
                let epochs =
                    self.job.as_ref().and_then(|job| job.data.as_ref()).map(|data| data.epochs.get());
                status.steps_total = steps.zip(epochs).map(|(steps, epochs)| steps.saturating_mul(epochs));
                if matches!(view.phase, Phase::Joining | Phase::Running) {
                    self.teller.started_unix_ms.get_or_insert_with(unix_ms);
                }
                if view.phase.is_over() {
                    self.teller.ended_unix_ms.get_or_insert_with(unix_ms);
                }
                let until = self.teller.ended_unix_ms.unwrap_or_else(unix_ms);
                let started = self.teller.started_unix_ms;
                #[expect(clippy::cast_precision_loss, reason = "milliseconds of a job fit a double exactly")]
                let seconds = started.map_or(0.0, |since| until.saturating_sub(since) as f64 / 1000.0);
                status.summary = Some(summary(&live.group.summary(), steps, seconds));
                let (samples_per_second, bytes_per_second) =
                    live.meter.rates(&live.group, live.started.elapsed());
                status.rates =
                    (view.phase == Phase::Running).then_some(Rates { samples_per_second, bytes_per_second });
                reasons.extend(
                    Some(view.waiting_for)
                        .filter(|what| !what.is_empty())
                        .map(|what| format!("waits for {what}")),
                );
            }
            Stage::Over(_) => {
                status.rates = None;
                match &self.stored.memory.outcome {
                    Some(Outcome::Succeeded) => status.phase = Phase::Succeeded,
                    Some(Outcome::Cancelled) => status.phase = Phase::Cancelled,
                    Some(Outcome::Failed { cause }) => {
                        status.phase = Phase::Failed;
                        status.cause = Some(shown(cause));
                    }
                    None => {}
                }
            }
            Stage::Leaving => {}
        }
        if !status.phase.is_over() {
            reasons.extend(self.reasons());
        }
        status.reasons = reasons;
        if let Some(cause) = &mut status.cause {
            let place = status.placement.iter().find(|place| Some(WorkerId(place.worker)) == cause.worker);
            cause.host = place.map(|place| place.host.clone()).or_else(|| cause.host.take());
        }
    }

    /// Where the membership is not in charge, no data server serves: what was told of them is from before.
    fn tell_servers(&self, status: &mut Status) {
        match &self.stage {
            Stage::Live(_) | Stage::Invalid | Stage::Leaving => {}
            Stage::Over(_) => {
                status.servers.iter_mut().for_each(|server| server.phase = server.phase.at_the_end());
            }
            _ => status.servers.clear(),
        }
    }

    /// What is in the way, besides what the membership waits for.
    fn reasons(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self.teller.refusal.iter().flat_map(Unplaceable::lines).collect();
        for said in [&self.teller.waits_for, &self.teller.trouble] {
            reasons.extend(Some(said).filter(|said| !said.is_empty()).cloned());
        }
        reasons.extend(self.teller.faults.iter().cloned());
        let pods = self.roster.pods().filter(|pod| !pod.trouble.is_empty());
        reasons.extend(pods.map(|pod| format!("pod {}: {}", pod.name, pod.trouble)));
        reasons.extend(self.roster.pods().filter(|pod| pod.is_server).filter_map(|pod| match &pod.stage {
            PodStage::Unschedulable { why } => Some(format!("data server's pod {}: {why}", pod.name)),
            _ => None,
        }));
        reasons
    }

    fn places(&self) -> Vec<Place> {
        let pods = self.roster.last_placed().into_values();
        let place = |pod: &PodView| {
            let (host, numa_node) = (pod.host.clone()?, pod.numa_node());
            Some(Place { worker: pod.worker.0, host, numa_node })
        };
        pods.filter_map(place).collect()
    }
}

fn invalid(faults: &[String]) -> Cause {
    Cause {
        code: CauseCode::Unplaceable,
        rank: None,
        worker: None,
        host: None,
        generation: worker::units::Generation(0),
        exit: None,
        message: faults.join("\n"),
        hint: "`launcher job submit --dry-run` finds the same before anything is created".to_owned(),
        log_tail: Vec::new(),
        seen_unix_ms: 0,
    }
}

/// What other tools wait for, as they are used to.
fn conditions(status: &Status, teller: &Teller) -> Vec<Condition> {
    let is_placed = !matches!(status.phase, Phase::Pending | Phase::Suspended)
        || !status.placement.is_empty() && status.reasons.is_empty();
    let placed = match (&teller.refusal, is_placed) {
        (Some(refusal), _) if refusal.never => ("False", "NeverFits"),
        (Some(_), _) => ("False", "NoRoomNow"),
        (None, true) => ("True", "Placed"),
        (None, false) => ("False", "Waiting"),
    };
    let running = if status.phase == Phase::Running { ("True", "Running") } else { ("False", "NotRunning") };
    let complete =
        if status.phase == Phase::Succeeded { ("True", "Succeeded") } else { ("False", "NotOver") };
    let failed = match status.phase {
        Phase::Failed if !teller.faults.is_empty() => ("True", "Invalid"),
        Phase::Failed => ("True", "Failed"),
        _ => ("False", "NotFailed"),
    };
    let suspended = match status.phase {
        Phase::Suspended => ("True", "Suspended"),
        Phase::Cancelled => ("True", "Cancelled"),
        _ => ("False", "NotSuspended"),
    };
    let all = [
        ("Placed", placed),
        ("Running", running),
        ("Complete", complete),
        ("Failed", failed),
        ("Suspended", suspended),
    ];
    let now = i64::try_from(unix_ms()).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    all.into_iter()
        .map(|(kind, (is_so, reason))| {
            let before = teller.last.conditions.iter().find(|condition| condition.type_ == kind);
            let since = before
                .filter(|before| before.status == is_so)
                .map(|before| before.last_transition_time.clone());
            Condition {
                type_: kind.to_owned(),
                status: is_so.to_owned(),
                reason: reason.to_owned(),
                message: if kind == "Placed" { status.reasons.join("; ") } else { String::new() },
                observed_generation: status.observed_generation,
                last_transition_time: since.unwrap_or_else(|| Time(now.unwrap_or_default())),
            }
        })
        .collect()
}
