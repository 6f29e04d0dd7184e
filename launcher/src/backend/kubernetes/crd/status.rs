//! `status` of a `TrainingJob`: what the controller tells, in the words of `launcher job status --output json` (pure).
//!
//! It is told, never read back to decide by: the membership's memory is in a ConfigMap of its own. All of it is
//! bounded, because the API server keeps an object of at most 1.5 MiB.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::backend::{Cause, Phase, ServerStatus, Summary};

/// Reasons that are kept: more than a screen of them helps nobody.
pub const REASONS_MAX: usize = 32;
/// Characters of one text (a reason, a line of a log, a message): a line longer than this is data.
pub const TEXT_CHARS_MAX: usize = 4096;
/// Lines of a rank's log in a cause.
pub const LOG_LINES_MAX: usize = 64;
/// Places that are listed; each pod's own is in its annotation.
pub const PLACES_MAX: usize = 1024;
/// Data servers that are listed: as many as a job may have.
pub const SERVERS_MAX: usize = 1024;
/// Characters of what is wrong with one of them: with 1024 of them the object is still small enough.
pub const SERVER_CHARS_MAX: usize = 256;
/// Epochs whose digests are kept, the last ones; the digest of the whole job covers all of them.
pub const EPOCHS_MAX: usize = 1024;
/// Metrics of the trainer's that are kept.
pub const METRICS_MAX: usize = 256;
/// Conditions of one object; there are five kinds of them.
pub const CONDITIONS_MAX: usize = 16;

/// What the controller tells of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// How far it is; on a cluster the word begins with a capital letter, as those of pods do.
    #[serde(with = "PhaseWord")]
    pub phase: Phase,
    /// One of each type; `status` is `True`, `False` or `Unknown`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The membership's number; 0 for none yet.
    pub generation: u64,
    /// The `metadata.generation` that all of this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ranks of all workers together.
    pub ranks: u32,
    /// Workers that have ranks.
    pub workers: u32,
    /// Steps done by every rank.
    pub step: u64,
    /// Steps of the whole job; none without data, or before it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_total: Option<u64>,
    /// Steps done and durably saved by every rank.
    pub committed: u64,
    /// Restarts so far.
    pub restarts: u32,
    /// Restarts that the job allows.
    pub restarts_max: u32,
    /// Why it failed, is suspected, or last restarted.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "without_nulls")]
    pub cause: Option<Cause>,
    /// The numbers at its end, or so far.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "without_nulls",
        deserialize_with = "summary"
    )]
    pub summary: Option<Summary>,
    /// What is consumed in a second, over the last few.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// Why it waits: what would have to change before it can start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// Where the workers are; at most [`PLACES_MAX`] of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub placement: Vec<Place>,
    /// The data servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<ServerStatus>,
    /// The object that makes the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child: Option<Child>,
    /// When the first rank was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            phase: Phase::Pending,
            conditions: Vec::new(),
            generation: 0,
            observed_generation: None,
            ranks: 0,
            workers: 0,
            step: 0,
            steps_total: None,
            committed: 0,
            restarts: 0,
            restarts_max: 0,
            cause: None,
            summary: None,
            rates: None,
            reasons: Vec::new(),
            placement: Vec::new(),
            servers: Vec::new(),
            child: None,
            started_at: None,
            ended_at: None,
        }
    }
}

impl Status {
    /// The word of its phase.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self.phase {
            Phase::Pending => "Pending",
            Phase::Suspended => "Suspended",
            Phase::Gathering => "Gathering",
            Phase::Preflight => "Preflight",
            Phase::Assigned => "Assigned",
            Phase::Joining => "Joining",
            Phase::Running => "Running",
            Phase::Suspect => "Suspect",
            Phase::Fencing => "Fencing",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
            Phase::Cancelled => "Cancelled",
        }
    }

    /// The same, cut to what the schema accepts.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.conditions.truncate(CONDITIONS_MAX);
        for condition in &mut self.conditions {
            shorten(&mut condition.message);
        }
        self.reasons.truncate(REASONS_MAX);
        self.reasons.iter_mut().for_each(shorten);
        self.placement.truncate(PLACES_MAX);
        self.servers.truncate(SERVERS_MAX);
        self.servers.iter_mut().for_each(|server| cut(&mut server.message, SERVER_CHARS_MAX));
        if let Some(summary) = &mut self.summary {
            while summary.epoch_digests.len() > EPOCHS_MAX {
                summary.epoch_digests.pop_first();
            }
            while summary.reported.len() > METRICS_MAX {
                summary.reported.pop_last();
            }
        }
        if let Some(cause) = &mut self.cause {
            // The end of a log says why, not its beginning.
            let surplus = cause.log_tail.len().saturating_sub(LOG_LINES_MAX);
            cause.log_tail.drain(..surplus);
            cause.log_tail.iter_mut().for_each(shorten);
            shorten(&mut cause.message);
            shorten(&mut cause.hint);
        }
        self
    }
}

fn shorten(text: &mut String) {
    cut(text, TEXT_CHARS_MAX);
}

fn cut(text: &mut String, chars: usize) {
    if let Some((end, _)) = text.char_indices().nth(chars) {
        text.truncate(end);
    }
}

/// What is consumed in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rates {
    /// Samples a second.
    pub samples_per_second: f64,
    /// Sample bytes a second.
    pub bytes_per_second: f64,
}

/// One worker's place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Place {
    /// Which worker.
    pub worker: u32,
    /// Its node.
    pub host: String,
    /// The NUMA node that its devices and CPUs are expected on, where one was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
}

/// The object that makes a job's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Child {
    /// `JobSet` or `Job`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// [`Phase`] by the words of a cluster.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Phase")]
enum PhaseWord {
    Pending,
    Suspended,
    Gathering,
    Preflight,
    Assigned,
    Joining,
    Running,
    Suspect,
    Fencing,
    Succeeded,
    Failed,
    Cancelled,
}

/// The words of [`Status::phase`], in the order of a job's life.
pub const PHASES: [&str; 12] = [
    "Pending",
    "Suspended",
    "Gathering",
    "Preflight",
    "Assigned",
    "Joining",
    "Running",
    "Suspect",
    "Fencing",
    "Succeeded",
    "Failed",
    "Cancelled",
];

/// Fields that are null are left out: the schema has no null. (A loss that is no number is a null in JSON, too.)
fn without_nulls<T: Serialize, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    let mut value = serde_json::to_value(value).map_err(serde::ser::Error::custom)?;
    drop_nulls(&mut value);
    value.serialize(serializer)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(drop_nulls);
            // A map that becomes empty becomes null when it is applied, since its owner gave up all that was in it.
            let is_nothing =
                |field: &Value| field.is_null() || field.as_object().is_some_and(serde_json::Map::is_empty);
            fields.retain(|_, field| !is_nothing(field));
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// A summary that cannot be read is of another version, and left out.
fn summary<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Summary>, D::Error> {
    let value = Option::<Value>::deserialize(deserializer)?;
    Ok(value.and_then(|value| serde_json::from_value(value).ok()))
}
