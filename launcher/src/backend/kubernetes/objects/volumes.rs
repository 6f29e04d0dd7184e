//! The volumes of a pod, and where its containers see them (pure).

use std::path::Path;

use datapath::store::address::Address;
use serde_json::{Value, json};

use super::Render;
use crate::backend::kubernetes::names::{
    CONFIG_FOLDER, DATA_SECRET_FOLDER, IDENTITIES_PER_SECRET, IDENTITY_FOLDER, SHARED_FOLDER, TIER_FOLDER,
    config_map, identities_secret,
};
use crate::job::spec::pod::VolumeSpec;

/// The folder that the containers share.
const SHARED: &str = "slipway";
/// The job's configuration.
const CONFIG: &str = "slipway-config";
/// All workers' identities, of which each sidecar sees its own.
const IDENTITY: &str = "slipway-identity";
/// The credentials of the data's store.
const DATA: &str = "slipway-data";
/// What the sidecar keeps on the node's disk.
const TIER: &str = "slipway-tier";
/// This part of the budget more is the file system's own; a pod is evicted when it passes its volume's limit.
const TIER_PART: u64 = 9;
/// The ranks' `/dev/shm`: a runtime gives 64 MiB, and NCCL and torch's data loaders need more. It counts as memory.
const SHM: &str = "slipway-shm";
/// Read by the owner and the pod's group, which `fsGroup` makes the containers' own.
const SECRET_MODE: i32 = 0o440;

/// `volumes` of the pod.
pub(super) fn volumes(render: &Render<'_>) -> Vec<Value> {
    let name = &render.job.name;
    let parts = render.pods().div_ceil(IDENTITIES_PER_SECRET);
    let secrets: Vec<Value> =
        (0..parts).map(|part| json!({ "secret": { "name": identities_secret(name, part) } })).collect();
    let own = [
        json!({ "name": SHARED, "emptyDir": {} }),
        json!({ "name": CONFIG, "configMap": { "name": config_map(name) } }),
        json!({ "name": IDENTITY, "projected": { "defaultMode": SECRET_MODE, "sources": secrets } }),
        json!({ "name": SHM, "emptyDir": { "medium": "Memory" } }),
    ];
    let data = data_secret(render)
        .map(|name| json!({ "name": DATA, "secret": { "secretName": name, "defaultMode": SECRET_MODE } }));
    own.into_iter().chain(data).chain(tier(render)).chain(render.job.pod.volumes.iter().map(volume)).collect()
}

/// The sidecar's part of the node's disk, which goes with the pod.
fn tier(render: &Render<'_>) -> Option<Value> {
    let size = render.job.data.as_ref()?.local_tier.as_ref()?.size;
    // Whole MiB, since that is what people read.
    let limit = size.0.saturating_add(size.0 / TIER_PART).div_ceil(1 << 20).saturating_add(1);
    Some(json!({ "name": TIER, "emptyDir": { "sizeLimit": format!("{limit}Mi") } }))
}

/// Of the user's volumes those that a data server needs: settings, and what holds the data. A claim for checkpoints may be one
/// that a single node can mount, and the servers are on others.
fn seen_by_servers<'a>(render: &Render<'a>) -> Vec<&'a VolumeSpec> {
    let volumes = &render.job.pod.volumes;
    let source = render.job.data.as_ref().and_then(|data| Address::parse(&data.source).ok());
    let folder = match &source {
        Some(Address::Directory(folder)) => Some(folder.as_path()),
        _ => None,
    };
    let above = |spec: &&VolumeSpec| folder.is_some_and(|folder| folder.starts_with(&spec.mount_path));
    let holder =
        volumes.iter().filter(above).max_by_key(|spec| Path::new(&spec.mount_path).components().count());
    let is_seen = |spec: &&VolumeSpec| {
        let is_holder = holder.is_some_and(|holder| holder.name == spec.name);
        let is_below = folder.is_some_and(|folder| Path::new(&spec.mount_path).starts_with(folder));
        spec.secret.is_none() && (spec.config_map.is_some() || is_holder || is_below)
    };
    volumes.iter().filter(is_seen).collect()
}

/// `volumes` of a data server's pod: what the sidecar sees, and of the identities those of data servers.
pub(super) fn of_server_pod(render: &Render<'_>) -> Vec<Value> {
    let part = render.pods().div_ceil(IDENTITIES_PER_SECRET);
    let identities = identities_secret(&render.job.name, part);
    let is_its_own = |volume: &Value| volume["name"] != IDENTITY && volume["name"] != SHM;
    let of_user = &render.job.pod.volumes;
    let seen = seen_by_servers(render);
    let is_hidden = |volume: &Value| {
        of_user.iter().any(|spec| volume["name"] == *spec.name)
            && !seen.iter().any(|spec| volume["name"] == *spec.name)
    };
    let mut all: Vec<Value> =
        volumes(render).into_iter().filter(|volume| is_its_own(volume) && !is_hidden(volume)).collect();
    let source = json!({ "secretName": identities, "defaultMode": SECRET_MODE });
    all.push(json!({ "name": IDENTITY, "secret": source }));
    all
}

fn data_secret<'a>(render: &Render<'a>) -> Option<&'a str> {
    render.job.data.as_ref()?.secret.as_deref()
}

/// One of the user's. That it has exactly one source was checked with the job.
fn volume(spec: &VolumeSpec) -> Value {
    let VolumeSpec { name, mount_path: _, read_only, claim, host_path, config_map, secret, image, nfs } =
        spec;
    let mut volume = json!({ "name": name });
    if let Some(claim) = claim {
        volume["persistentVolumeClaim"] = json!({ "claimName": claim });
        if *read_only {
            volume["persistentVolumeClaim"]["readOnly"] = true.into();
        }
    } else if let Some(path) = host_path {
        volume["hostPath"] = json!({ "path": path });
    } else if let Some(config_map) = config_map {
        volume["configMap"] = json!({ "name": config_map });
    } else if let Some(secret) = secret {
        volume["secret"] = json!({ "secretName": secret, "defaultMode": SECRET_MODE });
    } else if let Some(image) = image {
        volume["image"] = json!({ "reference": image });
    } else if let Some(nfs) = nfs {
        volume["nfs"] = json!({ "server": nfs.server, "path": nfs.path });
        if *read_only {
            volume["nfs"]["readOnly"] = true.into();
        }
    }
    volume
}

/// What the ranks' container sees.
pub(super) fn of_ranks(render: &Render<'_>) -> Vec<Value> {
    let mut mounts = vec![
        json!({ "name": SHARED, "mountPath": SHARED_FOLDER }),
        json!({ "name": SHM, "mountPath": "/dev/shm" }),
    ];
    mounts.extend(render.job.pod.volumes.iter().map(|volume| mount(volume, volume.read_only)));
    mounts
}

/// What the sidecar sees: the data, to read it, with the store's credentials, but no other secret of the user's; and of the
/// identities the one of its own
/// worker, because each file is mounted by itself.
pub(super) fn of_sidecar(render: &Render<'_>) -> Vec<Value> {
    let shared = render.job.pod.volumes.iter().filter(|volume| volume.secret.is_none());
    of_number(render, "$(SLIPWAY_WORKER)", shared)
}

/// What a data server sees: the same, less what is the ranks' alone.
pub(super) fn of_server(render: &Render<'_>) -> Vec<Value> {
    of_number(render, "$(SLIPWAY_SERVER)", seen_by_servers(render).into_iter())
}

fn of_number<'a>(
    render: &Render<'_>,
    number: &str,
    shared: impl Iterator<Item = &'a VolumeSpec>,
) -> Vec<Value> {
    let identity = |file: &str, key: &str, value: &str| json!({ "name": IDENTITY, "mountPath": format!("{IDENTITY_FOLDER}/{file}"), key: value, "readOnly": true });
    let mut mounts = vec![
        json!({ "name": SHARED, "mountPath": SHARED_FOLDER }),
        json!({ "name": CONFIG, "mountPath": CONFIG_FOLDER, "readOnly": true }),
        identity("ca", "subPath", "ca"),
        identity("worker", "subPathExpr", number),
    ];
    if data_secret(render).is_some() {
        mounts.push(json!({ "name": DATA, "mountPath": DATA_SECRET_FOLDER, "readOnly": true }));
    }
    if tier(render).is_some() {
        mounts.push(json!({ "name": TIER, "mountPath": TIER_FOLDER }));
    }
    mounts.extend(shared.map(|volume| mount(volume, true)));
    mounts
}

fn mount(volume: &VolumeSpec, read_only: bool) -> Value {
    let mut mount = json!({ "name": volume.name, "mountPath": volume.mount_path });
    if read_only {
        mount["readOnly"] = true.into();
    }
    mount
}
