//! The Job of a job's data servers, beside the child whichever kind that is (pure).
//!
//! Its pods hold no device and wait for nobody, so the scheduler places them and no gate holds them back; and they are no part
//! of the child, so that whatever becomes of them is nothing that a JobSet or a queue would end the gang for. The membership
//! counts their failures, the Job replaces them.

use serde_json::{Value, json};

use super::child::BACKOFF_LIMIT;
use super::pod::{admit, from_field, liveness, pod_security, restricted};
use super::resources::server_share;
use super::{Render, volumes};
use crate::backend::kubernetes::names::{
    self, ANNOTATION_FIRST_WORKER, LABEL_INDEX, LABEL_ROLE, LABEL_UID, ROLE_SERVER, SIDECAR, SIDECAR_PORT,
};

/// Seconds that a data server has between the order to stop and the kill: it has nothing to save.
const TERMINATION_SECONDS: u32 = 10;
/// How much a scheduler should want to keep data servers away from hosts of the job's workers, of 100.
const APART_WEIGHT: u32 = 100;

/// The Job; none where there are no data servers. It is created and never patched.
#[must_use]
pub fn servers(render: &Render<'_>) -> Option<Value> {
    let servers = render.job.data.as_ref()?.servers.as_ref()?;
    let mut metadata = render.metadata(&names::servers(&render.job.name));
    metadata["labels"][LABEL_ROLE] = json!(ROLE_SERVER);
    Some(json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": servers.count,
            "parallelism": servers.count,
            "backoffLimit": BACKOFF_LIMIT,
            "backoffLimitPerIndex": BACKOFF_LIMIT,
            // Two of one number would each think that they own its chunks.
            "podReplacementPolicy": "Failed",
            "template": template(render, &servers.node_selector),
        },
    }))
}

fn template(render: &Render<'_>, node_selector: &std::collections::BTreeMap<String, String>) -> Value {
    let pod = &render.job.pod;
    let first = render.pods();
    let mut labels = render.labels();
    labels.insert(LABEL_ROLE.to_owned(), ROLE_SERVER.to_owned());
    let mut annotations = super::pod::annotations(render);
    annotations.insert(ANNOTATION_FIRST_WORKER.to_owned(), first.to_string());
    let mut spec = json!({
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": TERMINATION_SECONDS,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": pod_security(render),
        // Where there is another host for them: on the workers' own they would take what they are to spare them.
        "affinity": { "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": APART_WEIGHT,
            "podAffinityTerm": {
                "topologyKey": names::LABEL_HOSTNAME,
                "labelSelector": {
                    "matchLabels": { LABEL_UID: render.uid },
                    "matchExpressions": [{ "key": LABEL_ROLE, "operator": "DoesNotExist" }],
                },
            },
        }] } },
        "containers": [container(render, first)],
        "volumes": volumes::of_server_pod(render),
    });
    admit(&mut spec, pod, node_selector);
    json!({ "metadata": { "labels": labels, "annotations": annotations }, "spec": spec })
}

fn container(render: &Render<'_>, first: u32) -> Value {
    json!({
        "name": SIDECAR,
        "image": render.sidecar_image,
        "command": ["/usr/bin/worker", "serve"],
        "env": [
            from_field("SLIPWAY_SERVER", &format!("metadata.labels['{LABEL_INDEX}']")),
            { "name": "SLIPWAY_FIRST_WORKER", "value": first.to_string() },
            from_field("SLIPWAY_POD_IP", "status.podIP"),
            from_field("SLIPWAY_POD_UID", "metadata.uid"),
            from_field("SLIPWAY_NODE", "spec.nodeName"),
        ],
        "ports": [{ "name": "slipway", "containerPort": SIDECAR_PORT, "protocol": "TCP" }],
        "livenessProbe": liveness(),
        "resources": server_share(render.job).render(&[]),
        "securityContext": restricted(),
        "volumeMounts": volumes::of_server(render),
    })
}
