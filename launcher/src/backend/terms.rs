//! A job in the terms of its workers and of its membership, wherever they run (pure).

use std::path::PathBuf;

use datapath::plane::FarDevices;
use worker::config::{self, DataConfig, ManifestFile, RecordConfig, RunConfig, TierFolder};
use worker::units::WorkerId;

use crate::job::spec::{Framework, Locality};
use crate::job::{Data, Job, LocalTier};
use crate::rendezvous::group::{GroupConfig, RestartPolicy, Timing};

/// Batches in flight per rank: one is trained on, one is ready, two are on their way.
const SLOTS: u32 = 4;

/// What the ranks run.
pub(super) fn run(job: &Job) -> RunConfig {
    RunConfig {
        command: job.run.command.clone(),
        env: job.run.env.clone(),
        workdir: job.run.workdir.clone(),
        ranks_per_worker: job.run.ranks_per_worker.get(),
        // A job that joins with MPI is refused before it comes here.
        framework: match job.run.framework {
            Framework::Torch => config::Framework::Torch,
            Framework::Jax => config::Framework::Jax,
            Framework::None | Framework::Mpi => config::Framework::None,
        },
    }
}

/// What is read, and how. Without a manifest the workers make one, for which they need to know what a record is.
pub(super) fn data(
    data: &Data,
    locality: Locality,
    manifest: Option<ManifestFile>,
    cache_bytes: u64,
) -> DataConfig {
    let record = match manifest {
        Some(_) => None,
        None => {
            data.record.map(|record| RecordConfig { dtype: record.dtype.into(), items: record.items.get() })
        }
    };
    DataConfig {
        source: data.source.clone(),
        manifest,
        order: data.order,
        epochs: data.epochs.get(),
        transport: data.transport,
        congestion: data.congestion,
        far_devices: match locality {
            Locality::None => FarDevices::Used,
            Locality::Numa | Locality::Pcie => FarDevices::Refused,
        },
        slots: SLOTS,
        cache_bytes,
        tier: None,
        record,
    }
}

/// What keeps chunks on a worker's host, in that folder, of whose file system so much stays free.
pub(super) fn tier(tier: &LocalTier, folder: PathBuf, free_percent: u64) -> TierFolder {
    TierFolder { folder, bytes: tier.size.0, free_percent }
}

/// After how many milliseconds without a step the job is taken to hang.
pub(super) fn hang_ms(job: &Job) -> Option<u64> {
    job.hang_timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
}

/// The membership of a job whose workers have these certificates. What a launcher knows of the data, and whether workers
/// outlive it, is its own to say.
pub(super) fn group<'a>(
    job: &Job,
    timing: Timing,
    fingerprints: impl IntoIterator<Item = (WorkerId, &'a [u8; 32])>,
) -> GroupConfig {
    let hex = |print: &[u8; 32]| print.iter().map(|byte| format!("{byte:02x}")).collect();
    GroupConfig {
        workers: job.workers.count.get(),
        min_workers: job.workers.min.get(),
        spares: job.workers.spares,
        servers: job.servers(),
        ranks_per_worker: job.run.ranks_per_worker.get(),
        steps_per_epoch: None,
        finds_workers: false,
        restarts: RestartPolicy {
            max: job.restarts.max,
            window: job.restarts.window,
            backoff: job.restarts.backoff,
        },
        timing,
        fingerprints: fingerprints.into_iter().map(|(worker, print)| (worker, hex(print))).collect(),
    }
}
