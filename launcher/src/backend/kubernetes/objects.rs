//! The objects that a job is made of, as the Kubernetes API takes them (pure): a child that makes the pods, what the
//! pods read, and who may talk to them.
//!
//! ```text
//! TrainingJob ─owns─┬─ JobSet, or Job and headless Service ── pods (child, pod)
//!                   ├─ ConfigMap -config      what every pod is told (inputs)
//!                   ├─ Secret    -authority   the seed of all certificates, for the controller only
//!                   ├─ Secret    -identities-N  one key and certificate for each worker
//!                   ├─ Job       -servers     the data servers' pods (servers)
//!                   ├─ NetworkPolicy          who may talk to the pods (access)
//!                   └─ ResourceClaimTemplate  a worker's devices, with dynamic allocation (devices)
//! ```
//! Rendering decides nothing that placement has not decided, and is a function of its input alone: the same job gives
//! the same bytes, so applying it again changes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::names;
use crate::job::Job;
use crate::rendezvous::authority::AuthorityError;

mod access;
mod child;
mod devices;
mod inputs;
mod pod;
mod resources;
mod servers;
mod volumes;

pub use access::{SEED_KEY, authority_secret, identity_secrets, network_policy};
pub use child::{child, headless_service};
pub use devices::{DeviceSource, Devices, claim_template};
pub use inputs::{config_map, pod_job};
pub use pod::pod_template;
pub use resources::{Share, Shares, need, request, shares};
pub use servers::servers;

/// Which kind of object makes the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChildKind {
    /// A JobSet of one replicated job, where its controller is installed: queues and other tools know it.
    JobSet,
    /// An indexed Job, which every cluster has, with a headless Service.
    Job,
}

impl ChildKind {
    /// `JobSet` or `Job`.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::JobSet => "JobSet",
            Self::Job => "Job",
        }
    }

    /// The version of its API.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::JobSet => "jobset.x-k8s.io/v1alpha2",
            Self::Job => "batch/v1",
        }
    }
}

/// Everything that rendering looks at.
#[derive(Clone, Copy, Debug)]
pub struct Render<'a> {
    /// The job.
    pub job: &'a Job,
    /// The namespace of the `TrainingJob` and of everything rendered.
    pub namespace: &'a str,
    /// The uid of the `TrainingJob`, which owns everything rendered.
    pub uid: &'a str,
    /// What makes the pods.
    pub child: ChildKind,
    /// Slipway's worker image.
    pub sidecar_image: &'a str,
    /// Where pods reach the rendezvous.
    pub launcher: SocketAddr,
    /// How GPUs and NICs are asked for.
    pub devices: Devices<'a>,
}

/// Why a job cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The job asks for devices, and nobody said by which name.
    #[error(
        "ask for {what}: the cluster offers none under a name that is known; name it in spec.pod.devices"
    )]
    NoName {
        /// `GPUs` or `NICs`.
        what: &'static str,
    },
    /// More devices than one claim can ask for.
    #[error("ask for {devices} devices of a worker in one claim, which holds {limit}")]
    TooManyDevices {
        /// GPUs and NICs of one worker.
        devices: u32,
        /// The API's limit.
        limit: u64,
    },
    /// The job's command and environment do not fit a ConfigMap.
    #[error("keep the job's configuration in a ConfigMap: it has {bytes} bytes, and {limit} are the limit")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The API's limit.
        limit: usize,
    },
    /// The configuration is no JSON.
    #[error("write the job's configuration")]
    Encode(#[from] serde_json::Error),
    /// The identities cannot be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl Render<'_> {
    /// Workers with ranks and spares: one pod each.
    #[must_use]
    pub fn pods(&self) -> u32 {
        self.job.workers.total()
    }

    /// What says that an object belongs to this job and no other, also to none of the same name before it.
    #[must_use]
    pub fn selector(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (names::LABEL_JOB.to_owned(), self.job.name.clone()),
            (names::LABEL_UID.to_owned(), self.uid.to_owned()),
        ])
    }

    /// The labels of an object: the user's, who made it, and whose it is.
    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.job.labels.clone();
        labels.insert("app.kubernetes.io/managed-by".to_owned(), names::FIELD_MANAGER.to_owned());
        labels.extend(self.selector());
        labels
    }

    /// The metadata of an object that the `TrainingJob` owns: it goes when that goes.
    fn metadata(&self, name: &str) -> Value {
        json!({
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels(),
            "ownerReferences": [self.owner()],
        })
    }

    /// The reference to the `TrainingJob` as the one controller of an object.
    #[must_use]
    pub fn owner(&self) -> Value {
        names::owner(&self.job.name, self.uid)
    }
}

/// What the pods need before their child makes them, without what is secret.
///
/// # Errors
/// When one of them cannot be rendered.
pub fn needed(render: &Render<'_>) -> Result<Vec<Value>, RenderError> {
    let mut all = vec![config_map(render)?, network_policy(render)];
    all.extend(headless_service(render));
    all.extend(claim_template(render)?);
    Ok(all)
}

#[cfg(test)]
mod tests;
