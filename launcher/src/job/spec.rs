//! `TrainingJob`: what a user writes, as the type that is parsed, described by a schema, and later served as the
//! custom resource (pure).
//!
//! Nothing here is checked beyond its shape: [`mod@super::validate`] turns it into a [`super::Job`]. The doc comments are the
//! descriptions in the schema (`launcher schema`), so they speak to the user.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::{DurationText, GpuModeText, Quantity};

pub mod pod;

pub use pod::PodSpec;

/// One training run: a gang of workers, the program they run, and the data they are fed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainingJob {
    /// The version of this format.
    pub api_version: ApiVersion,
    /// What this document is.
    pub kind: Kind,
    /// The job's name and labels.
    pub metadata: Metadata,
    /// The job.
    pub spec: JobSpec,
}

/// The version of this format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    #[expect(missing_docs, reason = "a doc comment would split the enum in the schema")]
    #[serde(rename = "slipway.dev/v1alpha1")]
    V1Alpha1,
}

/// What this document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "a doc comment would split the enum in the schema")]
pub enum Kind {
    TrainingJob,
}

/// The job's name and labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// A DNS label of at most 52 characters: lower-case letters, digits and `-`; the job's id is made of it.
    pub name: String,
    /// Free labels, in the syntax of Kubernetes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobSpec {
    /// How many workers. A worker is one sidecar and its ranks; all of them start together or none does.
    pub workers: WorkersSpec,
    /// The program.
    pub run: RunSpec,
    /// What each worker needs.
    #[serde(default)]
    pub resources: ResourcesSpec,
    /// Where the workers go.
    #[serde(default)]
    pub placement: PlacementSpec,
    /// What the ranks are fed; without it they are fed nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataSpec>,
    /// What happens when a rank fails.
    #[serde(default)]
    pub restarts: RestartsSpec,
    /// When a job that makes no step is given up.
    #[serde(default)]
    pub hang: HangSpec,
    /// The batch queue that admits the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueSpec>,
    /// The workers' pods; only a cluster looks at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodSpec>,
    /// Keep the job back, or stop it after its last commit; on a cluster only. Without it, it goes on from there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
}

/// How many workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkersSpec {
    /// Workers that have ranks.
    #[schemars(range(min = 1, max = 65_536))]
    pub count: u32,
    /// Go on with as few as this when a lost worker cannot be started again (its restarts are used up, or it does not
    /// come back in a few seconds); default: `count`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub min: Option<u32>,
    /// Workers held warm, without ranks. One takes the ranks of a worker that dies; that one is started again and is
    /// the spare then.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65_536))]
    pub spares: u32,
}

/// The program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunSpec {
    /// The program and its arguments; no shell is involved.
    #[schemars(length(min = 1, max = 4096))]
    pub command: Vec<String>,
    /// Environment variables for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where it runs; relative to the job file's folder, which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub workdir: Option<String>,
    /// Ranks (processes) of each worker.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    pub ranks_per_worker: u32,
    /// What the program joins with, so which environment it is given.
    #[serde(default)]
    pub framework: Framework,
}

/// What a program joins its peers with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum Framework {
    None,
    #[default]
    Torch,
    Jax,
    Mpi,
}

/// What each worker needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourcesSpec {
    /// GPUs.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1024))]
    pub gpus: u32,
    /// How a GPU is had: `exclusive`, `shared`, or a part of one as `mig-<profile>` (`mig-1g.10gb`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_mode: Option<GpuModeText>,
    /// NICs (SR-IOV virtual functions) that can do RDMA.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1024))]
    pub nics: u32,
    /// Whole CPUs, not shared with other workers; default: an equal share of the host, not bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub cpus: Option<u32>,
    /// Memory, as in Kubernetes: `400Gi`, `512M`, or bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Huge pages, out of the host's pool: `4Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<Quantity>,
    /// How close GPUs, NICs, CPUs and memory must lie: behind one PCIe root, on one NUMA node, or anywhere.
    #[serde(default)]
    pub locality: Locality,
}

/// How close a worker's devices must lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum Locality {
    Pcie,
    Numa,
    #[default]
    None,
}

/// Where the workers go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlacementSpec {
    /// On few hosts, or on many.
    #[serde(default)]
    pub strategy: Strategy,
    /// Whether all workers must, should or need not lie in one rack.
    #[serde(default)]
    pub rack: Rack,
    /// Whether all workers must, should or need not lie in one block (of racks).
    #[serde(default = "any_block")]
    pub block: Rack,
    /// Hosts that are not used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub exclude: Vec<String>,
}

impl Default for PlacementSpec {
    fn default() -> Self {
        Self { strategy: Strategy::default(), rack: Rack::default(), block: any_block(), exclude: Vec::new() }
    }
}

pub(crate) fn any_block() -> Rack {
    Rack::Any
}

/// On few hosts, or on many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum Strategy {
    #[default]
    Pack,
    Spread,
}

/// Whether all workers lie in one rack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum Rack {
    Any,
    #[default]
    Preferred,
    Required,
}

/// What the ranks are fed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DataSpec {
    /// A folder of shards (tar, `.npy` or `.bin`), relative to the job file's folder, or a store's URL.
    #[schemars(length(min = 1))]
    pub source: String,
    /// On a cluster: the Secret of the job's namespace that has the store's credentials. Only sidecars see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret: Option<String>,
    /// Samples of one step, over all ranks.
    #[schemars(range(min = 1))]
    pub global_batch: u32,
    /// How often the data is gone through.
    #[serde(default = "one_epoch")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub epochs: u64,
    /// The order is a pure function of the data, this number, the epoch and the global batch.
    #[serde(default)]
    pub seed: u64,
    /// How samples are mixed.
    #[serde(default)]
    pub shuffle: ShuffleSpec,
    /// What happens with the samples of an epoch that do not fill a global batch.
    #[serde(default)]
    pub remainder: RemainderSpec,
    /// The memory that batches are laid in.
    #[serde(default)]
    pub memory: DataMemory,
    /// Which lanes may carry samples between workers.
    #[serde(default)]
    pub transport: TransportSpec,
    /// What QUIC lanes take for a full network: nothing but losses (fixed), or what CUBIC does, for a network that is shared.
    #[serde(default)]
    pub congestion: CongestionSpec,
    /// The records of `.bin` files, which do not say it themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<RecordSpec>,
    /// Keep what was read on a disk of each worker's host too: later epochs and restarts read it from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_tier: Option<LocalTierSpec>,
    /// Workers without ranks that read the store for all others, so that hosts with GPUs need not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub servers: Option<ServersSpec>,
}

/// Workers without ranks that own what is read. While one of them is there, the ranks' workers read nothing themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServersSpec {
    /// How many; 0 is none.
    #[schemars(range(min = 0, max = 1024))]
    pub count: u32,
    /// Whole CPUs of each; default: one, not its own. On one machine this is not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub cpus: Option<u32>,
    /// Memory of each, three quarters of which hold what was read: `32Gi`. On one machine this is not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Only nodes with these labels; those of `spec.pod.nodeSelector` are for the workers. On one machine this is not looked at.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
}

/// A part of a local disk that keeps what was read. It is a copy: it may be deleted at any time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalTierSpec {
    /// How much of it, for each worker: `200Gi`.
    pub size: Quantity,
    /// A folder on a fast disk, relative to the job file's folder; jobs may share it, and the next one finds there what this
    /// one left. Default: `tier` in the state folder. On a cluster it is an `emptyDir` of the pod, and this is not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub folder: Option<String>,
}

/// How samples are mixed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShuffleSpec {
    /// `none`: as they are stored. `window`: chunks are permuted, and samples inside windows of chunks.
    #[serde(default)]
    pub mode: ShuffleMode,
    /// Chunks (of about 4 MiB) of one window; default 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub chunks: Option<u32>,
}

/// Whether samples are mixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum ShuffleMode {
    None,
    #[default]
    Window,
}

/// What happens with the samples that do not fill a global batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum RemainderSpec {
    #[default]
    Drop,
    Pad,
}

/// The memory that batches are laid in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum DataMemory {
    #[default]
    Auto,
    Host,
    Pinned,
    Gpu,
}

/// Which lanes may carry samples between workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum TransportSpec {
    #[default]
    PreferRdma,
    RequireRdma,
    Quic,
}

/// What QUIC lanes take for a full network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum CongestionSpec {
    #[default]
    Fixed,
    Cubic,
}

/// Fixed-size records of a file without a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordSpec {
    /// The type of one item, little-endian.
    pub dtype: DtypeSpec,
    /// Items of one record: a sequence's tokens, say.
    #[schemars(range(min = 1))]
    pub items: u32,
}

/// The type of one item; little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum DtypeSpec {
    Bool,
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
    F16,
    F32,
    F64,
}

impl DtypeSpec {
    /// Every type.
    pub const ALL: [Self; 12] = [
        Self::Bool,
        Self::U8,
        Self::U16,
        Self::U32,
        Self::U64,
        Self::I8,
        Self::I16,
        Self::I32,
        Self::I64,
        Self::F16,
        Self::F32,
        Self::F64,
    ];

    /// What it is written as.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }

    /// The type with that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

/// What happens when a rank fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RestartsSpec {
    /// Restarts (of all ranks, from the last committed step) within `window` before the job fails.
    #[schemars(range(min = 0, max = 10_000))]
    pub max: u32,
    /// Restarts older than this are forgotten: `30s`, `10m`, `1h30m`.
    pub window: DurationText,
    /// Waited before the first restart; doubles with each one in the window, up to a minute.
    pub backoff: DurationText,
}

impl Default for RestartsSpec {
    fn default() -> Self {
        Self { max: 3, window: DurationText("1h".to_owned()), backoff: DurationText("1s".to_owned()) }
    }
}

/// When a job that makes no step is given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HangSpec {
    /// No step for this long is a hang (a rank's first step counts from its start); needs `data`. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<DurationText>,
}

/// The batch queue that admits the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueueSpec {
    /// The queue.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The name of a priority class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority: Option<String>,
}

fn one() -> u32 {
    1
}

fn one_epoch() -> u64 {
    1
}
