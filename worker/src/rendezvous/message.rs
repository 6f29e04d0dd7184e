//! What launcher and worker say to each other (pure).
//!
//! ```text
//! worker                                   launcher
//!   Register(incarnation, host, data address) ->            Gathering(g)
//!                                   <- Welcome(lease), Gather(g)
//!   Ready(g, preflight faults)                ->            Preflight(g)
//!                                   <- Assign(g, ranks, peers, start step)
//!   StoreOpen(g, address)  [rank 0's worker]  ->            Assigned(g)
//!                                   <- Start(g, master)
//!   Started(g, pids)                          ->            Joining(g) -> Running(g)
//!                                   <- Peers(g, roster)     a data server came or went
//!   Heartbeat(g, progress) …                  ->
//!   Exited(g, rank, status), Evidence(g, …)   ->            Suspect(g)
//!                                   <- Fence(g)
//!   Fenced(g)                                 ->            Fencing(g) -> Gathering(g+1) | Failed
//!                                   <- Finish
//! ```
//! The worker opens one bidirectional stream per connection and both sides send frames on it, `Register` and
//! `Welcome` first. After a reconnect the worker says again what it has said of its current generation (`Ready` to
//! `Fenced`, and the progress of its last lease): the launcher counts a rank's step once, by its number.
//!
//! A data server is a worker without ranks that owns chunks before all others. It takes part in a generation like a spare that
//! is given work, and may come while one runs: then it is gathered, assigned and started by itself, and the others hear of
//! it by `Peers`. That is only ever said to workers of a job with data servers, so it needs no version of its own.
//!
//! A frame is `u32` little-endian length, then that many bytes of JSON: `{"v":1,"body":…}`. Unknown fields are
//! ignored, so that a newer peer may add some; an unknown version or kind is refused.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use datapath::plane::Role;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::units::{Generation, Incarnation, Rank, Step, WorkerId};

/// The version that both sides must share.
pub const PROTOCOL_VERSION: u16 = 1;
/// Bytes of one frame at the most: the peers of 65,536 workers fit with room (about 150 bytes each).
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// The ALPN of the rendezvous connection.
pub const ALPN: &[u8] = b"slipway-rdzv/1";
/// Lines of a rank's log that travel with the evidence of its death: what fits a screen.
pub const LOG_TAIL_LINES_MAX: usize = 30;
/// Bytes of that tail at the most.
pub const LOG_TAIL_BYTES_MAX: usize = 8 << 10;

/// From a worker to the launcher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ToLauncher {
    /// First on every connection, also after a reconnect.
    Register(Registration),
    /// The worker is able to take part in this generation, or says why not.
    Ready {
        /// The generation that is being gathered.
        generation: Generation,
        /// Empty when all is well; each names one thing that would make the job fail here.
        faults: Vec<PreflightFault>,
    },
    /// Rank 0's worker serves the store of this generation at `address`.
    StoreOpen {
        /// The generation it serves.
        generation: Generation,
        /// What `MASTER_ADDR` and `MASTER_PORT` will say.
        address: SocketAddr,
    },
    /// Every rank of this worker has been executed.
    Started {
        /// The generation.
        generation: Generation,
        /// The process of each rank.
        #[serde(with = "pairs")]
        pids: BTreeMap<Rank, u32>,
    },
    /// Sent at the pace of [`ToWorker::Welcome`]; renews the lease.
    Heartbeat {
        /// The generation that the worker runs, 0 for none.
        generation: Generation,
        /// What changed since the last heartbeat, per rank.
        progress: Vec<RankProgress>,
        /// The data plane's counters since the worker's start.
        counters: datapath::Counters,
        /// The number of the last list of peers that it took: an older one than the launcher's is sent again.
        #[serde(default, skip_serializing_if = "is_first")]
        roster: u64,
    },
    /// A rank's process ended.
    Exited {
        /// The generation it belonged to.
        generation: Generation,
        /// Which.
        rank: Rank,
        /// How.
        status: ExitStatus,
        /// Why, as far as this host can tell.
        evidence: Option<Evidence>,
    },
    /// Trouble that is not (yet) an exit: corrupt data, a stuck rank.
    Trouble {
        /// The generation.
        generation: Generation,
        /// What was seen.
        evidence: Evidence,
    },
    /// No process of that generation is left on this worker, and nothing of it will speak again.
    Fenced {
        /// The generation that ended here.
        generation: Generation,
    },
}

/// Who registers, and what its host is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// The worker's number, checked against its certificate.
    pub worker: WorkerId,
    /// Which process of that number.
    pub incarnation: Incarnation,
    /// The process.
    pub pid: u32,
    /// The host's facts.
    pub host: HostFacts,
    /// Where this worker's data plane listens; none for a job without data.
    pub data_address: Option<SocketAddr>,
    /// The generation that still runs here, after a reconnect.
    pub running: Option<Generation>,
    /// The data set as this worker found it, where the launcher could not look at it itself (in a pod).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataFacts>,
}

/// A data set, as one worker found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFacts {
    /// Its manifest's digest, in hex: the same on every worker, or the job cannot run.
    pub digest: String,
    /// Steps of one epoch.
    pub steps_per_epoch: u64,
    /// Samples.
    pub samples: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What placement and rank order need to know of a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The host's name, for people.
    pub name: String,
    /// The kernel's boot id: two registrations with one boot id share a host.
    pub boot_id: String,
    /// CPUs that this worker may use.
    pub cpus: Vec<u32>,
    /// NUMA nodes, each with its CPUs; empty when the host does not say.
    #[serde(with = "pairs")]
    pub numa: BTreeMap<u32, Vec<u32>>,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}

/// One thing that makes it impossible to start here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreflightFault {
    /// A stable word: `command_not_found`, `workdir_missing`, `memory_short`, …
    pub code: String,
    /// What is wrong, for people.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// What one rank did since the last heartbeat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankProgress {
    /// The rank.
    pub rank: Rank,
    /// Steps that the trainer acknowledged, in order, each with this rank's contribution to the order digest.
    pub consumed: Vec<ConsumedStep>,
    /// Steps done and durably saved, if the trainer said so.
    pub committed: Option<Step>,
    /// The last values that the trainer reported.
    pub reported: BTreeMap<String, f64>,
    /// The trainer has seen the end of its data.
    pub ended: bool,
}

/// One acknowledged step of one rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConsumedStep {
    /// The step.
    pub step: Step,
    /// This rank's samples in it (without padding).
    pub samples: u64,
    /// Their bytes.
    pub bytes: u64,
    /// This rank's share of the step's order digest.
    pub digest: datapath::order::OrderDigest,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum ExitStatus {
    /// It returned this code.
    Code {
        /// 0 is success.
        code: i32,
    },
    /// A signal ended it.
    Signal {
        /// The signal's number.
        signal: i32,
    },
}

impl ExitStatus {
    /// Exit code 0.
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::Code { code: 0 }
    }
}

/// One observation about a failure. The launcher ranks all of a generation's and names the first cause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The rank it is about; none when it is about the worker.
    pub rank: Option<Rank>,
    /// What kind.
    pub cause: CauseKind,
    /// When it was seen: nanoseconds since the Unix epoch on the observing host.
    pub seen_unix_ns: u64,
    /// One or two lines for people.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
    /// The end of the rank's log.
    pub log_tail: Vec<String>,
}

/// Kinds of first cause, strongest first: of two in one grace window, the earlier in this list wins, then the
/// earlier in time. Of exceptions, signals and lost workers the earliest in time wins: each makes peers die of the
/// others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CauseKind {
    /// A device or link failed.
    Hardware,
    /// The kernel killed it for memory.
    OutOfMemory,
    /// The data is corrupt or cannot be read.
    Data,
    /// The program could not be executed.
    NotStarted,
    /// The program raised (its error file says what) or returned a code of its own.
    Exception,
    /// A signal that we did not send ended it.
    Signal,
    /// The sidecar itself ended.
    WorkerLost,
    /// No step was made for as long as the job allows.
    Hang,
    /// A peer's end made it fail.
    PeerInduced,
    /// We ended it ourselves: never a first cause.
    KilledByUs,
}

/// From the launcher to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ToWorker {
    /// Answer to a registration.
    Welcome {
        /// Without a heartbeat for this long the launcher gives the worker up, and the worker must have stopped
        /// its ranks.
        lease_ms: u64,
        /// How often to send one.
        heartbeat_ms: u64,
    },
    /// The registration is not accepted; the worker exits.
    Refuse {
        /// Why.
        reason: String,
    },
    /// A generation gathers: check yourself and answer [`ToLauncher::Ready`].
    Gather {
        /// Its number.
        generation: Generation,
    },
    /// Your part of the generation.
    Assign(Assignment),
    /// Execute the ranks.
    Start {
        /// The generation.
        generation: Generation,
        /// Where the store is.
        master: SocketAddr,
    },
    /// The generation goes on among these workers: a data server came or went.
    Peers {
        /// Which.
        generation: Generation,
        /// The list's number: a later one replaces it, an earlier one is void.
        roster: u64,
        /// As in [`Assignment::peers`].
        peers: Vec<PeerAddress>,
    },
    /// The generation is over: stop its ranks and answer [`ToLauncher::Fenced`].
    Fence {
        /// Which.
        generation: Generation,
        /// From SIGTERM to SIGKILL.
        grace_ms: u64,
    },
    /// The job is over: exit.
    Finish,
}

/// What one worker does in a generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The generation.
    pub generation: Generation,
    /// Ranks of all workers together.
    pub world_size: u32,
    /// Workers that have ranks.
    pub group_world_size: u32,
    /// This worker's place among them.
    pub group_rank: u32,
    /// This worker's ranks, in local-rank order; empty for a data server.
    pub ranks: Vec<Rank>,
    /// How often the job has been restarted (`TORCHELASTIC_RESTART_COUNT`).
    pub restarts: u32,
    /// Restarts that the job allows.
    pub max_restarts: u32,
    /// Whether this worker serves the store.
    pub serves_store: bool,
    /// The first step to run: the committed position. For a data server that comes later: how far the ranks are.
    pub start_step: Step,
    /// All workers of the generation, this one included: who owns chunks, and where.
    pub peers: Vec<PeerAddress>,
    /// The number of that list.
    #[serde(default, skip_serializing_if = "is_first")]
    pub roster: u64,
}

/// Every generation's first list of peers has number 0, and no other comes where there are no data servers.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_first(roster: &u64) -> bool {
    *roster == 0
}

/// How to reach one worker's data plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAddress {
    /// The worker.
    pub worker: WorkerId,
    /// Its data plane; none for a job without data.
    pub data_address: Option<SocketAddr>,
    /// SHA-256 of its certificate, in lower-case hex.
    pub fingerprint: String,
    /// A data server owns chunks before workers with ranks.
    #[serde(default)]
    pub role: Role,
}

/// Why a frame cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("accept a frame of {bytes} bytes (the limit is {FRAME_BYTES_MAX})")]
    TooLong {
        /// What the peer announced.
        bytes: usize,
    },
    /// Not the JSON of a message.
    #[error("parse a frame")]
    Malformed(#[from] serde_json::Error),
    /// The peer speaks another version.
    #[error(
        "speak protocol version {theirs} (this is version {PROTOCOL_VERSION}: use the same release on all hosts)"
    )]
    Version {
        /// What the peer said.
        theirs: u16,
    },
}

#[derive(Serialize)]
struct Outgoing<'a, T> {
    v: u16,
    body: &'a T,
}

#[derive(Deserialize)]
struct Versioned {
    v: u16,
}

#[derive(Deserialize)]
struct Incoming<T> {
    body: T,
}

/// One message as a frame, its length in front.
///
/// # Errors
/// When the message is larger than a frame may be.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, &Outgoing { v: PROTOCOL_VERSION, body: message })?;
    let bytes = frame.len() - 4;
    if bytes > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong { bytes });
    }
    let length = u32::try_from(bytes).map_err(|_| FrameError::TooLong { bytes })?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// How many bytes follow a frame's first four.
///
/// # Errors
/// When that is more than a frame may have.
pub fn body_length(prefix: [u8; 4]) -> Result<usize, FrameError> {
    let bytes = u32::from_le_bytes(prefix) as usize;
    if bytes > FRAME_BYTES_MAX { Err(FrameError::TooLong { bytes }) } else { Ok(bytes) }
}

/// The message in a frame's body.
///
/// # Errors
/// When the version differs (told before anything else is looked at) or the body is no message.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    let Versioned { v } = serde_json::from_slice(body)?;
    if v != PROTOCOL_VERSION {
        return Err(FrameError::Version { theirs: v });
    }
    Ok(serde_json::from_slice::<Incoming<T>>(body)?.body)
}

/// Maps with numbers as keys, as lists of pairs: JSON's keys are strings, and inside a tagged enum serde does not
/// read them back as numbers.
pub(crate) mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests;
