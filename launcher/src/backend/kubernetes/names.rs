//! Names that outlive a process: the API group, labels, annotations, gates, and what each object of a job is called
//! (pure). Whoever renders, watches or cleans up takes them from here.

use serde_json::{Value, json};

/// The API group.
pub const GROUP: &str = "slipway.dev";
/// The version of our kind.
pub const VERSION: &str = "v1alpha1";
/// Our kind.
pub const KIND: &str = "TrainingJob";
/// Its plural in paths.
pub const PLURAL: &str = "trainingjobs";
/// Who owns the fields that we apply.
pub const FIELD_MANAGER: &str = "slipway";

/// Label of everything that belongs to a job: the `TrainingJob`'s name. Watches select by it.
pub const LABEL_JOB: &str = "slipway.dev/job";
/// Label of everything that belongs to a job: the `TrainingJob`'s uid.
pub const LABEL_UID: &str = "slipway.dev/job-uid";
/// Label that the Job controller puts on the pods of an indexed job: the worker's number.
pub const LABEL_INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Label of what is not a worker with ranks or a spare: its role.
pub const LABEL_ROLE: &str = "slipway.dev/role";
/// The role of a data server.
pub const ROLE_SERVER: &str = "server";
/// Annotation of a data server's pod: the worker's number that index 0 has.
pub const ANNOTATION_FIRST_WORKER: &str = "slipway.dev/first-worker";
/// The gate that our pods are born with: lifted when the whole gang has its places.
pub const GATE: &str = "slipway.dev/placement";
/// Annotation of a placed pod: where and why, as JSON.
pub const ANNOTATION_PLACED: &str = "slipway.dev/placed";
/// Annotation of a child: what its pods' GPUs and NICs are asked for by, as JSON.
pub const ANNOTATION_DEVICES: &str = "slipway.dev/devices";
/// Annotation of a `TrainingJob` that is to be cancelled: `grace` or `now`.
pub const ANNOTATION_CANCEL: &str = "slipway.dev/cancel";
/// Annotation of a `TrainingJob` that ended and is to go on at its last commit: any text that it did not have before.
pub const ANNOTATION_RESUME: &str = "slipway.dev/resume";
/// Annotation of a node that no new gang is placed on: the reason, for people.
pub const ANNOTATION_QUARANTINE: &str = "slipway.dev/quarantine";
/// A pod is bound to its node by this label of the node.
pub const LABEL_HOSTNAME: &str = "kubernetes.io/hostname";

/// The sidecar's container.
pub const SIDECAR: &str = "sidecar";
/// The ranks' container.
pub const RANKS: &str = "ranks";
/// Where the sidecar answers probes and serves metrics, in its pod.
pub const SIDECAR_PORT: u16 = 7070;
/// The folder that the containers of a pod share: `bin/`, `logs/`, `python/`, `checkpoints/`.
pub const SHARED_FOLDER: &str = "/slipway";
/// Where a pod finds the job's configuration (`job.json`).
pub const CONFIG_FOLDER: &str = "/slipway-config";
/// Where the sidecar, and only it, finds its identity (`ca`, `worker`).
pub const IDENTITY_FOLDER: &str = "/slipway-identity";
/// Where the sidecar, and only it, finds the credentials of the data's store.
pub const DATA_SECRET_FOLDER: &str = "/slipway-data";
/// What a sidecar keeps of the data on its node.
pub const TIER_FOLDER: &str = "/slipway-tier";
/// The user that containers run as where the job does not say: `nobody` of the images without a distribution.
pub const USER_DEFAULT: u32 = 65_532;
/// Workers whose identities fit one Secret of 1 MiB, at less than 500 bytes each.
pub const IDENTITIES_PER_SECRET: u32 = 2048;

/// The `apiVersion` of our kind.
#[must_use]
pub fn api_version() -> String {
    format!("{GROUP}/{VERSION}")
}

/// The reference to a `TrainingJob` as the one controller of an object, which goes when that goes.
#[must_use]
pub fn owner(job: &str, uid: &str) -> Value {
    json!({
        "apiVersion": api_version(),
        "kind": KIND,
        "name": job,
        "uid": uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// The Secret with the seed of a job's certificates; only the controller reads it.
#[must_use]
pub fn authority_secret(job: &str) -> String {
    format!("{job}-authority")
}

/// The Secret with the identities of the workers from `part` × [`IDENTITIES_PER_SECRET`] on.
#[must_use]
pub fn identities_secret(job: &str, part: u32) -> String {
    format!("{job}-identities-{part}")
}

/// The ConfigMap that every pod of a job reads.
#[must_use]
pub fn config_map(job: &str) -> String {
    format!("{job}-config")
}

/// The ConfigMap in which the membership remembers.
#[must_use]
pub fn memory_map(job: &str) -> String {
    format!("{job}-memory")
}

/// The child (Job or JobSet) and the headless Service.
#[must_use]
pub fn child(job: &str) -> String {
    job.to_owned()
}

/// The Job of the data servers. A job of that name has a child of that name, so one of the two waits for the other to go.
#[must_use]
pub fn servers(job: &str) -> String {
    format!("{job}-servers")
}

/// The ResourceClaimTemplate of a worker's devices.
#[must_use]
pub fn claim_template(job: &str) -> String {
    format!("{job}-devices")
}
