//! From JSON Schema to the structural schema that the API server wants (pure).
//!
//! A structural schema has one type at each place, no `additionalProperties` beside `properties` (unknown fields are
//! pruned, or refused with strict validation), and formats that the server knows (kubernetes.io, "Extend the Kubernetes
//! API with CustomResourceDefinitions", section "Specifying a structural schema"). Everything gets a bound, because the
//! cost of rules is estimated from the largest object that the schema allows.

use serde_json::{Map, Value, json};

use super::rules;
use crate::job::validate::cluster::{ARGUMENT_CHARS_MAX, VARIABLE_CHARS_MAX, VARIABLES_MAX};

/// Characters of a text that has no other bound: the longest path that Linux takes.
const TEXT_CHARS_MAX: u64 = 4096;
/// Entries of a map that has no other bound: labels, selectors and annotations have a dozen.
const MAP_ENTRIES_MAX: u64 = 256;
/// Items of a list that has no other bound.
const LIST_ITEMS_MAX: u64 = 4096;
/// Characters of a quantity, a duration or a mode.
const UNIT_CHARS_MAX: u64 = 64;

/// Bounds that a cluster needs and a job file does not have: (path, keyword, bound).
const BOUNDS: [(&str, &str, u64); 4] = [
    ("spec.run.command[]", "maxLength", ARGUMENT_CHARS_MAX as u64),
    ("spec.run.env", "maxProperties", VARIABLES_MAX as u64),
    ("spec.run.env{}", "maxLength", VARIABLE_CHARS_MAX as u64),
    ("spec.placement.exclude[]", "maxLength", 253),
];

/// Keywords that mean the same in both.
const KEPT: [&str; 11] = [
    "type",
    "description",
    "enum",
    "required",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "x-kubernetes-int-or-string",
];

/// The structural schema of the field at `path`, with the rules that hold there. Items of a list are at `path[]`, values
/// of a map at `path{}`.
pub(super) fn convert(schema: &Value, path: &str) -> Value {
    let mut converted = Map::new();
    for keyword in KEPT {
        if let Some(value) = schema.get(keyword) {
            converted.insert(keyword.to_owned(), value.clone());
        }
    }
    if let Some(text) = schema["description"].as_str() {
        // Where the source breaks its lines is no matter of the reader's.
        converted.insert("description".to_owned(), json!(text.replace('\n', " ")));
    }
    format(schema, &mut converted);
    if let Some(Value::Object(properties)) = schema.get("properties") {
        let properties =
            properties.iter().map(|(name, child)| (name.clone(), convert(child, &format!("{path}.{name}"))));
        converted.insert("properties".to_owned(), Value::Object(properties.collect()));
    }
    if let Some(items @ Value::Object(_)) = schema.get("items") {
        converted.insert("items".to_owned(), convert(items, &format!("{path}[]")));
    }
    if let Some(values @ Value::Object(_)) = schema.get("additionalProperties") {
        converted.insert("additionalProperties".to_owned(), convert(values, &format!("{path}{{}}")));
    }
    bound(path, &mut converted);
    if path == "spec.pod.volumes" {
        // So two volumes of one name are refused, and appliers can each own a volume.
        converted.insert("x-kubernetes-list-type".to_owned(), json!("map"));
        converted.insert("x-kubernetes-list-map-keys".to_owned(), json!(["name"]));
    }
    let rules = rules::at(path);
    if !rules.is_empty() {
        converted.insert("x-kubernetes-validations".to_owned(), rules.into());
    }
    converted.into()
}

/// Our formats in the server's words.
fn format(schema: &Value, converted: &mut Map<String, Value>) {
    let pattern = |pattern: &str, converted: &mut Map<String, Value>| {
        converted.insert("pattern".to_owned(), json!(pattern));
        converted.insert("maxLength".to_owned(), json!(UNIT_CHARS_MAX));
    };
    match schema["format"].as_str() {
        Some("uint32") => {
            converted.insert("format".to_owned(), json!("int64"));
            converted.entry("minimum").or_insert(json!(0));
            converted.entry("maximum").or_insert(json!(u32::MAX));
        }
        Some("uint64") => {
            // The server's numbers end at 2^63 - 1 by themselves.
            converted.insert("format".to_owned(), json!("int64"));
            converted.entry("minimum").or_insert(json!(0));
        }
        Some("quantity") => {
            converted.remove("type");
            converted.insert("anyOf".to_owned(), json!([{ "type": "integer" }, { "type": "string" }]));
            pattern(r"^[0-9]+(\.[0-9]{1,9})?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$", converted);
        }
        Some("duration") => pattern("^([0-9]+(ms|s|m|h|d))+$", converted),
        Some("gpu-mode") => pattern(r"^(exclusive|shared|mig-[0-9]+g\.[0-9]+gb.*)$", converted),
        _ => {}
    }
}

fn bound(path: &str, converted: &mut Map<String, Value>) {
    let bounds = BOUNDS.iter().filter(|(at, _, _)| *at == path);
    converted.extend(bounds.map(|(_, keyword, bound)| ((*keyword).to_owned(), json!(bound))));
    let (keyword, most) = match converted.get("type").and_then(Value::as_str) {
        Some("string") if !converted.contains_key("enum") => ("maxLength", TEXT_CHARS_MAX),
        Some("array") => ("maxItems", LIST_ITEMS_MAX),
        Some("object") if converted.contains_key("additionalProperties") => {
            ("maxProperties", MAP_ENTRIES_MAX)
        }
        _ => return,
    };
    converted.entry(keyword).or_insert(json!(most));
}
