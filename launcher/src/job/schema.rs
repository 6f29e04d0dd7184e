//! The JSON Schema of `TrainingJob`, and the check of a document's shape against it (pure).
//!
//! The schema comes out of the type, so a field that is added to [`super::spec`] is checked, described and completed
//! without another word. The part of JSON Schema that is understood is the part that our types produce.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value as Json;

use super::faults::{Fault, Place};
use super::source::{Entry, Node, Value};
use super::spec::TrainingJob;
use super::units::{Bytes, GpuMode, parse_duration};

/// The schema, with every type inlined: what the custom resource needs, too.
pub static SCHEMA: LazyLock<Json> = LazyLock::new(|| {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<TrainingJob>().to_value();
    without_null(&mut schema);
    schema
});

/// A field that may be left out is not one that may be null; the checks refuse null, so the schema must, too.
fn without_null(schema: &mut Json) {
    if let Some(kinds) = schema.get_mut("type").and_then(Json::as_array_mut) {
        kinds.retain(|kind| kind != "null");
        if let [only] = &kinds[..] {
            schema["type"] = only.clone();
        }
    }
    if let Some(words) = schema.get_mut("enum").and_then(Json::as_array_mut) {
        words.retain(|word| !word.is_null());
    }
    let choice =
        schema["anyOf"].as_array().and_then(|choices| choices.iter().find(|one| one["type"] != "null"));
    if let Some(mut inner) = choice.cloned() {
        // The field's own words come before those of its type.
        let outer = std::mem::take(schema);
        for (key, value) in outer.as_object().into_iter().flatten().filter(|(key, _)| *key != "anyOf") {
            inner[key] = value.clone();
        }
        *schema = inner;
    }
    for keyword in ["properties", "items", "additionalProperties"] {
        match schema.get_mut(keyword) {
            Some(Json::Object(children)) if keyword == "properties" => {
                children.values_mut().for_each(without_null);
            }
            Some(child @ Json::Object(_)) => without_null(child),
            _ => {}
        }
    }
}

/// In which ways a document has another shape than the schema says.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// Every way.
    pub faults: Vec<Fault>,
    /// Paths of fields that were probably meant by misspelt keys: their values are not known.
    pub guessed: Vec<String>,
}

/// Every way in which the document has another shape than the schema says.
#[must_use]
pub fn check(root: &Node) -> Shape {
    let mut shape = Shape::default();
    check_node(root, &root.place, &SCHEMA, "", &mut shape);
    shape
}

/// The schema of the field at a path (`spec.data.globalBatch`), or of the entry of a free map.
#[must_use]
pub fn field<'a>(keys: impl IntoIterator<Item = &'a str>) -> Option<&'static Json> {
    let mut schema: &'static Json = &SCHEMA;
    for key in keys {
        schema = property(schema, key)?;
    }
    Some(schema)
}

/// Whether a field's schema accepts text and nothing else.
#[must_use]
pub fn is_text(schema: &Json) -> bool {
    types(schema).all(|kind| kind == "string")
}

/// `parent.key`, with quotes around a key that would look like more than one.
#[must_use]
pub fn join(parent: &str, key: &str) -> String {
    let simple = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    match (parent.is_empty(), simple) {
        (true, true) => key.to_owned(),
        (false, true) => format!("{parent}.{key}"),
        (_, false) => format!("{parent}[{key:?}]"),
    }
}

fn property<'s>(schema: &'s Json, key: &str) -> Option<&'s Json> {
    schema["properties"]
        .get(key)
        .or_else(|| Some(&schema["additionalProperties"]).filter(|free| free.is_object()))
}

fn types(schema: &Json) -> impl Iterator<Item = &str> {
    let one = schema["type"].as_str().into_iter();
    one.chain(schema["type"].as_array().into_iter().flatten().filter_map(Json::as_str))
}

fn check_node(node: &Node, place: &Place, schema: &Json, path: &str, shape: &mut Shape) {
    let accepts = |kind: &str| types(schema).any(|accepted| accepted == kind);
    match &node.value {
        Value::Broken => {}
        Value::Null => {
            let fault = Fault::new(&node.place, path, "has no value");
            shape.faults.push(fault.hint("give it one or remove the key"));
        }
        Value::Map(entries) if accepts("object") => check_map(entries, place, schema, path, shape),
        Value::List(items) if accepts("array") => check_list(items, node, schema, path, shape),
        Value::Text(text) if accepts("string") => shape.faults.extend(check_text(text, node, schema, path)),
        Value::Bool(_) if accepts("boolean") => {}
        Value::Integer(number) if accepts("integer") => {
            shape.faults.extend(check_integer(*number, node, schema, path));
        }
        _ => shape.faults.push(wrong_type(node, schema, path)),
    }
}

fn check_map(entries: &[Entry], place: &Place, schema: &Json, path: &str, shape: &mut Shape) {
    for entry in entries {
        let child = join(path, &entry.key);
        match property(schema, &entry.key) {
            Some(schema) => check_node(&entry.node, &entry.place, schema, &child, shape),
            None => {
                let (hint, meant) = unknown_key_hint(&entry.key, schema);
                shape.guessed.extend(meant.map(|key| join(path, &key)));
                shape.faults.push(Fault::new(&entry.place, child, "unknown key").hint(hint));
            }
        }
    }
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
        // A misspelt key is one fault, not two.
        let child = join(path, required);
        if entries.iter().any(|entry| entry.key == required) || shape.guessed.contains(&child) {
            continue;
        }
        let fault = Fault::new(place, child, "is missing");
        let hint = match &schema["properties"][required] {
            known if known["enum"][0].is_string() && known["enum"][1].is_null() => {
                format!("write {required}: {}", known["enum"][0].as_str().unwrap_or_default())
            }
            known => sentence(known["description"].as_str().unwrap_or_default()),
        };
        shape.faults.push(fault.hint(hint));
    }
}

fn sentence(description: &str) -> String {
    let first = description.split(". ").next().unwrap_or_default().trim_end_matches('.');
    let mut chars = first.chars();
    match chars.next() {
        Some(c) => format!("{}{}", c.to_lowercase(), chars.as_str().replace('\n', " ")),
        None => String::new(),
    }
}

fn check_list(items: &[Node], node: &Node, schema: &Json, path: &str, shape: &mut Shape) {
    let count = items.len() as u64;
    if schema["minItems"].as_u64().is_some_and(|min| count < min) {
        shape.faults.push(Fault::new(&node.place, path, "must not be empty"));
    }
    if let Some(max) = schema["maxItems"].as_u64().filter(|max| count > *max) {
        shape.faults.push(Fault::new(
            &node.place,
            path,
            format!("has {count} items, and {max} are the limit"),
        ));
        return;
    }
    for (index, item) in items.iter().enumerate() {
        check_node(item, &item.place, &schema["items"], &format!("{path}[{index}]"), shape);
    }
}

fn check_text(text: &str, node: &Node, schema: &Json, path: &str) -> Option<Fault> {
    if let Some(choices) = schema["enum"].as_array() {
        let choices: Vec<&str> = choices.iter().filter_map(Json::as_str).collect();
        if choices.contains(&text) {
            return None;
        }
        let message = match choices[..] {
            [only] => format!("must be {only}, not {text:?}"),
            _ => format!("must be one of {}, not {text:?}", choices.join(", ")),
        };
        let hint = nearest(text, choices.iter().copied()).map(|near| format!("did you mean {near}?"));
        return Some(Fault::new(&node.place, path, message).hint(hint.unwrap_or_default()));
    }
    let unit = match schema["format"].as_str() {
        Some("quantity") => text.parse::<Bytes>().err(),
        Some("duration") => parse_duration(text).err(),
        Some("gpu-mode") => text.parse::<GpuMode>().err(),
        _ => None,
    };
    if let Some(error) = unit {
        let message = format!("must be {}, not {text:?}", error.expected);
        return Some(Fault::new(&node.place, path, message).hint(error.hint));
    }
    let length = text.chars().count() as u64;
    if schema["minLength"].as_u64().is_some_and(|min| length < min) {
        return Some(Fault::new(&node.place, path, "must not be empty"));
    }
    let max = schema["maxLength"].as_u64().filter(|max| length > *max)?;
    Some(Fault::new(&node.place, path, format!("has {length} characters, and {max} are the limit")))
}

fn check_integer(number: i128, node: &Node, schema: &Json, path: &str) -> Option<Fault> {
    let bound = |name: &str| schema[name].as_u64().map(i128::from);
    let widest = match schema["format"].as_str() {
        Some("uint32") => i128::from(u32::MAX),
        Some("quantity") => i128::from(i64::MAX),
        _ => i128::from(u64::MAX),
    };
    let (min, max) = (bound("minimum").unwrap_or(0), bound("maximum").unwrap_or(widest));
    let message = if number < min {
        format!("must be at least {min}, not {number}")
    } else if number > max {
        format!("must be at most {max}, not {number}")
    } else {
        return None;
    };
    Some(Fault::new(&node.place, path, message))
}

fn wrong_type(node: &Node, schema: &Json, path: &str) -> Fault {
    let wanted = types(schema).next().unwrap_or("value");
    let expected = match (wanted, schema["format"].as_str()) {
        (_, Some("quantity")) => "a number of bytes such as 8Gi",
        (_, Some("duration")) => "a duration such as 30s",
        ("object", _) => "a mapping of keys to values",
        ("array", _) => "a list",
        ("integer", _) => "a whole number",
        ("boolean", _) => "true or false",
        _ => "text",
    };
    let (found, hint) = match &node.value {
        Value::Bool(value) => (value.to_string(), quoted(wanted, schema, &value.to_string())),
        Value::Integer(value) if schema["format"] == "duration" => {
            (format!("the number {value}"), format!("add a unit: {value}s"))
        }
        Value::Integer(value) => (format!("the number {value}"), quoted(wanted, schema, &value.to_string())),
        Value::Float(value) => (format!("the number {value}"), quoted(wanted, schema, &value.to_string())),
        Value::Text(text) => {
            let number = wanted == "integer" && text.parse::<i128>().is_ok();
            let hint = match wanted {
                "integer" if number => "remove the quotes".to_owned(),
                "array" => {
                    let words: Vec<&str> = text.split_whitespace().collect();
                    format!("write [{}]", words.join(", "))
                }
                _ => String::new(),
            };
            (format!("the text {text:?}"), hint)
        }
        Value::List(_) => ("a list".to_owned(), String::new()),
        Value::Map(_) => ("a mapping".to_owned(), String::new()),
        Value::Null | Value::Broken => ("nothing".to_owned(), String::new()),
    };
    Fault::new(&node.place, path, format!("must be {expected}, not {found}")).hint(hint)
}

fn quoted(wanted: &str, schema: &Json, text: &str) -> String {
    match wanted {
        "string" if schema["format"].is_null() => format!("write it in quotes: {text:?}"),
        "array" => format!("write [{text:?}]"),
        // Whoever writes a number where a mapping has to have one means that.
        "object" if text.parse::<u64>().is_ok() => match schema["required"].as_array().map(Vec::as_slice) {
            Some([Json::String(key)]) if schema["properties"][key]["type"] == "integer" => {
                format!("write {{{key}: {text}}}")
            }
            _ => String::new(),
        },
        _ => String::new(),
    }
}

/// What to write instead of an unknown key, and the key of the same mapping that was probably meant.
fn unknown_key_hint(key: &str, schema: &Json) -> (String, Option<String>) {
    let known =
        || schema["properties"].as_object().into_iter().flat_map(|known| known.keys().map(String::as_str));
    if let Some(near) = nearest(key, known()) {
        return (format!("did you mean {near}?"), Some(near.to_owned()));
    }
    let mut elsewhere = Vec::new();
    find_key(&SCHEMA, "", key, &mut elsewhere);
    let hint = match &elsewhere[..] {
        [] => format!("known here: {}", known().collect::<Vec<_>>().join(", ")),
        paths => format!("it belongs at {}", paths.join(" or ")),
    };
    (hint, None)
}

fn find_key(schema: &Json, path: &str, key: &str, found: &mut Vec<String>) {
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        let child_path = join(path, name);
        if name == key {
            found.push(child_path.clone());
        }
        find_key(child, &child_path, key, found);
    }
}

/// The word that was probably meant: equal but for case and separators, or a third of its letters away.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let folded =
        |text: &str| text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    let word: Vec<char> = folded(word);
    // Longer words are no misspelling of a key, and the distance is quadratic in their length.
    if word.len() > 64 {
        return None;
    }
    known
        .map(|candidate| (distance(&word, &folded(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(3) / 3 && *distance < word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}
