//! What a user writes, and the checked [`Job`] that everything else works on (pure).
//!
//! ```text
//! text -> source (nodes with places) -> schema (shape) -> TrainingJob -> validate (sense) -> Job
//! ```
//! Each arrow gathers every fault that it can see before it gives up, each with its place, its path and a hint.
//! Behind [`Job`] nothing is checked again: its units are types and its numbers are in range.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use datapath::order::OrderSpec;
use datapath::select::{Congestion, TransportPolicy};
use serde::{Deserialize, Serialize};

pub mod faults;
pub mod overlay;
pub mod resolve;
pub mod schema;
pub mod source;
pub mod spec;
mod surrogates;
pub mod units;
pub mod validate;

use faults::{Fault, Faults, Place};
use source::Node;
use spec::{DataMemory, DtypeSpec, Framework, Locality, PodSpec, Rack, Strategy, TrainingJob};
use units::{Bytes, GpuMode};

/// Where a document comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// How people know it: the path as they typed it.
    pub name: String,
    /// What relative paths in it are relative to; absolute.
    pub folder: PathBuf,
}

/// The job in a text.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str, origin: &Origin) -> Result<Job, Faults> {
    let (root, faults) = source::read(text);
    match root {
        Some(root) => check(&root, faults, origin),
        None => Err(Faults::new(&origin.name, faults)),
    }
}

/// The job in an object that has no text (one of the Kubernetes API).
///
/// # Errors
/// Everything that is wrong with it.
pub fn validate(job: &TrainingJob, origin: &Origin) -> Result<Job, Faults> {
    let json = serde_json::to_value(job).unwrap_or_default();
    check(&Node::from_json(&json, &Place::Document), Vec::new(), origin)
}

/// The job in a tree, of which some faults are known already.
///
/// # Errors
/// Everything that is wrong with it.
pub fn check(root: &Node, mut faults: Vec<Fault>, origin: &Origin) -> Result<Job, Faults> {
    let shape = schema::check(root);
    faults.extend(validate::check(root, &shape));
    faults.extend(shape.faults);
    if !faults.is_empty() {
        return Err(Faults::new(&origin.name, faults));
    }
    // The checks above are meant to leave nothing to fail here; if they ever do, it is told like any other fault.
    let resolved = serde_json::from_value::<TrainingJob>(root.to_json())
        .map_err(|error| error.to_string())
        .and_then(|job| resolve::resolve(job, &origin.folder).map_err(|error| error.to_string()));
    resolved.map_err(|message| Faults::new(&origin.name, vec![Fault::new(&root.place, "", message)]))
}

/// The job in a tree, of which some faults are known already, with what only a cluster asks of it. Relative paths begin
/// at `spec.pod.folder`; without that there are none, and a job without a working folder has an empty one: the image's.
///
/// # Errors
/// Everything that is wrong with it.
pub fn check_for_cluster(root: &Node, mut faults: Vec<Fault>, name: &str) -> Result<Job, Faults> {
    faults.extend(validate::cluster::for_cluster(root, &schema::check(root)));
    let origin = Origin { name: name.to_owned(), folder: validate::cluster::pod_folder(root) };
    check(root, faults, &origin)
}

/// A job that makes sense: the result of parsing, and what `job.json` in a job's folder holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    /// A DNS label.
    pub name: String,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// How many workers.
    pub workers: Workers,
    /// The program.
    pub run: Run,
    /// What each worker needs.
    pub resources: Resources,
    /// Where the workers go.
    pub placement: Placement,
    /// What the ranks are fed; none: nothing.
    pub data: Option<Data>,
    /// What happens when a rank fails.
    pub restarts: Restarts,
    /// No step for this long is a hang; none: never.
    pub hang_timeout: Option<Duration>,
    /// The batch queue; none: no queue.
    pub queue: Option<Queue>,
    /// The workers' pods, as the user wrote it: its amounts have been checked, and are read where they are used.
    #[serde(default)]
    pub pod: PodSpec,
    /// Kept back.
    #[serde(default)]
    pub suspend: bool,
}

impl Job {
    /// Ranks of all workers together, when all of them are there.
    #[must_use]
    pub fn ranks(&self) -> NonZeroU32 {
        let ranks = self.workers.count.get().saturating_mul(self.run.ranks_per_worker.get());
        NonZeroU32::new(ranks).unwrap_or(NonZeroU32::MIN)
    }

    /// Data servers.
    #[must_use]
    pub fn servers(&self) -> u32 {
        self.data.as_ref().and_then(|data| data.servers.as_ref()).map_or(0, |servers| servers.count.get())
    }

    /// Workers of all kinds: those with ranks, then spares, then data servers. Their numbers are in this order.
    #[must_use]
    pub fn processes(&self) -> u32 {
        self.workers.total().saturating_add(self.servers())
    }
}

/// How many workers: `min <= count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workers {
    /// Workers with ranks.
    pub count: NonZeroU32,
    /// The job goes on with as few as this.
    pub min: NonZeroU32,
    /// Workers held warm.
    pub spares: u32,
}

impl Workers {
    /// Workers with ranks and spares.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.count.get().saturating_add(self.spares)
    }
}

/// The program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Run {
    /// Program and arguments; not empty, and no part holds a NUL byte.
    pub command: Vec<String>,
    /// Names without `=` and NUL, none of those that Slipway sets.
    pub env: BTreeMap<String, String>,
    /// Absolute; on a cluster it may be empty, for the image's own.
    pub workdir: PathBuf,
    /// Ranks of each worker.
    pub ranks_per_worker: NonZeroU32,
    /// What it joins with.
    pub framework: Framework,
}

/// What each worker needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// GPUs.
    pub gpus: u32,
    /// How they are had.
    pub gpu_mode: GpuMode,
    /// NICs that can do RDMA.
    pub nics: u32,
    /// Whole CPUs, bound; none: not bound.
    pub cpus: Option<NonZeroU32>,
    /// Memory; none: no request.
    pub memory: Option<Bytes>,
    /// Huge pages; none: those that are free.
    pub hugepages: Option<Bytes>,
    /// How close all of that must lie.
    pub locality: Locality,
}

/// Where the workers go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Placement {
    /// On few hosts, or on many.
    pub strategy: Strategy,
    /// Whether all lie in one rack.
    pub rack: Rack,
    /// Whether all lie in one block.
    #[serde(default = "spec::any_block")]
    pub block: Rack,
    /// Hosts that are not used.
    pub exclude: Vec<String>,
}

/// What the ranks are fed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Data {
    /// An absolute path or a store's URL.
    pub source: String,
    /// The cluster's Secret with the store's credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// The order; its global batch is no smaller than the number of ranks.
    pub order: OrderSpec,
    /// How often the data is gone through.
    pub epochs: NonZeroU64,
    /// Where batches are laid.
    pub memory: DataMemory,
    /// Which lanes may be used.
    pub transport: TransportPolicy,
    /// What QUIC lanes take for a full network.
    #[serde(default)]
    pub congestion: Congestion,
    /// The records of `.bin` files.
    pub record: Option<Record>,
    /// What is kept on each worker's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_tier: Option<LocalTier>,
    /// Who reads it for all others; none: each worker its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub servers: Option<Servers>,
}

/// Workers without ranks that own what is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Servers {
    /// How many.
    pub count: NonZeroU32,
    /// Whole CPUs of each, on a cluster.
    pub cpus: Option<NonZeroU32>,
    /// Memory of each, on a cluster.
    pub memory: Option<Bytes>,
    /// Only nodes with these labels, on a cluster.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
}

/// A part of a local disk that keeps chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalTier {
    /// Of each worker.
    pub size: Bytes,
    /// Where on one machine; none is the state folder's.
    pub folder: Option<PathBuf>,
}

/// Fixed-size records of a file without a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// One item.
    pub dtype: DtypeSpec,
    /// Items of one record.
    pub items: NonZeroU32,
}

/// What happens when a rank fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Restarts {
    /// Restarts within the window.
    pub max: u32,
    /// Older ones are forgotten.
    pub window: Duration,
    /// Before the first; doubles up to [`BACKOFF_MAX`].
    pub backoff: Duration,
}

/// The longest wait before a restart: longer ones only waste the gang's hosts.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// The batch queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Queue {
    /// The queue.
    pub name: String,
    /// A priority class.
    pub priority: Option<String>,
}

#[cfg(test)]
mod tests;
