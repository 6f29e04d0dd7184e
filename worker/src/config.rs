//! What a worker is told at its start: one JSON document on standard input, because it carries a private key and
//! neither an argument nor an environment variable may.
//!
//! Standard input stays open afterwards: its end is the launcher's end.

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use datapath::plane::Role;
use serde::{Deserialize, Serialize};

use crate::units::WorkerId;

/// Bytes of the document at the most: certificates, a command and an environment are a few KiB.
pub const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Everything that a worker needs to know and cannot find out itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerConfig {
    /// The job's id, for people and logs.
    pub job: String,
    /// Unique among all jobs of all time.
    pub job_uid: String,
    /// Which worker this is.
    pub worker: WorkerId,
    /// Whether it runs ranks or is a data server.
    #[serde(default)]
    pub role: Role,
    /// Where the launcher's rendezvous listens.
    pub launcher: SocketAddr,
    /// The name in the launcher's certificate.
    pub launcher_name: String,
    /// Interface address that the store and the data plane bind.
    pub bind: IpAddr,
    /// Certificates; their `Debug` shows no key.
    pub identity: datapath::transport::quic::tls::Identity,
    /// The program.
    pub run: RunConfig,
    /// CPUs that this worker may use, split over its ranks; empty leaves the scheduler free.
    pub cpus: Vec<u32>,
    /// What to feed; none for a job without data.
    pub data: Option<DataConfig>,
    /// Where the ranks' logs go (`rank-<r>.log`).
    pub log_folder: PathBuf,
    /// Handed to the ranks as `SLIPWAY_CHECKPOINT_DIR`.
    pub checkpoint_folder: PathBuf,
    /// Put in front of the ranks' `PYTHONPATH`.
    pub python_folder: PathBuf,
    /// A rank that acknowledges no step for this long hangs; its first one is counted from its start. None: never,
    /// and without data there are no steps to watch.
    pub hang_ms: Option<u64>,
}

/// The program and its surroundings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Program and arguments, not empty.
    pub command: Vec<String>,
    /// Added to the environment that the launcher was started in.
    pub env: BTreeMap<String, String>,
    /// Where the ranks run.
    pub workdir: PathBuf,
    /// Processes of this worker.
    pub ranks_per_worker: u32,
    /// What the ranks join with.
    #[serde(default)]
    pub framework: Framework,
}

/// What a program joins its peers with, so what its environment tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Framework {
    /// Something of its own, out of rank, world size and the store's address.
    None,
    /// PyTorch: what torchrun sets, and settings that make failures explain themselves.
    #[default]
    Torch,
    /// JAX: a coordinator that process 0 serves.
    Jax,
}

/// The data set and its order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// A store's URL.
    pub source: String,
    /// The manifest that the launcher resolved, on this host; none where it could not look at the data (a pod): then the
    /// worker takes the manifest beside the data, or indexes it, and tells what it found when it registers.
    pub manifest: Option<ManifestFile>,
    /// The order.
    pub order: datapath::order::OrderSpec,
    /// Epochs of the job.
    pub epochs: u64,
    /// Which lanes may be used.
    pub transport: datapath::select::TransportPolicy,
    /// What QUIC lanes take for a full network.
    #[serde(default)]
    pub congestion: datapath::select::Congestion,
    /// What becomes of RDMA devices on other NUMA nodes than the worker's.
    #[serde(default)]
    pub far_devices: datapath::plane::FarDevices,
    /// Batches in flight per rank.
    pub slots: u32,
    /// Bytes of chunks that this worker may hold.
    pub cache_bytes: u64,
    /// Where chunks are kept on the worker's host, too.
    #[serde(default)]
    pub tier: Option<TierFolder>,
    /// The records of `.bin` files, where a worker may have to index them.
    #[serde(default)]
    pub record: Option<RecordConfig>,
}

/// A folder of a local disk that keeps chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TierFolder {
    /// Where; workers share it.
    pub folder: PathBuf,
    /// Bytes at the most, of each worker.
    pub bytes: u64,
    /// How much of the file system stays free, in percent.
    pub free_percent: u64,
}

/// A manifest on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Where.
    pub path: PathBuf,
    /// What its digest must be, in hex.
    pub digest: String,
}

/// Fixed-size records of a file without a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordConfig {
    /// One item.
    pub dtype: datapath::dataset::Dtype,
    /// Items of one record.
    pub items: u32,
}

/// What every worker of a job is told where they are pods: one file for all of them, without any secret. What differs
/// (its number, its address, its identity) a pod finds in its environment and its volumes (see `pod`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodJob {
    /// The job's id, for people and logs.
    pub job: String,
    /// Unique among all jobs of all time.
    pub job_uid: String,
    /// Where the launcher's rendezvous is reached.
    pub launcher: SocketAddr,
    /// The name in the launcher's certificate, by which the rendezvous also knows which job is meant.
    pub launcher_name: String,
    /// The program, in the ranks' container.
    pub run: RunConfig,
    /// What to feed; none for a job without data. Its `manifest` is none.
    pub data: Option<DataConfig>,
    /// Handed to the ranks as `SLIPWAY_CHECKPOINT_DIR`.
    pub checkpoint_folder: PathBuf,
    /// See [`WorkerConfig::hang_ms`].
    pub hang_ms: Option<u64>,
    /// Bytes of chunks that a data server may hold; none where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_cache_bytes: Option<u64>,
}

/// Why a worker has no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Standard input failed.
    #[error("read the configuration from standard input")]
    Read(#[source] io::Error),
    /// Longer than [`CONFIG_BYTES_MAX`].
    #[error("accept a configuration of more than {CONFIG_BYTES_MAX} bytes")]
    TooLong,
    /// Not the JSON of a [`WorkerConfig`]. The text is not shown: it holds a key.
    #[error("parse the configuration (launcher and worker must be of one release)")]
    Malformed(#[source] serde_json::Error),
    /// Nothing to run.
    #[error("accept a configuration {what}")]
    Invalid {
        /// What is wrong.
        what: &'static str,
    },
}

impl WorkerConfig {
    /// Reads one line of JSON and leaves what follows it unread.
    ///
    /// # Errors
    /// When there is no line, it is too long, or it does not say what to run.
    pub fn read(input: &mut impl BufRead) -> Result<Self, ConfigError> {
        let mut line = Vec::new();
        let mut bounded = io::Read::take(input, CONFIG_BYTES_MAX);
        bounded.read_until(b'\n', &mut line).map_err(ConfigError::Read)?;
        if bounded.limit() == 0 && line.last() != Some(&b'\n') {
            return Err(ConfigError::TooLong);
        }
        let config: Self = serde_json::from_slice(&line).map_err(ConfigError::Malformed)?;
        if config.run.command.is_empty() {
            return Err(ConfigError::Invalid { what: "without a command" });
        }
        Ok(config)
    }
}
