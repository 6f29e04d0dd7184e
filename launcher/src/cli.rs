//! The words of the command line: types only. The doc comments are the help.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use datapath::order::{Remainder, Shuffle};

use crate::job::Record;
use crate::job::resolve::SHUFFLE_CHUNKS_DEFAULT;
use crate::job::spec::DtypeSpec;
use crate::job::units::Bytes;

pub mod cluster;

use cluster::{ClusterFlags, Serve};

/// Launches distributed training jobs and feeds them.
///
/// A job is a gang of workers: all of them start together, meet through one rendezvous, and are fed the same
/// samples in the same order at any world size. Programs that torchrun can start run unchanged.
#[derive(Clone, Debug, Parser)]
#[command(name = "launcher", version, max_term_width = 100, propagate_version = false, after_help = EXAMPLES)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  launcher job submit job.yaml
  launcher job submit --workers 4 --data shards/ --global-batch 256 -- python3 train.py
  launcher job logs digits --rank 2 --follow
  launcher data order shards/ --workers 4 --global-batch 256 --epoch 0 --digest

Data goes to standard output, everything else to standard error.
`launcher exit-codes` lists how a command may end.
Jobs keep their state below SLIPWAY_HOME (default: ~/.local/state/slipway).";

/// Flags of every command.
#[derive(Args, Clone, Copy, Debug)]
pub struct Global {
    /// How data is printed: for people, or as JSON
    #[arg(long, global = true, value_enum, default_value_t = OutputFormat::Text, value_name = "FORMAT", help_heading = "Global options")]
    pub output: OutputFormat,
    /// When to use colour
    #[arg(long, global = true, value_enum, default_value_t = ColorWhen::Auto, value_name = "WHEN", help_heading = "Global options")]
    pub color: ColorWhen,
    /// No progress and no notes: only data and errors
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub quiet: bool,
}

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Text,
    /// One JSON document; for lists of steps and lines, one JSON object a line.
    Json,
}

/// When colour is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run jobs and look after them
    #[command(subcommand)]
    Job(JobCommand),
    /// Look at data sets: index, check, and say in which order they are read
    #[command(subcommand)]
    Data(DataCommand),
    /// Look after the jobs of a Kubernetes cluster: controller, rendezvous and metrics in one process
    Serve(Box<Serve>),
    /// Look at a cluster: what is missing for which locality, and how to fix it
    ///
    /// Only reads. What may not be read is passed over, and said. Ends with 69 when jobs cannot run at all.
    Doctor(cluster::Doctor),
    /// Print the JSON Schema of the job file: every field with its meaning
    Schema,
    /// Print the custom resource that lets a Kubernetes cluster keep jobs
    ///
    /// For example: launcher crd | kubectl apply --server-side -f -
    Crd,
    /// Print a completion script for a shell
    ///
    /// For example: launcher completions bash > ~/.local/share/bash-completion/completions/launcher
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// List how a command may end, and what each exit code means
    ExitCodes,
    /// Control one job (started by `job submit --detach`).
    #[command(hide = true)]
    JobController {
        /// The job's folder.
        folder: PathBuf,
    },
    /// Be a worker (started by a job's controller; configured on standard input).
    #[command(hide = true)]
    WorkerAgent,
}

/// `launcher job …`
#[derive(Clone, Debug, Subcommand)]
pub enum JobCommand {
    /// Start a job, from a file or from flags, and follow it to its end
    ///
    /// With a FILE, flags override its fields. Without one, `--workers` and `-- COMMAND…` make a job.
    /// Ctrl-C cancels the job; a second one does so without grace.
    Submit(Box<Submit>),
    /// Show where a job would go and why, or why it cannot start; create nothing
    Plan(Box<Submit>),
    /// List the jobs, newest first
    List {
        /// Where they run.
        #[command(flatten)]
        place: Place,
    },
    /// Show how a job is, or how it ended
    Status {
        /// The job's id, or its name (the newest of that name)
        job: String,
        /// Where it runs.
        #[command(flatten)]
        place: Place,
    },
    /// Print what the ranks wrote
    Logs(Logs),
    /// Stop a job and wait until nothing of it runs
    Cancel {
        /// The job's id, or its name (the newest of that name)
        job: String,
        /// Kill at once instead of asking the ranks to stop
        #[arg(long)]
        now: bool,
        /// Where it runs.
        #[command(flatten)]
        place: Place,
    },
    /// Start an ended, cancelled or orphaned job again at its last committed step
    Resume {
        /// The job's id, or its name (the newest of that name)
        job: String,
        /// Workers; the batches stay the same at any number [default: as before]
        #[arg(long, value_name = "N")]
        workers: Option<NonZeroU32>,
        /// Return at once; `job status` and `job logs -f` follow it
        #[arg(long)]
        detach: bool,
        /// Where it runs.
        #[command(flatten)]
        place: Place,
    },
}

const SUBMIT_HELP: &str = "\
A job file:
  apiVersion: slipway.dev/v1alpha1
  kind: TrainingJob
  metadata: {name: digits}
  spec:
    workers: {count: 4}
    run:
      command: [python3, train.py]
    data:
      source: shards             # relative to the file
      globalBatch: 128
      epochs: 20
`launcher schema` describes every field.";

/// `launcher job submit`
#[derive(Args, Clone, Debug, Default)]
#[command(after_long_help = SUBMIT_HELP)]
pub struct Submit {
    /// A job file, YAML or JSON (see `launcher schema`)
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The program and its arguments; no shell is involved
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
    /// Where the job runs.
    #[command(flatten)]
    pub place: Place,
    /// On a cluster: keep a job that it could never hold as it is, until it has grown
    #[arg(long)]
    pub wait: bool,
    /// Show what would be done, and every fault, and do nothing
    #[arg(long, conflicts_with = "detach")]
    pub dry_run: bool,
    /// Return as soon as the job exists; `job status` and `job logs -f` follow it
    #[arg(long)]
    pub detach: bool,
    /// The job's name [default: from the program]
    #[arg(long)]
    pub name: Option<String>,
    /// Set any field of the job file: --set spec.resources.memory=8Gi
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// The program and its surroundings.
    #[command(flatten)]
    pub run: RunFlags,
    /// What the ranks are fed.
    #[command(flatten)]
    pub data: DataFlags,
}

/// Flags for the program.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Workers and program")]
pub struct RunFlags {
    /// Workers: a sidecar and its ranks each
    #[arg(long, value_name = "N")]
    pub workers: Option<u32>,
    /// Go on with as few as this when workers are lost
    #[arg(long, value_name = "N")]
    pub min_workers: Option<u32>,
    /// Workers held warm to take a lost one's place
    #[arg(long, value_name = "N")]
    pub spares: Option<u32>,
    /// Ranks (processes) of each worker
    #[arg(long, value_name = "N")]
    pub ranks_per_worker: Option<u32>,
    /// CPUs of each worker, bound
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// GPUs of each worker
    #[arg(long, value_name = "N")]
    pub gpus: Option<u32>,
    /// Memory of each worker, such as 8Gi
    #[arg(long, value_name = "QUANTITY")]
    pub memory: Option<String>,
    /// An environment variable for the ranks; may be given again
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub env: Vec<(String, String)>,
    /// Where the ranks run [default: the job file's folder, else this one]
    #[arg(long, value_name = "FOLDER")]
    pub workdir: Option<PathBuf>,
    /// Restarts before the job fails
    #[arg(long, value_name = "N")]
    pub max_restarts: Option<u32>,
    /// No step for this long is a hang, such as 10m [default: never]
    #[arg(long, value_name = "DURATION")]
    pub hang_timeout: Option<String>,
}

/// Flags for the data.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Data")]
pub struct DataFlags {
    /// A folder of shards (tar, .npy, .bin) or a store's URL
    #[arg(long, value_name = "SOURCE")]
    pub data: Option<String>,
    /// Samples of one step, over all ranks
    #[arg(long, value_name = "N")]
    pub global_batch: Option<u32>,
    /// How often the data is gone through
    #[arg(long, value_name = "N")]
    pub epochs: Option<u64>,
    /// What the order depends on, besides the data
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// How samples are mixed: none, or window:CHUNKS
    #[arg(long, value_name = "HOW", value_parser = parse_shuffle)]
    pub shuffle: Option<Shuffle>,
    /// What happens with samples that do not fill a batch
    #[arg(long, value_enum, value_name = "HOW")]
    pub remainder: Option<RemainderFlag>,
    /// The records of .bin files (and of one-dimensional .npy files)
    #[arg(long, value_name = "DTYPE:ITEMS", value_parser = parse_record)]
    pub record: Option<Record>,
    /// Which lanes may carry samples: prefer-rdma, require-rdma or quic
    #[arg(long, value_name = "POLICY")]
    pub transport: Option<String>,
}

/// `launcher job logs`
#[derive(Args, Clone, Debug)]
pub struct Logs {
    /// The job's id, or its name (the newest of that name)
    pub job: String,
    /// Go on until the job is over
    #[arg(long, short)]
    pub follow: bool,
    /// This rank only
    #[arg(long, value_name = "R", conflicts_with = "system")]
    pub rank: Option<u32>,
    /// Only the last so many lines of each log
    #[arg(long, value_name = "N")]
    pub tail: Option<u64>,
    /// The workers' and the launcher's own logs instead of the ranks'
    #[arg(long)]
    pub system: bool,
    /// Where it runs.
    #[command(flatten)]
    pub place: Place,
}

/// Where jobs run, and which cluster is meant.
#[derive(Args, Clone, Debug, Default)]
pub struct Place {
    /// Where the job runs
    #[arg(long, value_enum, default_value_t = Backend::Local, value_name = "BACKEND")]
    pub on: Backend,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterFlags,
}

/// Where jobs run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// On this host.
    #[default]
    Local,
    /// On a Kubernetes cluster that `launcher serve` looks after.
    Kubernetes,
}

/// `launcher data …`
#[derive(Clone, Debug, Subcommand)]
pub enum DataCommand {
    /// Read every shard once and write `slipway.manifest` beside them: chunks, samples and checksums
    Index(Index),
    /// Read everything and compare every chunk and sample with the manifest
    Verify {
        /// The data set.
        #[command(flatten)]
        source: Source,
        /// Shards that are read at the same time [default: one per CPU]
        #[arg(long, value_name = "N")]
        threads: Option<NonZeroUsize>,
    },
    /// List the shards, and what is in them
    Ls {
        /// The data set.
        #[command(flatten)]
        source: Source,
    },
    /// Copy a data set to a store, compare it there, and write its manifest beside it
    ///
    /// A shard that is at the target already, and intact, is kept: run it again after an interruption to go on.
    Put(Put),
    /// List which samples each rank is given in each step, or print one hash of them
    ///
    /// The order is a pure function of the data, the seed, the epoch and the global batch: anyone who has the data
    /// can repeat it. A job prints the same hash of what its ranks consumed.
    #[command(after_help = ORDER_HELP)]
    Order(Order),
}

const ORDER_HELP: &str = "\
Output:
  One line per step and rank: STEP <tab> RANK <tab> SAMPLE IDS; a `+` marks padding.
  With --epochs, steps count on over all epochs. With --output json: one object per step.
  With --digest: one hash of (epoch, step, position, sample) over the steps, padding included;
  it is the same for any number of --workers.";

/// A data set.
#[derive(Args, Clone, Debug)]
pub struct Source {
    /// A folder of shards (tar, .npy, .bin) or a store's URL
    pub source: String,
    /// The records of .bin files (and of one-dimensional .npy files), such as u16:2048
    #[arg(long, value_name = "DTYPE:ITEMS", value_parser = parse_record)]
    pub record: Option<Record>,
}

/// `launcher data index`
#[derive(Args, Clone, Debug)]
pub struct Index {
    /// The data set.
    #[command(flatten)]
    pub source: Source,
    /// The size of a chunk that is aimed at: the unit that is read and cached
    #[arg(long, value_name = "QUANTITY", value_parser = parse_chunk_bytes)]
    pub chunk_bytes: Option<u32>,
    /// Shards that are read at the same time [default: one per CPU]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

/// `launcher data put`
#[derive(Args, Clone, Debug)]
pub struct Put {
    /// The data set.
    #[command(flatten)]
    pub source: Source,
    /// Where to: rados://POOL/PREFIX, s3://BUCKET/PREFIX, or a folder
    pub target: String,
    /// Chunks that are compared at the same time [default: one per CPU]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

/// `launcher data order`
#[derive(Args, Clone, Debug)]
pub struct Order {
    /// The data set.
    #[command(flatten)]
    pub source: Source,
    /// Consumers of a step: a job's ranks
    #[arg(long, value_name = "W")]
    pub workers: NonZeroU32,
    /// Samples of one step, over all ranks
    #[arg(long, value_name = "B")]
    pub global_batch: NonZeroU32,
    /// The job's seed
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// The epoch, from 0 [default: 0]
    #[arg(long, value_name = "E", conflicts_with = "epochs")]
    pub epoch: Option<u64>,
    /// A whole job of so many epochs
    #[arg(long, value_name = "N")]
    pub epochs: Option<NonZeroU64>,
    /// Begin at this step (of the epoch; with --epochs, of the job)
    #[arg(long, value_name = "STEP", default_value_t = 0)]
    pub from: u64,
    /// So many steps [default: to the end]
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// One hash instead of the list
    #[arg(long)]
    pub digest: bool,
    /// How samples are mixed: none, or window:CHUNKS
    #[arg(long, value_name = "HOW", value_parser = parse_shuffle, default_value = "window:64")]
    pub shuffle: Shuffle,
    /// What happens with samples that do not fill a batch
    #[arg(long, value_enum, value_name = "HOW", default_value_t = RemainderFlag::Drop)]
    pub remainder: RemainderFlag,
}

/// What happens with samples that do not fill a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RemainderFlag {
    /// They are left out of the epoch.
    Drop,
    /// The last batch is filled from the epoch's beginning.
    Pad,
}

impl From<RemainderFlag> for Remainder {
    fn from(flag: RemainderFlag) -> Self {
        match flag {
            RemainderFlag::Drop => Self::Drop,
            RemainderFlag::Pad => Self::Pad,
        }
    }
}

fn parse_record(text: &str) -> Result<Record, String> {
    let (dtype, items) = text.split_once(':').ok_or("write it as DTYPE:ITEMS, for example u16:2048")?;
    let dtype = DtypeSpec::from_name(dtype).ok_or_else(|| {
        let names: Vec<_> = DtypeSpec::ALL.iter().map(|dtype| dtype.name()).collect();
        format!("{dtype:?} is no type of an item: known are {}", names.join(", "))
    })?;
    let items = items.parse().map_err(|_| "items are a whole number from 1 on, for example u16:2048")?;
    Ok(Record { dtype, items })
}

fn parse_shuffle(text: &str) -> Result<Shuffle, String> {
    match text.split_once(':') {
        None if text == "none" => Ok(Shuffle::None),
        None if text == "window" => Ok(Shuffle::Window { chunks: SHUFFLE_CHUNKS_DEFAULT }),
        Some(("window", chunks)) => match chunks.parse() {
            Ok(chunks) => Ok(Shuffle::Window { chunks }),
            Err(_) => Err("chunks are a whole number from 1 on, for example window:64".to_owned()),
        },
        _ => Err("write none or window:CHUNKS, for example window:64".to_owned()),
    }
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    if name.is_empty() {
        return Err("the name before the = is empty".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

fn parse_chunk_bytes(text: &str) -> Result<u32, String> {
    let Bytes(bytes) = text
        .parse()
        .map_err(|error: crate::job::units::UnitError| format!("must be {error} ({})", error.hint))?;
    u32::try_from(bytes).ok().filter(|bytes| *bytes > 0).ok_or_else(|| "must be from 1 to 4Gi".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_are_parsed_where_they_are_written() {
        let parse = |args: &str| Cli::try_parse_from(args.split(' '));
        assert!(parse("launcher data order d --workers 1 --global-batch 2 --shuffle none").is_ok());
        for args in [
            "launcher data order d --workers 0 --global-batch 2",
            "launcher data order d --workers 1 --global-batch 2 --shuffle window:0",
            "launcher data order d --workers 1 --global-batch 2 --shuffle windows",
            "launcher data order d --workers 1 --global-batch 2 --epoch 1 --epochs 2",
            "launcher data order d --workers 1",
            "launcher data index d --record u17:4",
            "launcher data index d --record u16",
            "launcher data index d --record u16:0",
            "launcher data index d --chunk-bytes 8Gi",
            "launcher job submit --env A -- a",
            "launcher job submit --env =A -- a",
            "launcher job submit --dry-run --detach -- a",
            "launcher job submit a.yaml b.yaml",
            "launcher job logs j --rank 1 --system",
            "launcher job resume j --workers 0",
        ] {
            assert!(parse(args).is_err(), "{args}");
        }
    }
}
