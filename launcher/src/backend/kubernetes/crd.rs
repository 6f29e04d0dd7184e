//! The custom resource: its definition for the API server, out of the type that job files are checked against (pure).
//!
//! ```text
//! job::spec ─ schemars ─► job::schema ─ structural ─► spec ─┐
//!                                        rules (CEL) ───────┼─► CustomResourceDefinition
//!                                        observed ──► status┘
//! ```
//! What the API server can check it refuses at once (`kubectl apply` says so); the controller checks all of it again, in
//! the words of the command line, since the server's language cannot say everything.

use serde_json::{Value, json};

use super::names::{GROUP, KIND, PLURAL, VERSION};
use crate::job::schema::SCHEMA;

mod observed;
mod rules;
pub mod status;
mod structural;

/// The CustomResourceDefinition.
#[must_use]
pub fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{PLURAL}.{GROUP}") },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": format!("{KIND}List"),
                "plural": PLURAL,
                "singular": KIND.to_lowercase(),
                "shortNames": ["tj"],
                "categories": ["all", "slipway"],
            },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "schema": { "openAPIV3Schema": schema() },
                "subresources": { "status": {} },
                "additionalPrinterColumns": columns(),
            }],
        },
    })
}

/// The schema of the whole object.
fn schema() -> Value {
    let mut root = json!({
        "type": "object",
        "description": SCHEMA["description"],
        "required": ["spec"],
        "properties": {
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "type": "object" },
            "spec": structural::convert(&SCHEMA["properties"]["spec"], "spec"),
            "status": observed::schema(),
        },
    });
    root["x-kubernetes-validations"] = rules::at("").into();
    root
}

/// What `kubectl get trainingjobs` shows.
fn columns() -> Value {
    json!([
        { "name": "Phase", "type": "string", "jsonPath": ".status.phase" },
        { "name": "Ranks", "type": "integer", "jsonPath": ".status.ranks" },
        { "name": "Step", "type": "integer", "jsonPath": ".status.step" },
        { "name": "Restarts", "type": "integer", "jsonPath": ".status.restarts" },
        { "name": "Generation", "type": "integer", "jsonPath": ".status.generation" },
        { "name": "Cause", "type": "string", "jsonPath": ".status.cause.message", "priority": 1 },
        { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
    ])
}

#[cfg(test)]
mod tests;
