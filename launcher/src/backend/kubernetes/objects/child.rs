//! The object that makes a job's pods: a JobSet, or an indexed Job with a headless Service (pure).

use serde_json::{Value, json};

use super::{ChildKind, Render, RenderError, pod_template};
use crate::backend::kubernetes::names;

/// The replicated job of a JobSet.
const REPLICATED_JOB: &str = "workers";
/// Failed pods that the child's controller replaces: all of them, since it is ours that counts restarts.
pub(super) const BACKOFF_LIMIT: i32 = i32::MAX;
/// Kueue admits what carries the name of a queue.
const LABEL_QUEUE: &str = "kueue.x-k8s.io/queue-name";
/// Its WorkloadPriorityClass.
const LABEL_PRIORITY: &str = "kueue.x-k8s.io/priority-class";

/// The child. It is created and never patched: a queue owns fields of it.
///
/// # Errors
/// When devices are asked for and nobody said by which name.
pub fn child(render: &Render<'_>) -> Result<Value, RenderError> {
    let job = render.job;
    let mut metadata = render.metadata(&names::child(&job.name));
    if let Some(queue) = &job.queue {
        metadata["labels"][LABEL_QUEUE] = json!(queue.name);
        if let Some(priority) = &queue.priority {
            metadata["labels"][LABEL_PRIORITY] = json!(priority);
        }
    }
    // What a queue admits is born suspended, so that no pod is made before it was admitted.
    let suspend = job.suspend || job.queue.is_some();
    let spec = job_spec(render)?;
    let spec = match render.child {
        ChildKind::Job => {
            let mut spec = spec;
            spec["suspend"] = suspend.into();
            spec
        }
        ChildKind::JobSet => json!({
            "suspend": suspend,
            "network": { "enableDNSHostnames": true, "publishNotReadyAddresses": true },
            // Restarts are ours: a job that failed here has nothing left to replace.
            "failurePolicy": { "maxRestarts": 0 },
            "replicatedJobs": [{
                "name": REPLICATED_JOB,
                "replicas": 1,
                "template": { "metadata": { "labels": render.labels() }, "spec": spec },
            }],
        }),
    };
    Ok(json!({
        "apiVersion": render.child.api_version(),
        "kind": render.child.kind(),
        "metadata": metadata,
        "spec": spec,
    }))
}

fn job_spec(render: &Render<'_>) -> Result<Value, RenderError> {
    Ok(json!({
        "completionMode": "Indexed",
        "completions": render.pods(),
        "parallelism": render.pods(),
        "backoffLimit": BACKOFF_LIMIT,
        // The Job controller waits 10 s before it replaces a failed pod, and twice as long with every further failure:
        // counted over all pods, seven that die with one host would mean ten minutes. By index each has its own count.
        "backoffLimitPerIndex": BACKOFF_LIMIT,
        // A replacement beside a pod that still ends would want the same devices.
        "podReplacementPolicy": "Failed",
        "template": pod_template(render)?,
    }))
}

/// The headless Service that gives a Job's pods names; none beside a JobSet, which makes its own. Nothing of ours
/// resolves these names: addresses are handed out by the rendezvous.
#[must_use]
pub fn headless_service(render: &Render<'_>) -> Option<Value> {
    (render.child == ChildKind::Job).then(|| {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": render.metadata(&names::child(&render.job.name)),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": true,
                "selector": render.selector(),
            },
        })
    })
}
