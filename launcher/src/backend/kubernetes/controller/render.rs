//! Makes a job's objects in the order in which each needs the one before, so that a controller that dies in between
//! leaves nothing that the next one could not go on from: the child, which makes the pods, comes last.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DynamicObject, GroupVersionKind};
use serde_json::Value;

use super::Context;
use super::api::{CallError, Key};
use super::devices::{Chosen, Names};
use crate::backend::kubernetes::names;
use crate::backend::kubernetes::objects::{self, Devices, Render, RenderError};
use crate::job::Job;
use crate::rendezvous::authority::{Authority, AuthorityError, Seed};

/// What is to be made.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) job: Job,
    pub(super) key: Key,
    pub(super) devices: Names,
    /// The seed of an earlier attempt; none: it is drawn.
    pub(super) seed: Option<Seed>,
}

/// Why objects could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CreateError {
    /// The job cannot be rendered for this cluster.
    #[error("failed to {0}")]
    Render(#[from] RenderError),
    /// Its certificates cannot be made.
    #[error("failed to {0}")]
    Authority(#[from] AuthorityError),
    /// The API server said no, or could not be asked.
    #[error("{what}: {source}")]
    Call { what: String, source: CallError },
    /// An object of an earlier job of that name is still there.
    #[error("{what} of an earlier job of that name is still being deleted")]
    Left { what: String },
}

/// Makes everything; the job's seed.
pub(super) async fn create(context: &Context, order: Order) -> Result<Seed, CreateError> {
    let Order { job, key, devices: chosen, seed } = order;
    let (slices, classes) = (context.caches.slices(), context.caches.device_classes());
    let (slices, classes) = (by_ref(&slices), by_ref(&classes));
    let locality = job.resources.locality;
    let devices = Chosen::of(chosen.gpu.as_deref(), chosen.nic.as_deref(), locality, &slices, &classes);
    let devices = devices.with_classes_of(job.pod.devices.as_ref(), &classes);
    let render = Render {
        job: &job,
        namespace: &key.namespace,
        uid: &key.uid,
        child: context.child_kind,
        sidecar_image: &context.options.sidecar_image,
        launcher: context.options.advertise,
        devices: devices.as_devices(),
    };
    // Whatever cannot be rendered is found before anything is made.
    let mut child = objects::child(&render)?;
    // Pods get their places one by one, and until the first has it only this tells what all of them ask for.
    child["metadata"]["annotations"][names::ANNOTATION_DEVICES] =
        serde_json::to_string(&chosen).unwrap_or_default().into();
    let mut first = objects::needed(&render)?;
    refuse_leftover(context, &key, &context.child, &names::child(&key.name)).await?;
    let seed = match seed {
        Some(seed) => seed,
        None => {
            let seed = Seed::draw()?;
            let secret = objects::authority_secret(&render, &seed);
            // Created, never replaced: certificates of another seed may be out already.
            apply(context, &key, &secret, true).await?;
            seed
        }
    };
    let mut authority = Authority::new(&key.uid, seed)?;
    first.extend(objects::identity_secrets(&render, &mut authority, render.pods())?);
    for object in &first {
        apply(context, &key, object, false).await?;
    }
    apply(context, &key, &child, false).await?;
    Ok(seed)
}

/// Makes the data servers' Job, if it is not there. One that makes no more of the pods that are wanted goes first, and is made
/// anew when it is looked for again.
pub(super) async fn serve(context: &Context, order: Order) -> Result<(), CreateError> {
    let Order { job, key, .. } = order;
    let kind = servers_kind();
    let name = names::servers(&key.name);
    let found = context.calls.find(&kind, &key.namespace, &name).await;
    let found = found.map_err(|source| CreateError::Call { what: format!("Job {name}"), source })?;
    let found = match found {
        Some(found) if !key.has(&found.metadata) => {
            return Err(CreateError::Left { what: format!("Job {name}") });
        }
        found => found,
    };
    let render = Render {
        job: &job,
        namespace: &key.namespace,
        uid: &key.uid,
        child: context.child_kind,
        sidecar_image: &context.options.sidecar_image,
        launcher: context.options.advertise,
        // They have none.
        devices: Devices::Plugin { gpu: None, nic: None },
    };
    let Some(servers) = objects::servers(&render) else { return Ok(()) };
    match found {
        Some(found) if is_spent(&found, &servers) => {
            tracing::warn!(job = %key, "what makes the data servers has ended, or makes others, and is deleted");
            let deleted = context.calls.delete(&kind, &key.namespace, &name).await;
            deleted.map_err(|source| CreateError::Call { what: format!("Job {name}"), source })
        }
        Some(_) => Ok(()),
        None => apply(context, &key, &servers, false).await,
    }
}

/// Whether the Job that is there will not make the pods of the one that is wanted: it is over, or an earlier attempt's of
/// another size.
fn is_spent(found: &DynamicObject, wanted: &Value) -> bool {
    if found.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let conditions = found.data["status"]["conditions"].as_array();
    let is_over = conditions.into_iter().flatten().any(|condition| {
        matches!(condition["type"].as_str(), Some("Complete" | "Failed")) && condition["status"] == "True"
    });
    let first = |job: &Value| {
        job["spec"]["template"]["metadata"]["annotations"][names::ANNOTATION_FIRST_WORKER].clone()
    };
    is_over
        || first(&found.data) != first(wanted)
        || found.data["spec"]["completions"] != wanted["spec"]["completions"]
}

/// What the data servers' object is.
pub(super) fn servers_kind() -> GroupVersionKind {
    GroupVersionKind::gvk("batch", "v1", "Job")
}

/// Makes everything anew if the child is gone; whether it was.
pub(super) async fn remake(context: &Context, order: Order) -> Result<bool, CreateError> {
    let name = names::child(&order.key.name);
    let found = context.calls.find(&context.child, &order.key.namespace, &name).await;
    let found = found
        .map_err(|source| CreateError::Call { what: format!("{} {name}", context.child.kind), source })?;
    if found.is_some() {
        return Ok(false);
    }
    create(context, order).await?;
    Ok(true)
}

/// What a child's pods ask for, as was written down when it was made.
pub(super) fn devices_of(child: &ObjectMeta) -> Names {
    let note = child.annotations.as_ref().and_then(|notes| notes.get(names::ANNOTATION_DEVICES));
    note.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

fn by_ref(values: &[std::sync::Arc<Value>]) -> Vec<&Value> {
    values.iter().map(AsRef::as_ref).collect()
}

async fn apply(context: &Context, key: &Key, object: &Value, is_new: bool) -> Result<(), CreateError> {
    let made = if is_new {
        context.calls.create(&key.namespace, object).await
    } else {
        context.calls.apply(&key.namespace, object).await
    };
    made.map_err(|source| {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let what = format!("{} {}", word(&object["kind"]), word(&object["metadata"]["name"]));
        if is_new && source.is_conflict() {
            CreateError::Left { what }
        } else {
            CreateError::Call { what, source }
        }
    })
}

async fn refuse_leftover(
    context: &Context,
    key: &Key,
    kind: &GroupVersionKind,
    name: &str,
) -> Result<(), CreateError> {
    let what = || format!("{} {name}", kind.kind);
    let found = context.calls.find(kind, &key.namespace, name).await;
    let found = found.map_err(|source| CreateError::Call { what: what(), source })?;
    let Some(found) = found else { return Ok(()) };
    if key.has(&found.metadata) { Ok(()) } else { Err(CreateError::Left { what: what() }) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_job_of_data_servers_that_is_over_or_anothers_is_spent() {
        let job = |first: &str, completions: u32, conditions: Value| {
            json!({
                "metadata": {"name": "a-servers"},
                "spec": {
                    "completions": completions,
                    "template": {"metadata": {"annotations": {names::ANNOTATION_FIRST_WORKER: first}}},
                },
                "status": {"conditions": conditions},
            })
        };
        let wanted = job("4", 2, Value::Null);
        let is_spent = |found: Value| is_spent(&serde_json::from_value(found).unwrap(), &wanted);
        assert!(!is_spent(job("4", 2, json!([{"type": "Suspended", "status": "False"}]))));
        assert!(is_spent(job("4", 2, json!([{"type": "Failed", "status": "True"}]))));
        assert!(is_spent(job("4", 2, json!([{"type": "Complete", "status": "True"}]))));
        assert!(is_spent(job("5", 2, json!([]))));
        assert!(is_spent(job("4", 3, json!([]))));
        let mut leaving = job("5", 2, json!([]));
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert!(!is_spent(leaving), "it goes already");
    }
}
