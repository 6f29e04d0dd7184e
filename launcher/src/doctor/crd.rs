//! Whether the custom resource that a cluster has is the one that this launcher speaks (pure).

use std::collections::BTreeSet;

use serde_json::Value;

use crate::backend::kubernetes::names::VERSION;
use crate::job::schema::SCHEMA;

/// Fields of a job that the cluster would drop, and fields that it knows and we do not, as paths below `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Differences {
    pub(super) missing: BTreeSet<String>,
    pub(super) unknown: BTreeSet<String>,
}

/// Compares the fields of `spec`; none where the definition does not serve our version with a schema.
pub(super) fn compare(crd: &Value) -> Option<Differences> {
    let versions = crd.pointer("/spec/versions")?.as_array()?;
    let ours = versions.iter().find(|version| version["name"] == VERSION && version["served"] == true)?;
    let theirs = fields(ours.pointer("/schema/openAPIV3Schema/properties/spec")?);
    let own = fields(SCHEMA.pointer("/properties/spec")?);
    Some(Differences {
        missing: own.difference(&theirs).cloned().collect(),
        unknown: theirs.difference(&own).cloned().collect(),
    })
}

/// Paths of all properties.
fn fields(schema: &Value) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let mut waiting = vec![(String::new(), schema)];
    while let Some((path, schema)) = waiting.pop() {
        for (name, child) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            paths.insert(path.clone());
            waiting.push((path, child));
        }
        waiting.extend(
            ["items", "additionalProperties"].iter().filter_map(|key| Some((path.clone(), schema.get(key)?))),
        );
    }
    paths
}
