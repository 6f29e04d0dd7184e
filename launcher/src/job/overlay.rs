//! Fields that the command line gives, laid over a job file's or put together to a job without a file (pure).
//!
//! A flag ends up as a node like any other, with the flag as its place, so that one set of checks and one form of
//! fault serve both.

use super::faults::{Fault, Place};
use super::schema::{self, join};
use super::source::{self, Entry, Node, Value};

/// Keys of a path at the most.
const KEYS_MAX: usize = source::DEPTH_MAX / 2;

/// One field that a flag gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// The flag, with its dashes.
    pub flag: String,
    /// The keys from the root.
    pub keys: Vec<String>,
    /// Its value.
    pub value: Value,
}

impl Override {
    /// A field by its path of plain keys (`spec.workers.count`).
    #[must_use]
    pub fn new(flag: &str, path: &str, value: Value) -> Self {
        Self { flag: flag.to_owned(), keys: path.split('.').map(str::to_owned).collect(), value }
    }

    /// The argument of `--set`: `path=value`. A key with dots in it is written `["a.b"]`; the value is YAML, except
    /// where the field is text.
    ///
    /// # Errors
    /// When it is no path and value.
    pub fn parse(argument: &str) -> Result<Self, String> {
        let (path, text) = argument
            .split_once('=')
            .ok_or("has no =; write it as path=value, for example spec.workers.count=2")?;
        let keys = parse_path(path)?;
        let field = schema::field(keys.iter().map(String::as_str));
        let value = match field {
            Some(field) if schema::is_text(field) => Value::Text(text.to_owned()),
            _ => {
                let (node, faults) = source::read(text);
                match (node, faults.first()) {
                    (Some(node), None) => node.value,
                    _ if text.trim().is_empty() => return Err("has no value after the =".to_owned()),
                    (_, fault) => {
                        let message = fault.map_or("this is no value", |fault| fault.message.as_str());
                        return Err(format!("has a value that cannot be read: {message}"));
                    }
                }
            }
        };
        Ok(Self { flag: format!("--set {path}"), keys, value })
    }
}

fn parse_path(path: &str) -> Result<Vec<String>, String> {
    let bad = || {
        format!("{path:?} is no path of keys; write it as spec.workers.count or metadata.labels[\"a.b/c\"]")
    };
    let mut keys = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let (key, after) = quoted.split_once("\"]").ok_or_else(bad)?;
            keys.push(key.to_owned());
            rest = after;
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            keys.push(rest[..end].to_owned());
            rest = &rest[end..];
        }
        rest = match rest.strip_prefix('.') {
            Some("") => return Err(bad()),
            Some(after) => after,
            None if rest.is_empty() || rest.starts_with("[\"") => rest,
            None => return Err(bad()),
        };
    }
    if keys.is_empty() || keys.len() > KEYS_MAX || keys.iter().any(String::is_empty) {
        Err(bad())
    } else {
        Ok(keys)
    }
}

/// Puts the fields into the tree, later ones over earlier ones, and makes the mappings that are missing.
///
/// # Errors
/// When a field would lie inside something that is no mapping.
pub fn apply(root: &mut Node, fields: &[Override]) -> Vec<Fault> {
    fields.iter().filter_map(|field| put(root, field).err()).collect()
}

fn put(root: &mut Node, field: &Override) -> Result<(), Fault> {
    let place = Place::flag(&field.flag);
    let mut node = root;
    let mut path = String::new();
    for key in &field.keys {
        if matches!(node.value, Value::Null) {
            node.value = Value::Map(Vec::new());
        }
        let Value::Map(entries) = &mut node.value else {
            let message = if path.is_empty() { "the document" } else { path.as_str() };
            return Err(Fault::new(&place, "", format!("{message} is no mapping, so it has no {key}")));
        };
        path = join(&path, key);
        let index = match entries.iter().position(|entry| entry.key == *key) {
            Some(index) => index,
            None => {
                let node = Node { place: place.clone(), value: Value::Null };
                entries.push(Entry { key: key.clone(), place: place.clone(), node });
                entries.len() - 1
            }
        };
        node = &mut entries[index].node;
    }
    *node = placed(&field.value, &place);
    Ok(())
}

/// The value with the flag as the place of everything in it.
fn placed(value: &Value, place: &Place) -> Node {
    let value = match value {
        Value::List(items) => Value::List(items.iter().map(|item| placed(&item.value, place)).collect()),
        Value::Map(entries) => Value::Map(
            entries
                .iter()
                .map(|entry| Entry {
                    key: entry.key.clone(),
                    place: place.clone(),
                    node: placed(&entry.node.value, place),
                })
                .collect(),
        ),
        other => other.clone(),
    };
    Node { place: place.clone(), value }
}

/// A document of this version that is empty otherwise: what flags alone are laid over.
#[must_use]
pub fn skeleton() -> Node {
    let place = Place::Document;
    Node::from_json(
        &serde_json::json!({
            "apiVersion": "slipway.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {},
            "spec": { "workers": {}, "run": {} },
        }),
        &place,
    )
}
