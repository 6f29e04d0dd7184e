//! `spec.pod`: what only a cluster needs to know of a job: its image, and what surrounds it (pure).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::job::units::{DurationText, Quantity};

/// The pods of the workers; on one machine nothing of it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodSpec {
    /// The image that the ranks run in. It needs the program and what that needs; nothing of Slipway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// When the image is fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,
    /// Secrets of the namespace with which images are fetched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<String>,
    /// The folder inside the containers that stands for the job file's folder: relative paths of the job begin there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub folder: Option<String>,
    /// Where checkpoints go: a folder in one of the volumes. Without it they are lost with their pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub checkpoints: Option<String>,
    /// What is mounted into the ranks' container and into the sidecar, at the same place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub volumes: Vec<VolumeSpec>,
    /// The service account of the job's pods, data servers' included; its token is not mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account: Option<String>,
    /// The user that all containers run as, 65532 by default. 0 (root) needs a namespace that allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_user: Option<u32>,
    /// Only nodes with these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods bear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<TolerationSpec>,
    /// The scheduler's priority class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class: Option<String>,
    /// Annotations of the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The names under which the cluster offers GPUs and NICs; default: found on the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<DevicesSpec>,
    /// The sidecar's own share, beside what the ranks ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<SidecarSpec>,
    /// How long an ended job is kept: `24h`. Default: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<DurationText>,
    /// What happens to a worker whose node does not answer.
    #[serde(default)]
    pub node_lost: NodeLost,
}

/// When an image is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// `replace`: its pod is deleted by force once its sidecar must have stopped the ranks by itself, and another host
/// takes its place. `wait`: until the node is back or an administrator decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum NodeLost {
    #[default]
    Replace,
    Wait,
}

/// A volume: exactly one of `claim`, `hostPath`, `configMap`, `secret`, `image` and `nfs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeSpec {
    /// A DNS label.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Where it is mounted; absolute.
    #[schemars(length(min = 1, max = 4096))]
    pub mount_path: String,
    /// Nobody may write to it.
    #[serde(default)]
    pub read_only: bool,
    /// A persistent volume claim of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub claim: Option<String>,
    /// A folder of the node; the namespace must allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub host_path: Option<String>,
    /// A config map of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub config_map: Option<String>,
    /// A secret of the namespace; only the ranks' container sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret: Option<String>,
    /// An image whose files are mounted (Kubernetes 1.33 or newer).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// A folder of a file server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nfs: Option<NfsSpec>,
}

/// A folder of a file server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NfsSpec {
    /// Its name or address.
    #[schemars(length(min = 1, max = 253))]
    pub server: String,
    /// The folder.
    #[schemars(length(min = 1, max = 4096))]
    pub path: String,
}

/// A taint that the pods bear, as in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TolerationSpec {
    /// The taint's key; without it every key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Whether the value must be equal.
    #[serde(default)]
    pub operator: TolerationOperator,
    /// The taint's value, for `Equal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The taint's effect; without it every effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

/// How a toleration looks at a taint's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum TolerationOperator {
    #[default]
    Equal,
    Exists,
}

/// What a taint does to pods that do not bear it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum TaintEffect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

/// The names under which a cluster offers devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DevicesSpec {
    /// How devices are asked for.
    #[serde(default)]
    pub by: DevicesBy,
    /// The resource of a GPU (`nvidia.com/gpu`), or with `dra` the device class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub gpu: Option<String>,
    /// The resource of a NIC (`openshift.io/rdma_a`), or with `dra` the device class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub nic: Option<String>,
    /// The model of the GPUs, as the cluster names it; `*` stands for anything (`NVIDIA-H100*`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub gpu_model: Option<String>,
    /// Multus networks of the NICs, `NAMESPACE/NAME` or `NAME`; they are used in turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub networks: Vec<String>,
}

/// How devices are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "doc comments would split the enum in the schema")]
pub enum DevicesBy {
    #[default]
    Auto,
    Plugin,
    Dra,
}

/// The sidecar's own share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SidecarSpec {
    /// Whole CPUs; default 1 where the ranks have whole CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub cpus: Option<u32>,
    /// Memory: what is cached, and the rings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// NICs of the sidecar's own, on the ranks' NUMA node: device plugins never share one between containers.
    #[serde(default)]
    #[schemars(range(min = 0, max = 64))]
    pub nics: u32,
}
