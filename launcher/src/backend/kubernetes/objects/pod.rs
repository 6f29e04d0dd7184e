//! The template of a worker's pod: a native sidecar, and the ranks in the user's own image (pure).
//!
//! The sidecar is an init container that goes on running; the kubelet starts the ranks' container when the sidecar's
//! start-up probe succeeds, which it does when the whole gang is to start: that is the barrier.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::devices::{self, Asked};
use super::resources::shares;
use super::{ChildKind, Render, RenderError, volumes};
use crate::backend::kubernetes::names::{
    self, GATE, LABEL_INDEX, RANKS, SHARED_FOLDER, SIDECAR, SIDECAR_PORT, USER_DEFAULT,
};
use crate::job::spec::pod::{PodSpec, PullPolicy, TaintEffect, TolerationOperator, TolerationSpec};
use crate::job::units::DURATION_MAX;

/// Seconds between two looks at whether the ranks are to start: what the slowest of a gang may lose.
const STARTUP_PERIOD_SECONDS: u32 = 1;
/// Seconds that a pod has between the order to stop and the kill: the agent gives its ranks 5, and tells about it.
const TERMINATION_SECONDS: u32 = 20;
/// A sidecar that does not answer for this many looks, 10 s apart, is started again: far beyond any pause of a loaded
/// machine, and long after its lease has ended.
const LIVENESS_FAILURES: u32 = 12;
/// Seconds between two of them.
const LIVENESS_PERIOD_SECONDS: u32 = 10;
/// Seconds that the sidecar may take for an answer.
const PROBE_TIMEOUT_SECONDS: u32 = 5;
/// Keeps service meshes out: their proxies would carry data between ranks, and never end.
const NO_MESH: (&str, &str) = ("sidecar.istio.io/inject", "false");

/// `template` of the Job: metadata and specification of each pod.
///
/// # Errors
/// When devices are asked for and nobody said by which name.
pub fn pod_template(render: &Render<'_>) -> Result<Value, RenderError> {
    let asked = devices::asked(render)?;
    let pod = &render.job.pod;
    let mut annotations = annotations(render);
    annotations.extend(devices::networks(render, &asked));
    let mut spec = json!({
        "restartPolicy": "Never",
        "schedulingGates": [{ "name": GATE }],
        "terminationGracePeriodSeconds": TERMINATION_SECONDS,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": pod_security(render),
        "initContainers": [sidecar(render, &asked)],
        "containers": [ranks(render, &asked)],
        "volumes": volumes::volumes(render),
    });
    if render.child == ChildKind::Job {
        // A JobSet sets it itself.
        spec["subdomain"] = json!(names::child(&render.job.name));
    }
    if asked.claim {
        let template = names::claim_template(&render.job.name);
        spec["resourceClaims"] = json!([{ "name": devices::CLAIM, "resourceClaimTemplateName": template }]);
    }
    admit(&mut spec, pod, &pod.node_selector);
    Ok(json!({
        "metadata": { "labels": render.labels(), "annotations": annotations },
        "spec": spec,
    }))
}

/// What the user says of who may run a pod, and where.
pub(super) fn admit(spec: &mut Value, pod: &PodSpec, node_selector: &BTreeMap<String, String>) {
    if let Some(account) = &pod.service_account {
        spec["serviceAccountName"] = json!(account);
    }
    if let Some(class) = &pod.priority_class {
        spec["priorityClassName"] = json!(class);
    }
    if !pod.image_pull_secrets.is_empty() {
        let secrets = pod.image_pull_secrets.iter().map(|name| json!({ "name": name }));
        spec["imagePullSecrets"] = secrets.collect();
    }
    if !node_selector.is_empty() {
        spec["nodeSelector"] = json!(node_selector);
    }
    if !pod.tolerations.is_empty() {
        spec["tolerations"] = pod.tolerations.iter().map(toleration).collect();
    }
}

/// The user's annotations, and what keeps service meshes out.
pub(super) fn annotations(render: &Render<'_>) -> BTreeMap<String, String> {
    let mut annotations = render.job.pod.annotations.clone();
    annotations.insert(NO_MESH.0.to_owned(), NO_MESH.1.to_owned());
    annotations
}

fn user(render: &Render<'_>) -> u32 {
    render.job.pod.run_as_user.unwrap_or(USER_DEFAULT)
}

pub(super) fn pod_security(render: &Render<'_>) -> Value {
    let user = user(render);
    json!({
        "runAsNonRoot": user != 0,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        // A claim with millions of files is not gone through at each start.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// The agent. Registering memory with a NIC takes locked memory beyond a runtime's usual 8 MiB: the image's program has the
/// file capability for that, which counts only where the container may have the capability, and where executing may
/// gain it (`no_new_privs` is what `allowPrivilegeEscalation: false` sets).
fn sidecar(render: &Render<'_>, asked: &Asked<'_>) -> Value {
    let mut security = restricted();
    if asked.sidecar_rdma {
        security["allowPrivilegeEscalation"] = true.into();
        security["capabilities"]["add"] = json!(["IPC_LOCK"]);
    }
    let mut resources = shares(render.job).sidecar.render(&asked.of_sidecar);
    add_claim(&mut resources, asked);
    json!({
        "name": SIDECAR,
        "image": render.sidecar_image,
        "restartPolicy": "Always",
        // A file with a capability is not executed where the capability is out of bounds, so there are two of them.
        "command": [if asked.sidecar_rdma { "/usr/bin/worker-memlock" } else { "/usr/bin/worker" }, "pod"],
        "env": [
            from_field("SLIPWAY_WORKER", &format!("metadata.labels['{LABEL_INDEX}']")),
            from_field("SLIPWAY_POD_IP", "status.podIP"),
            from_field("SLIPWAY_POD_UID", "metadata.uid"),
            from_field("SLIPWAY_NODE", "spec.nodeName"),
        ],
        "ports": [{ "name": "slipway", "containerPort": SIDECAR_PORT, "protocol": "TCP" }],
        "startupProbe": {
            "httpGet": { "path": "/ready", "port": SIDECAR_PORT },
            "periodSeconds": STARTUP_PERIOD_SECONDS,
            "timeoutSeconds": PROBE_TIMEOUT_SECONDS,
            // A spare waits as long as its job runs, and no job runs longer than the longest duration.
            "failureThreshold": DURATION_MAX.as_secs() / u64::from(STARTUP_PERIOD_SECONDS),
        },
        "livenessProbe": liveness(),
        "resources": resources,
        "securityContext": security,
        "volumeMounts": volumes::of_sidecar(render),
    })
}

/// What a container of ours may do: next to nothing.
pub(super) fn restricted() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
    })
}

pub(super) fn liveness() -> Value {
    json!({
        "httpGet": { "path": "/healthz", "port": SIDECAR_PORT },
        "periodSeconds": LIVENESS_PERIOD_SECONDS,
        "timeoutSeconds": PROBE_TIMEOUT_SECONDS,
        "failureThreshold": LIVENESS_FAILURES,
    })
}

/// The user's image. Its entry point is not used: the agent's executor is process 1, and starts the ranks when told.
fn ranks(render: &Render<'_>, asked: &Asked<'_>) -> Value {
    let pod = &render.job.pod;
    let mut capabilities = json!({ "drop": ["ALL"] });
    if render.job.resources.nics > 0 && user(render) == 0 {
        // Only root has a capability without a file that grants it; others need the node's own limit to be high.
        capabilities["add"] = json!(["IPC_LOCK"]);
    }
    let mut resources = shares(render.job).ranks.render(&asked.of_ranks);
    add_claim(&mut resources, asked);
    let mut container = json!({
        "name": RANKS,
        "image": pod.image.as_deref().unwrap_or_default(),
        "command": [format!("{SHARED_FOLDER}/bin/worker"), "exec"],
        "env": [from_field("SLIPWAY_POD_UID", "metadata.uid")],
        "resources": resources,
        "securityContext": { "allowPrivilegeEscalation": false, "capabilities": capabilities },
        "volumeMounts": volumes::of_ranks(render),
    });
    if let Some(policy) = pod.image_pull_policy {
        container["imagePullPolicy"] = json!(match policy {
            PullPolicy::Always => "Always",
            PullPolicy::IfNotPresent => "IfNotPresent",
            PullPolicy::Never => "Never",
        });
    }
    container
}

/// Both containers see every device of the claim: that is how they share a GPU and its NIC. The claim is named as a whole,
/// since a container may name each claim only once.
fn add_claim(resources: &mut Value, asked: &Asked<'_>) {
    if asked.claim {
        resources["claims"] = json!([{ "name": devices::CLAIM }]);
    }
}

pub(super) fn from_field(name: &str, path: &str) -> Value {
    json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } })
}

fn toleration(spec: &TolerationSpec) -> Value {
    let mut fields: BTreeMap<&str, &str> = BTreeMap::new();
    fields.extend(spec.key.as_deref().map(|key| ("key", key)));
    let operator = match spec.operator {
        TolerationOperator::Equal => "Equal",
        TolerationOperator::Exists => "Exists",
    };
    fields.insert("operator", operator);
    fields.extend(spec.value.as_deref().map(|value| ("value", value)));
    fields.extend(spec.effect.map(|effect| {
        let effect = match effect {
            TaintEffect::NoSchedule => "NoSchedule",
            TaintEffect::PreferNoSchedule => "PreferNoSchedule",
            TaintEffect::NoExecute => "NoExecute",
        };
        ("effect", effect)
    }));
    json!(fields)
}
