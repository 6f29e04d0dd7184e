//! Where jobs run, and what is known of them: the types that a backend returns and the command line shows.
//!
//! A backend takes a checked [`crate::job::Job`] and leaves its state where another process can read it, so that
//! every verb works while, after and without the process that submitted the job. All times are milliseconds since
//! the Unix epoch on the host that wrote them; durations carry their unit in the name.
//!
//! Everything here is an interface: `--output json` prints these types as they are.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use datapath::counters::Counters;
use datapath::order::OrderDigest;
use serde::{Deserialize, Serialize};
use worker::rendezvous::message::{CauseKind, ExitStatus};
use worker::units::{Generation, Rank, Step, WorkerId};

pub(crate) mod clock;
pub mod kubernetes;
pub mod local;
pub mod numbers;
mod terms;

/// Progress events that may wait for a slow terminal; a backend drops [`ProgressEvent::Progress`] beyond it and
/// never anything else.
pub const PROGRESS_QUEUE_EVENTS: usize = 1024;

/// How far a job is. The phases of one generation repeat with each restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Accepted; nothing has been started.
    Pending,
    /// Held back by its owner or its queue; nothing of it runs.
    Suspended,
    /// Workers register.
    Gathering,
    /// Workers check themselves.
    Preflight,
    /// Ranks are given out.
    Assigned,
    /// Ranks are started and meet.
    Joining,
    /// Steps are made.
    Running,
    /// Something is wrong; the cause is being found.
    Suspect,
    /// The generation is being ended.
    Fencing,
    /// Every rank ended well.
    Succeeded,
    /// It ended otherwise; there is a cause.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl Phase {
    /// Nothing of the job runs any more.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Everything that is known of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// `<name>-<4 hex>`, unique in its state folder.
    pub id: String,
    /// The name in the job file.
    pub name: String,
    /// Unique among all jobs of all time.
    pub uid: String,
    /// Where it runs: `local`.
    pub backend: String,
    /// How far it is.
    pub phase: Phase,
    /// The current membership's number, 0 for none yet.
    pub generation: Generation,
    /// Restarts so far.
    pub restarts: u32,
    /// Restarts that the job allows.
    pub restarts_max: u32,
    /// When it was submitted.
    pub created_unix_ms: u64,
    /// When the first rank was started.
    pub started_unix_ms: Option<u64>,
    /// When it was over.
    pub ended_unix_ms: Option<u64>,
    /// Workers that have ranks, of the current generation (before the first: as asked for).
    pub workers: u32,
    /// Ranks of all workers together.
    pub ranks: u32,
    /// Steps done by every rank.
    pub step: Step,
    /// Steps of the whole job; none without data.
    pub steps_total: Option<Step>,
    /// Steps done and durably saved by every rank: where a restart resumes.
    pub committed: Step,
    /// Why it failed, is suspected, or last restarted.
    pub cause: Option<Cause>,
    /// The numbers at its end, or so far.
    pub summary: Option<Summary>,
    /// The ranks of the current generation; empty in a list.
    pub rank_status: Vec<RankStatus>,
    /// The data servers; empty in a list.
    #[serde(default)]
    pub server_status: Vec<ServerStatus>,
    /// The process that controls it; none when that is dead.
    pub controller_pid: Option<u32>,
    /// Its state and logs on this host.
    pub folder: PathBuf,
}

impl JobStatus {
    /// Whether it runs on this host, with a folder and a controller process of its own.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.backend == "local"
    }
}

/// One rank of the current generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RankStatus {
    /// Which.
    pub rank: Rank,
    /// The worker that has it.
    pub worker: WorkerId,
    /// The host's name.
    pub host: String,
    /// Its process while it runs.
    pub pid: Option<u32>,
    /// How it ended, if it did.
    pub exit: Option<ExitStatus>,
    /// Steps that it acknowledged.
    pub step: Step,
    /// Steps that it saved.
    pub committed: Step,
    /// Where its output is.
    pub log: PathBuf,
}

/// One data server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// Its number among the data servers.
    pub server: u32,
    /// Its number among all workers, by which its log is called.
    pub worker: WorkerId,
    /// The host's name; empty before it has registered.
    pub host: String,
    /// Its process while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How far it is.
    pub phase: ServerPhase,
    /// What is wrong with it, or was when it was last lost; empty when it serves.
    pub message: String,
}

/// How far a data server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ServerPhase {
    /// It is on its way.
    Starting,
    /// It owns chunks.
    Serving,
    /// It is not there.
    Lost,
    /// It owned chunks until the job ended.
    Served,
}

impl ServerPhase {
    /// The same when the job is over: none is there then.
    #[must_use]
    pub fn at_the_end(self) -> Self {
        match self {
            Self::Serving | Self::Served => Self::Served,
            Self::Starting | Self::Lost => Self::Lost,
        }
    }
}

/// Why a job failed or restarted: the first cause, never one that we made ourselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cause {
    /// What kind.
    pub code: CauseCode,
    /// The rank that failed first; none when it is about a worker or the job.
    pub rank: Option<Rank>,
    /// The worker that it was on.
    pub worker: Option<WorkerId>,
    /// The host's name.
    pub host: Option<String>,
    /// The generation in which it happened.
    pub generation: Generation,
    /// How the rank's process ended, if that is the evidence.
    pub exit: Option<ExitStatus>,
    /// One or two lines for people.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
    /// The end of the rank's log, oldest line first.
    pub log_tail: Vec<String>,
    /// When it was seen.
    pub seen_unix_ms: u64,
}

/// Kinds of cause: those that a worker sees, and those that only the launcher can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CauseCode {
    /// A device or link failed.
    Hardware,
    /// The kernel killed a rank for memory.
    OutOfMemory,
    /// The data is corrupt or cannot be read.
    Data,
    /// The program could not be executed.
    NotStarted,
    /// The program raised, or returned a code of its own.
    Exception,
    /// A signal that we did not send ended a rank.
    Signal,
    /// A worker (its sidecar) is lost.
    WorkerLost,
    /// No step was made for as long as the job allows.
    Hang,
    /// A peer's end made it fail.
    PeerInduced,
    /// We ended it ourselves.
    KilledByUs,
    /// A worker's own check found that the job cannot run there.
    Preflight,
    /// The workers did not gather in time.
    GatherTimeout,
    /// No host, CPUs or ports for it.
    Unplaceable,
    /// The process that controlled the job died.
    LauncherDied,
    /// A fault of Slipway's own.
    Internal,
}

impl From<CauseKind> for CauseCode {
    fn from(kind: CauseKind) -> Self {
        match kind {
            CauseKind::Hardware => Self::Hardware,
            CauseKind::OutOfMemory => Self::OutOfMemory,
            CauseKind::Data => Self::Data,
            CauseKind::NotStarted => Self::NotStarted,
            CauseKind::Exception => Self::Exception,
            CauseKind::Signal => Self::Signal,
            CauseKind::WorkerLost => Self::WorkerLost,
            CauseKind::Hang => Self::Hang,
            CauseKind::PeerInduced => Self::PeerInduced,
            CauseKind::KilledByUs => Self::KilledByUs,
        }
    }
}

/// A job in numbers. Counts are over all generations; steps that were run again count again in `samples`,
/// `bytes_read` and `paths`, but once in `steps` and in the digests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Summary {
    /// Steps done by every rank.
    pub steps: u64,
    /// Epochs done, complete ones.
    pub epochs: u64,
    /// Samples consumed (padding excluded).
    pub samples: u64,
    /// Sample bytes consumed.
    pub sample_bytes: u64,
    /// From the first rank's start to the last one's end, restarts included.
    pub seconds: f64,
    /// `samples / seconds`.
    pub samples_per_second: f64,
    /// `sample_bytes / seconds`.
    pub bytes_per_second: f64,
    /// Bytes read from the store by all workers.
    pub bytes_read: u64,
    /// Of these, bytes read by data servers.
    #[serde(default)]
    pub bytes_read_by_servers: u64,
    /// Bytes read from the workers' local tiers instead.
    #[serde(default)]
    pub bytes_from_tier: u64,
    /// Sample bytes that crossed from one worker to another.
    pub bytes_exchanged: u64,
    /// Sample bytes by the path they took into the ranks' memory.
    pub paths: Paths,
    /// One hash of (step, sample ids) per epoch that the job consumed, as `launcher data order --digest` prints it.
    pub epoch_digests: BTreeMap<u64, OrderDigest>,
    /// The same over the whole job.
    pub order_digest: Option<OrderDigest>,
    /// The last value of each metric that the trainer reported.
    pub reported: BTreeMap<String, f64>,
    /// Memberships that ran.
    pub generations: u64,
    /// Restarts.
    pub restarts: u32,
    /// Ranks at the end.
    pub ranks: u32,
}

/// Sample bytes by path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Paths {
    /// Out of the worker's own cache.
    pub local: u64,
    /// From another worker over QUIC.
    pub quic: u64,
    /// From another worker by RDMA.
    pub rdma: u64,
}

impl Paths {
    /// What data planes have counted.
    #[must_use]
    pub fn of(counters: &Counters) -> Self {
        Self { local: counters.local_bytes, quic: counters.quic_in_bytes, rdma: counters.rdma_in_bytes }
    }
}

/// What would be done: `--dry-run`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The name in the job file.
    pub name: String,
    /// Where it would run: `local`.
    pub backend: String,
    /// Ranks of all workers together.
    pub ranks: u32,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Where the ranks would run.
    pub workdir: PathBuf,
    /// Workers: those with ranks, spares, data servers.
    pub workers: Vec<PlannedWorker>,
    /// The data; none for a job without.
    pub data: Option<PlannedData>,
    /// What was decided and why, and what the host lacks; one line each.
    pub notes: Vec<String>,
}

/// One worker of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedWorker {
    /// Which.
    pub worker: WorkerId,
    /// The host's name.
    pub host: String,
    /// Its ranks; empty for a spare and for a data server.
    pub ranks: Vec<Rank>,
    /// It is a data server.
    #[serde(default)]
    pub serves: bool,
    /// The CPUs that it is bound to; empty when it is not bound.
    pub cpus: Vec<u32>,
    /// The NUMA node that they lie on, if it is one.
    pub numa_node: Option<u32>,
    /// GPUs that it is given.
    pub gpus: Vec<u32>,
    /// Chunks of the data set that it reads from the store and serves to the others.
    pub chunks_owned: u64,
    /// Their bytes.
    pub bytes_owned: u64,
}

/// The data of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedData {
    /// The store's URL.
    pub source: String,
    /// The data set's digest, in hex.
    pub digest: String,
    /// Shards.
    pub shards: u64,
    /// Chunks.
    pub chunks: u64,
    /// Samples.
    pub samples: u64,
    /// Their bytes, without what frames them in the shards.
    pub bytes: u64,
    /// Steps of one epoch.
    pub steps_per_epoch: u64,
    /// Epochs.
    pub epochs: u64,
    /// Samples of one step, over all ranks.
    pub global_batch: u32,
    /// Samples of each rank's slice of a step, rank 0 first.
    pub samples_per_rank: Vec<u32>,
}

/// What an attached `submit` or `resume` tells while the job runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ProgressEvent {
    /// The job exists: first, once.
    Submitted {
        /// Its id.
        id: String,
        /// Its state and logs.
        folder: PathBuf,
    },
    /// The phase changed.
    Phase {
        /// The new one.
        phase: Phase,
        /// The generation.
        generation: Generation,
        /// Why, or what is waited for; may be empty.
        message: String,
    },
    /// The numbers; at most four a second.
    Progress(Progress),
    /// The trainer reported metrics.
    Reported {
        /// Steps done by then.
        step: Step,
        /// The values.
        values: BTreeMap<String, f64>,
    },
    /// A generation failed and another follows.
    Restarting {
        /// Why.
        cause: Cause,
        /// Which restart this is, from 1.
        restart: u32,
        /// How many the job allows.
        restarts_max: u32,
        /// Waited before the next generation.
        backoff_ms: u64,
        /// Where it resumes.
        from_step: Step,
    },
    /// Something that a user should know and that does not stop the job: a downgraded transport, no huge pages.
    Warning {
        /// A stable word.
        code: String,
        /// What.
        message: String,
    },
    /// Cancelling has begun (a signal, or `job cancel`).
    Cancelling {
        /// A second signal came: without grace.
        now: bool,
    },
}

/// The numbers of a moment; rates are over the last few seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// The generation.
    pub generation: Generation,
    /// Steps done by every rank.
    pub step: Step,
    /// Steps of the whole job; none without data.
    pub steps_total: Option<Step>,
    /// Steps of one epoch; none without data.
    pub steps_per_epoch: Option<u64>,
    /// Consumed samples a second.
    pub samples_per_second: f64,
    /// Consumed sample bytes a second.
    pub bytes_per_second: f64,
    /// Bytes read from the store so far.
    pub bytes_read: u64,
    /// Where the bytes came from, so far.
    pub paths: Paths,
    /// The last value of each metric that the trainer reported.
    pub reported: BTreeMap<String, f64>,
}

/// How to submit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubmitOptions {
    /// Return as soon as the job exists, and let a process of its own control it.
    pub detach: bool,
}

/// How to resume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResumeOptions {
    /// Workers with ranks; none: as before.
    pub workers: Option<NonZeroU32>,
    /// Return at once, and let a process of its own control it.
    pub detach: bool,
}

/// How to cancel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CancelOptions {
    /// Kill at once instead of asking the ranks to stop.
    pub now: bool,
}

/// What to show of a job's logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// One rank only.
    pub rank: Option<Rank>,
    /// The workers' and the launcher's own logs instead of the ranks'.
    pub system: bool,
    /// The last so many lines of each log first; none: all.
    pub tail: Option<u64>,
    /// Go on until the job is over.
    pub follow: bool,
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// The log's name: `rank-0`, `worker-1`, `launcher`.
    pub log: String,
    /// The rank, for a rank's log.
    pub rank: Option<Rank>,
    /// The line, without its end; bytes that are no UTF-8 are replaced.
    pub text: String,
}
