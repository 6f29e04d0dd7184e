//! From the type that a user writes to the [`Job`] that everything else works on: units become types, defaults are
//! filled in, relative paths get their folder (pure).

use std::num::{NonZeroU32, NonZeroU64};
use std::path::Path;

use datapath::dataset::Dtype;
use datapath::order::{OrderSpec, Remainder, Shuffle};
use datapath::select::{Congestion, TransportPolicy};

use super::spec::{
    CongestionSpec, DataSpec, DtypeSpec, JobSpec, LocalTierSpec, RecordSpec, RemainderSpec, ResourcesSpec,
    ServersSpec, ShuffleMode, TrainingJob, TransportSpec,
};
use super::units::{Bytes, Quantity, UnitError};
use super::{Data, Job, LocalTier, Placement, Queue, Record, Resources, Restarts, Run, Servers, Workers};

/// Chunks of a shuffle window when the job does not say: about 256 MiB.
pub const SHUFFLE_CHUNKS_DEFAULT: NonZeroU32 = NonZeroU32::new(64).unwrap();

/// The job, given a document that has passed every check.
///
/// # Errors
/// When it has not.
pub fn resolve(document: TrainingJob, folder: &Path) -> Result<Job, UnitError> {
    let TrainingJob { api_version: _, kind: _, metadata, spec } = document;
    let JobSpec { workers, run, resources, placement, data, restarts, hang, queue, pod, suspend } = spec;
    let count = positive(workers.count)?;
    Ok(Job {
        name: metadata.name,
        labels: metadata.labels,
        workers: Workers { count, min: workers.min.map_or(Ok(count), positive)?, spares: workers.spares },
        run: Run {
            command: run.command,
            env: run.env,
            workdir: run.workdir.map_or_else(|| folder.to_owned(), |workdir| folder.join(workdir)),
            ranks_per_worker: positive(run.ranks_per_worker)?,
            framework: run.framework,
        },
        resources: resolve_resources(resources)?,
        placement: Placement {
            strategy: placement.strategy,
            rack: placement.rack,
            block: placement.block,
            exclude: placement.exclude,
        },
        data: data.map(|data| resolve_data(data, folder)).transpose()?,
        restarts: Restarts {
            max: restarts.max,
            window: restarts.window.parse()?,
            backoff: restarts.backoff.parse()?,
        },
        hang_timeout: hang.timeout.map(|timeout| timeout.parse()).transpose()?,
        queue: queue.map(|queue| Queue { name: queue.name, priority: queue.priority }),
        pod: pod.unwrap_or_default(),
        suspend,
    })
}

fn resolve_resources(spec: ResourcesSpec) -> Result<Resources, UnitError> {
    let ResourcesSpec { gpus, gpu_mode, nics, cpus, memory, hugepages, locality } = spec;
    Ok(Resources {
        gpus,
        gpu_mode: gpu_mode.map_or_else(|| Ok(Default::default()), |mode| mode.0.parse())?,
        nics,
        cpus: cpus.map(positive).transpose()?,
        memory: memory.as_ref().map(bytes).transpose()?,
        hugepages: hugepages.as_ref().map(bytes).transpose()?,
        locality,
    })
}

fn resolve_tier(spec: &LocalTierSpec, folder: &Path) -> Result<LocalTier, UnitError> {
    let LocalTierSpec { size, folder: at } = spec;
    Ok(LocalTier { size: bytes(size)?, folder: at.as_ref().map(|at| folder.join(at)) })
}

/// None for no servers.
fn resolve_servers(spec: &ServersSpec) -> Result<Option<Servers>, UnitError> {
    let ServersSpec { count, cpus, memory, node_selector } = spec;
    let (cpus, memory) = (cpus.map(positive).transpose()?, memory.as_ref().map(bytes).transpose()?);
    let node_selector = node_selector.clone();
    Ok(NonZeroU32::new(*count).map(|count| Servers { count, cpus, memory, node_selector }))
}

fn resolve_data(spec: DataSpec, folder: &Path) -> Result<Data, UnitError> {
    let DataSpec {
        source,
        secret,
        global_batch,
        epochs,
        seed,
        shuffle,
        remainder,
        memory,
        transport,
        congestion,
        record,
        local_tier,
        servers,
    } = spec;
    let chunks = shuffle.chunks.map_or(Ok(SHUFFLE_CHUNKS_DEFAULT), positive)?;
    Ok(Data {
        source: absolute_source(&source, folder),
        secret,
        order: OrderSpec {
            seed,
            global_batch: positive(global_batch)?,
            shuffle: match shuffle.mode {
                ShuffleMode::None => Shuffle::None,
                ShuffleMode::Window => Shuffle::Window { chunks },
            },
            remainder: match remainder {
                RemainderSpec::Drop => Remainder::Drop,
                RemainderSpec::Pad => Remainder::Pad,
            },
        },
        epochs: NonZeroU64::new(epochs).ok_or_else(not_positive)?,
        memory,
        transport: match transport {
            TransportSpec::PreferRdma => TransportPolicy::PreferRdma,
            TransportSpec::RequireRdma => TransportPolicy::RequireRdma,
            TransportSpec::Quic => TransportPolicy::Quic,
        },
        congestion: match congestion {
            CongestionSpec::Fixed => Congestion::Fixed,
            CongestionSpec::Cubic => Congestion::Cubic,
        },
        record: record.as_ref().map(resolve_record).transpose()?,
        local_tier: local_tier.map(|tier| resolve_tier(&tier, folder)).transpose()?,
        servers: servers.map(|servers| resolve_servers(&servers)).transpose()?.flatten(),
    })
}

fn resolve_record(spec: &RecordSpec) -> Result<Record, UnitError> {
    let RecordSpec { dtype, items } = spec;
    Ok(Record { dtype: *dtype, items: positive(*items)? })
}

impl From<DtypeSpec> for Dtype {
    fn from(dtype: DtypeSpec) -> Self {
        match dtype {
            DtypeSpec::Bool => Self::Bool,
            DtypeSpec::U8 => Self::U8,
            DtypeSpec::U16 => Self::U16,
            DtypeSpec::U32 => Self::U32,
            DtypeSpec::U64 => Self::U64,
            DtypeSpec::I8 => Self::I8,
            DtypeSpec::I16 => Self::I16,
            DtypeSpec::I32 => Self::I32,
            DtypeSpec::I64 => Self::I64,
            DtypeSpec::F16 => Self::F16,
            DtypeSpec::F32 => Self::F32,
            DtypeSpec::F64 => Self::F64,
        }
    }
}

/// A store's URL as it is; a path in its folder.
#[must_use]
pub fn absolute_source(source: &str, folder: &Path) -> String {
    if source.contains("://") {
        return source.to_owned();
    }
    folder.join(source).to_string_lossy().into_owned()
}

fn bytes(quantity: &Quantity) -> Result<Bytes, UnitError> {
    quantity.0.parse()
}

fn positive(number: u32) -> Result<NonZeroU32, UnitError> {
    NonZeroU32::new(number).ok_or_else(not_positive)
}

fn not_positive() -> UnitError {
    UnitError { expected: "at least 1", hint: String::new() }
}
