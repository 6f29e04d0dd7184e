//! From a job to everything that must be known before anything is created: data, program, places.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use datapath::cache::{Need, need};
use datapath::dataset::{ChunkId, Manifest};
use datapath::order::{Consumer, Order, share};
use datapath::select::{self, Candidate, PeerId, Role};
use worker::units::{Rank, WorkerId};

use crate::backend::{Plan, PlannedData, PlannedWorker};
use crate::dataset;
use crate::error::{ExitCode, Failure};
use crate::job::{Data, Job};
use crate::placement::{Placement, Request, place};
use crate::topology::local::cluster;

/// The kernel's limit of symbolic links does the same for programs: a bound on what is looked through.
const PATH_FOLDERS_MAX: usize = 1024;

/// What a job needs, found.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) placement: Placement,
    pub(super) data: Option<PreparedData>,
}

/// Its data.
#[derive(Debug)]
pub(super) struct PreparedData {
    pub(super) manifest: Manifest,
    pub(super) steps_per_epoch: NonZeroU64,
    /// Bytes of chunks that each worker holds.
    pub(super) cache_bytes: u64,
    /// The same of each data server.
    pub(super) server_cache_bytes: u64,
}

/// Bytes of chunks that one worker holds at the most: the workers of a job share this host's memory with their trainers.
const CACHE_BYTES_MAX: u64 = 1 << 30;

/// What each owner of chunks must hold: its share of a shuffle window. Where there are data servers these are the owners;
/// else the workers, also when the job has shrunk to its minimum.
fn cache_need(job: &Job, manifest: &Manifest, data: &Data) -> Need {
    let owners = data.servers.as_ref().map_or(job.workers.min, |servers| servers.count);
    need(manifest, data.order.shuffle, owners)
}

/// Bytes of chunks that each worker holds, and each data server. Beside data servers a worker's cache is empty, and takes no
/// memory; what it may hold when all of them are gone is enough to read nothing twice, and not to read ahead.
fn cache_bytes(job: &Job, manifest: &Manifest, data: &Data) -> (u64, u64) {
    let owner = cache_need(job, manifest, data).ahead.min(CACHE_BYTES_MAX);
    match &data.servers {
        None => (owner, 0),
        Some(_) => {
            let fallback = need(manifest, data.order.shuffle, job.workers.min).once;
            (fallback.min(CACHE_BYTES_MAX), owner)
        }
    }
}

/// Finds all of it, or says what is missing.
pub(super) async fn prepare(job: &Job) -> Result<Prepared, Failure> {
    let placement = place(&cluster(), &Request::of(job)).map_err(|refused| {
        let mut failure = Failure::from_error(ExitCode::Unavailable, &refused);
        failure.causes = refused.reasons;
        failure.hint("ask for fewer workers, or for less of what each worker needs")
    })?;
    find_program(job)?;
    let data = match &job.data {
        Some(data) => Some(prepare_data(job, data).await?),
        None => None,
    };
    Ok(Prepared { placement, data })
}

async fn prepare_data(job: &Job, data: &Data) -> Result<PreparedData, Failure> {
    if data.secret.is_some() {
        let message = "failed to read spec.data.secret: it names a Secret of a cluster, and this job runs on one machine";
        return Err(Failure::new(ExitCode::JobFile, message)
            .hint("name a folder with the credentials in the source (?credentials=FOLDER), or submit it --on kubernetes"));
    }
    let manifest = dataset::open(&data.source, &dataset::index_options(data.record)).await?.manifest;
    let order = Order::new(&manifest, data.order)
        .map_err(|error| Failure::from_error(ExitCode::Data, &error).hint("lower data.globalBatch"))?;
    let steps_per_epoch = NonZeroU64::new(order.steps_per_epoch()).unwrap_or(NonZeroU64::MIN);
    let (cache_bytes, server_cache_bytes) = cache_bytes(job, &manifest, data);
    Ok(PreparedData { manifest, steps_per_epoch, cache_bytes, server_cache_bytes })
}

/// Looks the program up as the kernel and `execvp` will, so that a typing error is told before a job exists.
fn find_program(job: &Job) -> Result<(), Failure> {
    let run = &job.run;
    if !run.workdir.is_dir() {
        let folder = run.workdir.display();
        return Err(Failure::new(ExitCode::NotFound, format!("failed to use the working folder {folder}"))
            .hint("spec.run.workdir must name a folder that exists"));
    }
    let Some(program) = run.command.first() else {
        return Err(Failure::new(ExitCode::JobFile, "failed to run an empty command"));
    };
    let candidates: Vec<PathBuf> = if program.contains('/') {
        vec![run.workdir.join(program)]
    } else {
        let inherited = std::env::var_os("PATH");
        let path = run.env.get("PATH").map(Into::into).or(inherited).unwrap_or_default();
        std::env::split_paths(&path)
            .take(PATH_FOLDERS_MAX)
            .map(|f| run.workdir.join(f).join(program))
            .collect()
    };
    if candidates.iter().any(|path| is_executable(path)) {
        return Ok(());
    }
    let there = candidates.iter().find(|path| path.is_file());
    Err(match there {
        Some(path) => Failure::new(ExitCode::NotFound, format!("failed to execute {}", path.display()))
            .hint("make it executable: chmod +x"),
        None => Failure::new(ExitCode::NotFound, format!("failed to find the command {program:?}"))
            .hint("is it installed, and in the PATH of the job? a program with a slash is taken from the working folder"),
    })
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// What would be done with it.
pub(super) fn plan(job: &Job, prepared: &Prepared) -> Plan {
    let ranks_per_worker = job.run.ranks_per_worker.get();
    let count = job.workers.count.get();
    let owned = prepared.data.as_ref().map(|data| owned(&data.manifest, job)).unwrap_or_default();
    let workers = prepared.placement.workers.iter().map(|place| {
        let index = place.worker.0;
        let ranks = if index < count {
            (index * ranks_per_worker..(index + 1) * ranks_per_worker).map(Rank).collect()
        } else {
            Vec::new()
        };
        let (chunks_owned, bytes_owned) = owned.get(&PeerId(index)).copied().unwrap_or_default();
        PlannedWorker {
            worker: place.worker,
            host: place.host.clone(),
            ranks,
            serves: false,
            cpus: place.cpus.clone(),
            numa_node: place.numa_node,
            gpus: Vec::new(),
            chunks_owned,
            bytes_owned,
        }
    });
    let host = prepared.placement.workers.first().map(|place| place.host.clone()).unwrap_or_default();
    let servers = (job.workers.total()..job.processes()).map(|index| {
        let (chunks_owned, bytes_owned) = owned.get(&PeerId(index)).copied().unwrap_or_default();
        PlannedWorker {
            worker: WorkerId(index),
            host: host.clone(),
            ranks: Vec::new(),
            serves: true,
            cpus: Vec::new(),
            numa_node: None,
            gpus: Vec::new(),
            chunks_owned,
            bytes_owned,
        }
    });
    Plan {
        name: job.name.clone(),
        backend: "local".to_owned(),
        ranks: job.ranks().get(),
        command: job.run.command.clone(),
        workdir: job.run.workdir.clone(),
        workers: workers.chain(servers).collect(),
        data: job.data.as_ref().zip(prepared.data.as_ref()).map(|(data, found)| planned(job, data, found)),
        notes: prepared
            .placement
            .notes
            .iter()
            .cloned()
            .chain(notes(job))
            .chain(cache_note(job, prepared))
            .collect(),
    }
}

/// What a lost worker means here, where it can always be started again.
fn notes(job: &Job) -> impl Iterator<Item = String> {
    let workers = &job.workers;
    let spares = (workers.spares > 0).then(|| {
        let number = workers.spares;
        format!("{number} spare workers wait without ranks; one takes the ranks of a worker that dies, which is started again as the spare")
    });
    let fewer = (workers.min < workers.count).then(|| {
        let min = workers.min;
        format!("a worker that cannot be started again is done without, down to {min} workers")
    });
    spares.into_iter().chain(fewer)
}

fn cache_note(job: &Job, prepared: &Prepared) -> Option<String> {
    let found = prepared.data.as_ref()?;
    let held = if job.servers() > 0 { found.server_cache_bytes } else { found.cache_bytes };
    reread_note(cache_need(job, &found.manifest, job.data.as_ref()?).once, held)
}

/// When chunks will be read more than once per epoch.
fn reread_note(share_bytes: u64, held_bytes: u64) -> Option<String> {
    (share_bytes > held_bytes).then(|| {
        format!(
            "an owner's share of a shuffle window is {share_bytes} bytes and it holds {held_bytes}: chunks are read \
             more than once (use a smaller data.shuffle.chunks, or more workers or data.servers)"
        )
    })
}

fn planned(job: &Job, data: &Data, found: &PreparedData) -> PlannedData {
    let manifest = &found.manifest;
    let global_batch = data.order.global_batch.get();
    let of = job.ranks();
    let samples_per_rank = (0..of.get()).map(|index| {
        let share = share(global_batch, Consumer { index, of });
        share.end - share.start
    });
    let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
    PlannedData {
        source: data.source.clone(),
        digest: manifest.digest().to_string(),
        shards: count(manifest.shards().len()),
        chunks: count(manifest.chunks().len()),
        samples: manifest.sample_count(),
        bytes: manifest.bytes(),
        steps_per_epoch: found.steps_per_epoch.get(),
        epochs: data.epochs.get(),
        global_batch,
        samples_per_rank: samples_per_rank.collect(),
    }
}

/// Chunks and bytes that each owner reads from the store.
fn owned(manifest: &Manifest, job: &Job) -> BTreeMap<PeerId, (u64, u64)> {
    let candidate = |role| move |id| Candidate { id: PeerId(id), role };
    let workers = (0..job.workers.count.get()).map(candidate(Role::Worker));
    let servers = (job.workers.total()..job.processes()).map(candidate(Role::Server));
    let peers: Vec<Candidate> = workers.chain(servers).collect();
    let mut owned = BTreeMap::<PeerId, (u64, u64)>::new();
    for (index, chunk) in (0_u32..).zip(manifest.chunks()) {
        if let Some(owner) = select::owner(ChunkId(index), &peers, |_| true) {
            let (chunks, bytes) = owned.entry(owner.id).or_default();
            *chunks += 1;
            *bytes += u64::from(chunk.len);
        }
    }
    owned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_is_not_held_is_told() {
        assert_eq!(reread_note(CACHE_BYTES_MAX, CACHE_BYTES_MAX), None);
        let note = reread_note(CACHE_BYTES_MAX + 1, CACHE_BYTES_MAX).unwrap();
        assert!(note.contains("1073741825 bytes") && note.contains("data.shuffle.chunks"), "{note}");
    }
}
