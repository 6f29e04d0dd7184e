//! What every pod of a job reads: one ConfigMap, without any secret (pure).

use std::path::PathBuf;

use datapath::store::address::with_credentials;
use serde_json::{Value, json};
use worker::config::{DataConfig, PodJob};

use super::resources::{server_share, shares};
use super::{Render, RenderError};
use crate::backend::kubernetes::names::{
    DATA_SECRET_FOLDER, SHARED_FOLDER, TIER_FOLDER, config_map as config_map_name,
};
use crate::backend::terms;
use crate::job::Data;
use crate::job::spec::Locality;
use crate::rendezvous::authority::launcher_name;

/// The file in [`crate::backend::kubernetes::names::CONFIG_FOLDER`].
const FILE: &str = "job.json";
/// Bytes of it: a ConfigMap holds 1 MiB, keys and all.
const FILE_BYTES_MAX: usize = (1 << 20) - 1024;
/// Bytes of chunks that a worker holds where the job does not say how much memory its sidecar has.
const CACHE_BYTES_DEFAULT: u64 = 1 << 30;
/// How much of a node's disk a tier leaves free, in percent: a kubelet evicts pods below 15 % where images lie on it, too
/// (kubernetes.io, "Node-pressure Eviction", `imagefs.available`; `nodefs.available` is 10 %).
const TIER_FREE_PERCENT: u64 = 18;
/// The part of a sidecar's memory that is cache; the rest is rings and buffers.
const CACHE_PART: u64 = 2;
/// A data server has no rings: three of so many parts of its memory are cache.
const SERVER_CACHE_PARTS: u64 = 4;

/// The ConfigMap that every pod reads.
///
/// # Errors
/// When the job's command and environment are too large for one.
pub fn config_map(render: &Render<'_>) -> Result<Value, RenderError> {
    let text = serde_json::to_string(&pod_job(render))?;
    if text.len() > FILE_BYTES_MAX {
        return Err(RenderError::TooLarge { bytes: text.len(), limit: FILE_BYTES_MAX });
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": render.metadata(&config_map_name(&render.job.name)),
        "data": { FILE: text },
    }))
}

/// What it says.
#[must_use]
pub fn pod_job(render: &Render<'_>) -> PodJob {
    let job = render.job;
    let checkpoints = job.pod.checkpoints.as_ref().map(PathBuf::from);
    PodJob {
        job: job.name.clone(),
        job_uid: render.uid.to_owned(),
        launcher: render.launcher,
        launcher_name: launcher_name(render.uid),
        run: terms::run(job),
        data: job.data.as_ref().map(|data| sidecar_data(data, job.resources.locality, cache_bytes(render))),
        checkpoint_folder: checkpoints.unwrap_or_else(|| PathBuf::from(SHARED_FOLDER).join("checkpoints")),
        hang_ms: terms::hang_ms(job),
        server_cache_bytes: (job.servers() > 0)
            .then(|| server_share(job).memory_bytes / SERVER_CACHE_PARTS * (SERVER_CACHE_PARTS - 1)),
    }
}

/// What a sidecar reads, with the credentials where it has them.
fn sidecar_data(data: &Data, locality: Locality, cache_bytes: u64) -> DataConfig {
    let tier = data.local_tier.as_ref();
    let tier = tier.map(|tier| terms::tier(tier, TIER_FOLDER.into(), TIER_FREE_PERCENT));
    let mut config = DataConfig { tier, ..terms::data(data, locality, None, cache_bytes) };
    if data.secret.is_some() {
        config.source = with_credentials(&config.source, DATA_SECRET_FOLDER);
    }
    config
}

/// Bytes of chunks that a worker holds.
fn cache_bytes(render: &Render<'_>) -> u64 {
    let sidecar = shares(render.job).sidecar;
    match sidecar.memory_limited {
        true => sidecar.memory_bytes / CACHE_PART,
        false => CACHE_BYTES_DEFAULT,
    }
}
