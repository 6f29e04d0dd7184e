//! What a controller needs to begin: the job, what was prepared for it, and what earlier controllers left.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;

use datapath::dataset::manifest;
use datapath::plane::Role;
use datapath::transport::quic::tls::{Identity, fingerprint};
use worker::config::{DataConfig, ManifestFile, WorkerConfig};
use worker::units::{Generation, WorkerId};

use super::folder::{Folder, replace};
use super::prepare::Prepared;
use crate::backend::terms;
use crate::error::{ExitCode, Failure};
use crate::job::Job;
use crate::placement::Placement;
use crate::rendezvous::authority::launcher_name;
use crate::rendezvous::group::{GroupConfig, Memory, Timing};

/// Everything a controller begins with.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) job: Job,
    pub(super) uid: String,
    pub(super) memory: Memory,
    pub(super) placement: Placement,
    pub(super) steps_per_epoch: Option<NonZeroU64>,
    pub(super) identities: BTreeMap<WorkerId, Identity>,
    manifest_digest: String,
    cache_bytes: u64,
    server_cache_bytes: u64,
}

impl Setup {
    /// Writes what workers read from the job's folder: the manifest and the trainer's package.
    pub(super) fn new(
        folder: &Folder,
        job: Job,
        uid: String,
        memory: Memory,
        prepared: Prepared,
    ) -> Result<Self, Failure> {
        let cannot_write = |error: std::io::Error| {
            let path = folder.path().display();
            Failure::new(ExitCode::CannotCreate, format!("failed to write into {path}")).because(&error)
        };
        worker::python::unpack(&folder.python()).map_err(cannot_write)?;
        let mut manifest_digest = String::new();
        if let Some(data) = &prepared.data {
            replace(&folder.manifest(), &manifest::encode(&data.manifest)).map_err(cannot_write)?;
            manifest_digest = data.manifest.digest().to_string();
        }
        Ok(Self {
            job,
            uid,
            memory,
            placement: prepared.placement,
            cache_bytes: prepared.data.as_ref().map_or(0, |data| data.cache_bytes),
            server_cache_bytes: prepared.data.as_ref().map_or(0, |data| data.server_cache_bytes),
            steps_per_epoch: prepared.data.map(|data| data.steps_per_epoch),
            identities: BTreeMap::new(),
            manifest_digest,
        })
    }

    pub(super) fn worker_count(&self) -> u32 {
        self.job.processes()
    }

    /// Steps of the whole job.
    pub(super) fn steps_total(&self) -> Option<u64> {
        let epochs = self.job.data.as_ref()?.epochs.get();
        Some(self.steps_per_epoch?.get().saturating_mul(epochs))
    }

    pub(super) fn group_config(&self) -> GroupConfig {
        let prints: Vec<(WorkerId, [u8; 32])> =
            self.identities.iter().map(|(worker, own)| (*worker, fingerprint(&own.cert_der))).collect();
        let prints = prints.iter().map(|(worker, print)| (*worker, print));
        GroupConfig {
            steps_per_epoch: self.steps_per_epoch,
            ..terms::group(&self.job, Timing::default(), prints)
        }
    }

    /// What one worker is told.
    pub(super) fn worker_config(
        &self,
        folder: &Folder,
        worker: WorkerId,
        launcher: SocketAddr,
    ) -> Option<WorkerConfig> {
        let job = &self.job;
        let (role, cpus, cache_bytes) = if worker.0 < job.workers.total() {
            let place = self.placement.workers.get(usize::try_from(worker.0).ok()?)?;
            (Role::Worker, place.cpus.clone(), self.cache_bytes)
        } else {
            // No CPUs of its own: it uses what the ranks leave idle.
            (Role::Server, Vec::new(), self.server_cache_bytes)
        };
        Some(WorkerConfig {
            job: folder.id(),
            job_uid: self.uid.clone(),
            worker,
            role,
            launcher,
            launcher_name: launcher_name(&self.uid),
            bind: Ipv4Addr::LOCALHOST.into(),
            identity: self.identities.get(&worker)?.clone(),
            run: terms::run(job),
            cpus,
            data: job.data.as_ref().map(|data| {
                let manifest = ManifestFile { path: folder.manifest(), digest: self.manifest_digest.clone() };
                let tier = data
                    .local_tier
                    .as_ref()
                    .map(|tier| terms::tier(tier, tier.folder.clone().unwrap_or_else(|| folder.tier()), 0));
                DataConfig { tier, ..terms::data(data, job.resources.locality, Some(manifest), cache_bytes) }
            }),
            log_folder: folder.logs(),
            checkpoint_folder: folder.checkpoints(),
            python_folder: folder.python(),
            hang_ms: terms::hang_ms(job),
        })
    }

    /// Whether an earlier controller has begun.
    pub(super) fn is_resumed(&self) -> bool {
        self.memory.generation > Generation(0)
    }
}
