//! Hosts that only the API server knows, their kubelets played by kwok; and kinds of objects that others' software would
//! install.

use std::ffi::OsStr;

use serde_json::{Value, json};

use super::Rig;

/// How long kwok's nodes are taken to be there without a word of it, in seconds: what kubelets say of themselves.
const LEASE_SECONDS: u32 = 40;

impl Rig {
    /// kwok, which plays the nodes of [`node`].
    pub fn with_kwok(&self) -> &Self {
        self.kwok.get_or_init(|| drop(self.script(["kwok", &LEASE_SECONDS.to_string()])));
        self
    }

    /// Creates objects as they are, their status too, which applying would leave out.
    pub fn create(&self, objects: &[Value]) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), list(objects)).unwrap();
        self.kubectl([OsStr::new("create"), OsStr::new("-f"), file.path().as_os_str()]).code(0);
    }

    /// Makes the API server serve somebody else's kinds, with any fields.
    pub fn define(&self, definitions: &[Value]) {
        self.apply(&list(definitions));
        let names = definitions.iter().map(|one| one["metadata"]["name"].as_str().unwrap());
        let names: Vec<&str> = names.collect();
        self.established(&names);
        // Discovery is a moment behind.
        let kinds = names.join(",");
        self.wait_for(&format!("{kinds} served"), || (self.kubectl(["get", &kinds]).code == 0).then_some(()));
    }
}

/// The objects as one document.
#[must_use]
pub fn list(objects: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

/// The definition of a kind `kind` in `api` (`GROUP/VERSION`); `scope` is `Cluster` or `Namespaced`.
#[must_use]
pub fn definition(api: &str, kind: &str, plural: &str, scope: &str) -> Value {
    let (group, version) = api.split_once('/').unwrap();
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    // The API server asks for a word about who approved a group of Kubernetes' own domain.
    let annotations = json!({"api-approved.kubernetes.io": "unapproved, a stand-in for tests"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}"), "annotations": annotations},
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{"name": version, "served": true, "storage": true, "schema": schema}],
        },
    })
}

/// A node that is ready from its birth and that kwok keeps so, with these amounts and labels.
#[must_use]
pub fn node(name: &str, amounts: &Value, labels: &Value) -> Value {
    let mut labels = labels.clone();
    labels["kubernetes.io/hostname"] = json!(name);
    let ready = json!({"type": "Ready", "status": "True", "reason": "Played", "message": ""});
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "status": {"capacity": amounts, "allocatable": amounts, "conditions": [ready]},
    })
}
