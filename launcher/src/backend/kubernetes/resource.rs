//! The `TrainingJob` object as the Kubernetes API has it, and the job in it.
//!
//! The specification stays JSON: an object that is not sound must not keep the others of a list from being read, and
//! what is wrong with it is found where job files are checked, in the same words.

use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::crd::status::Status;
use super::names::{GROUP, KIND, PLURAL, VERSION, api_version};
use crate::job::faults::{Faults, Place};
use crate::job::source::Node;
use crate::job::{self, Job};

/// A `TrainingJob` of the Kubernetes API.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct TrainingJob {
    /// Name, namespace, uid and the like.
    pub metadata: ObjectMeta,
    /// What the user wrote, unchecked; see [`job()`].
    #[serde(default)]
    pub spec: Value,
    /// What the controller wrote; none where it wrote nothing yet, or something of another version.
    #[serde(default, deserialize_with = "readable")]
    pub status: Option<Status>,
}

/// A status that cannot be read is one that the controller writes anew; its memory is elsewhere.
fn readable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Status>, D::Error> {
    let value = Option::<Value>::deserialize(deserializer)?;
    Ok(value.and_then(|value| serde_json::from_value(value).ok()))
}

impl Serialize for TrainingJob {
    /// With `apiVersion` and `kind`, which applying needs; without a status that is none.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = 4 + usize::from(self.status.is_some());
        let mut object = serializer.serialize_struct(KIND, fields)?;
        object.serialize_field("apiVersion", &api_version())?;
        object.serialize_field("kind", KIND)?;
        object.serialize_field("metadata", &self.metadata)?;
        object.serialize_field("spec", &self.spec)?;
        if let Some(status) = &self.status {
            object.serialize_field("status", status)?;
        }
        object.end()
    }
}

impl kube::Resource for TrainingJob {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Domains whose labels others put on objects; a label under one of them is no label of the job.
const FOREIGN_DOMAINS: [&str; 4] = ["kubernetes.io", "k8s.io", "x-k8s.io", GROUP];

/// The job in an object, with what only a cluster asks of it.
///
/// # Errors
/// Everything that is wrong with it.
pub fn job(object: &TrainingJob) -> Result<Job, Faults> {
    let metadata = &object.metadata;
    let name = metadata.name.as_deref().unwrap_or_default();
    let labels: serde_json::Map<String, Value> = metadata
        .labels
        .iter()
        .flatten()
        .filter(|(key, _)| !is_foreign(key))
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect();
    let document = json!({
        "apiVersion": api_version(),
        "kind": KIND,
        "metadata": { "name": name, "labels": labels },
        "spec": object.spec,
    });
    let origin = format!("{}/{name}", metadata.namespace.as_deref().unwrap_or("default"));
    job::check_for_cluster(&Node::from_json(&document, &Place::Document), Vec::new(), &origin)
}

fn is_foreign(key: &str) -> bool {
    // What the Job controller wrote on its pods before labels had domains, and still does.
    let Some((domain, _)) = key.split_once('/') else { return ["job-name", "controller-uid"].contains(&key) };
    FOREIGN_DOMAINS.iter().any(|foreign| {
        domain.strip_suffix(foreign).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}
