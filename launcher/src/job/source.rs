//! A job file's text as a tree that remembers where everything was written (pure).
//!
//! YAML 1.2 with the core schema, of which JSON is a part. Of YAML only what a configuration needs is accepted: one
//! document, text keys, no aliases, no tags. What is refused is a fault with a place, and reading goes on where that
//! makes sense, so that the checks behind this see as much of the file as there is.

use std::borrow::Cow;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::faults::{Fault, Place};

/// Bytes of a job file at the most: a thousand times a long one, and short enough to be parsed in no time.
pub const SOURCE_BYTES_MAX: usize = 1 << 20;
/// Levels of nesting at the most; the format itself has five.
pub const DEPTH_MAX: usize = 32;

/// Keys of one mapping at the most: an environment has a few dozen.
pub const MAP_ENTRIES_MAX: usize = 4096;

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub value: Value,
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// Another number.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// Keys and values, in the order of the file; each key once.
    Map(Vec<Entry>),
    /// Something that a fault has been reported for.
    Broken,
}

/// One key and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key was written.
    pub place: Place,
    /// The value.
    pub node: Node,
}

impl Node {
    /// The entry of a map with that key.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The tree as JSON; what is broken becomes null.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null | Value::Broken => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Integer(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => value.into(),
                (_, Ok(value)) => value.into(),
                _ => serde_json::Value::Null,
            },
            Value::Float(value) => (*value).into(),
            Value::Text(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => {
                entries.iter().map(|entry| (entry.key.clone(), entry.node.to_json())).collect()
            }
        }
    }

    /// A tree without lines.
    #[must_use]
    pub fn from_json(value: &serde_json::Value, place: &Place) -> Self {
        let value = match value {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(number) => number
                .as_i128()
                .map(Value::Integer)
                .or_else(|| number.as_f64().map(Value::Float))
                .unwrap_or(Value::Broken),
            serde_json::Value::String(text) => Value::Text(text.clone()),
            serde_json::Value::Array(items) => {
                Value::List(items.iter().map(|item| Self::from_json(item, place)).collect())
            }
            serde_json::Value::Object(map) => Value::Map(
                map.iter()
                    .map(|(key, value)| Entry {
                        key: key.clone(),
                        place: place.clone(),
                        node: Self::from_json(value, place),
                    })
                    .collect(),
            ),
        };
        Self { place: place.clone(), value }
    }
}

/// The text of a job file.
///
/// # Errors
/// When it is larger than [`SOURCE_BYTES_MAX`] or no UTF-8.
pub fn decode(bytes: &[u8]) -> Result<&str, Fault> {
    let start = Place::Line { line: 1, column: 1 };
    if bytes.len() > SOURCE_BYTES_MAX {
        let message = format!("the file has {} bytes, and {SOURCE_BYTES_MAX} are the limit", bytes.len());
        return Err(Fault::new(&start, "", message).hint("is this the right file?"));
    }
    str::from_utf8(bytes).map_err(|error| {
        let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |text| text.chars().count()) + 1;
        Fault::new(&Place::Line { line, column }, "", "this is no text in UTF-8")
            .hint("save the file as UTF-8")
    })
}

/// The tree of a text, and what was refused. Without a tree there is at least one fault.
#[must_use]
pub fn read(text: &str) -> (Option<Node>, Vec<Fault>) {
    let text = &*super::surrogates::join(text);
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Err(fault) = decode(text.as_bytes()) {
        return (None, vec![fault]);
    }
    let text = if text.trim_start().starts_with('{') { untabbed(text) } else { Cow::Borrowed(text) };
    let mut builder = Builder::default();
    for event in Parser::new_from_str(&text) {
        match event {
            Ok((event, span)) => {
                if !builder.take(event, span) {
                    break;
                }
            }
            Err(error) => {
                builder.faults.push(syntax_fault(&text, &error));
                return (None, builder.faults);
            }
        }
    }
    let empty = match &builder.root {
        None => builder.faults.is_empty(),
        Some(root) => root.value == Value::Null,
    };
    if empty {
        let fault = Fault::new(&Place::Line { line: 1, column: 1 }, "", "the file is empty")
            .hint("`launcher schema` describes what belongs there");
        return (None, vec![fault]);
    }
    (builder.root, builder.faults)
}

/// JSON may be indented with tabs, which YAML refuses: spaces instead of those outside strings keep the columns.
fn untabbed(text: &str) -> Cow<'_, str> {
    if !text.contains('\t') {
        return Cow::Borrowed(text);
    }
    let (mut quoted, mut escaped) = (false, false);
    let replaced = text.chars().map(|c| {
        if quoted {
            quoted = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            return c;
        }
        quoted = c == '"';
        if c == '\t' { ' ' } else { c }
    });
    Cow::Owned(replaced.collect())
}

fn syntax_fault(text: &str, error: &ScanError) -> Fault {
    let marker = error.marker();
    let place = Place::Line { line: marker.line(), column: marker.col() + 1 };
    let lines = text.lines().enumerate().skip(marker.line().saturating_sub(2)).take(3);
    let tab = lines.filter_map(|(index, line)| {
        let indent = &line[..line.len() - line.trim_start().len()];
        indent.find('\t').map(|column| Place::Line { line: index + 1, column: column + 1 })
    });
    match tab.into_iter().next() {
        Some(place) => Fault::new(&place, "", "a tab is used for indentation").hint("indent with spaces"),
        None => Fault::new(&place, "", format!("this is no YAML: {}", error.info().trim_end_matches('.'))),
    }
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
    /// Levels below [`DEPTH_MAX`], which are skipped.
    too_deep: usize,
    faults: Vec<Fault>,
}

/// A list or map that has not ended.
struct Open {
    place: Place,
    contents: Contents,
}

enum Contents {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<Node> },
}

impl Builder {
    /// Takes one event in; false when the rest of the text is not looked at.
    fn take(&mut self, event: Event<'_>, span: Span) -> bool {
        let place = Place::Line { line: span.start.line(), column: span.start.col() + 1 };
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    let fault = Fault::new(&place, "", "a second document begins here");
                    self.faults.push(fault.hint("one file holds one job"));
                    return false;
                }
            }
            Event::Alias(_) => {
                self.refuse(&place, "an alias (*name) is used", "write the value out");
                self.add(Node { place, value: Value::Broken });
            }
            Event::Scalar(text, style, _, tag) => {
                if tag.is_some() {
                    self.refuse(&place, "a tag (!name) is used", "remove it; put text in quotes");
                }
                let value =
                    if style == ScalarStyle::Plain { plain(&text) } else { Value::Text(text.into_owned()) };
                self.add(Node { place, value });
            }
            Event::SequenceStart(_, tag) => self.open(place, tag.is_some(), Contents::List(Vec::new())),
            Event::MappingStart(_, tag) => {
                self.open(place, tag.is_some(), Contents::Map { entries: Vec::new(), key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        true
    }

    fn refuse(&mut self, place: &Place, message: &str, hint: &str) {
        self.faults.push(Fault::new(place, "", message).hint(hint));
    }

    fn open(&mut self, place: Place, tagged: bool, contents: Contents) {
        if tagged {
            self.refuse(&place, "a tag (!name) is used", "remove it");
        }
        if self.open.len() >= DEPTH_MAX {
            if self.too_deep == 0 {
                self.refuse(&place, &format!("this is nested deeper than {DEPTH_MAX} levels"), "");
                self.add(Node { place, value: Value::Broken });
            }
            self.too_deep += 1;
            return;
        }
        self.open.push(Open { place, contents });
    }

    fn close(&mut self) {
        if self.too_deep > 0 {
            self.too_deep -= 1;
            return;
        }
        let Some(Open { place, contents }) = self.open.pop() else { return };
        let value = match contents {
            Contents::List(items) => Value::List(items),
            Contents::Map { entries, .. } => Value::Map(entries),
        };
        self.add(Node { place, value });
    }

    fn add(&mut self, node: Node) {
        if self.too_deep > 0 {
            return;
        }
        let fault = match self.open.last_mut() {
            None => {
                self.root = Some(node);
                None
            }
            Some(Open { contents: Contents::List(items), .. }) => {
                items.push(node);
                None
            }
            Some(Open { contents: Contents::Map { entries, key }, .. }) => match key.take() {
                None => {
                    *key = Some(node);
                    None
                }
                Some(key) => add_entry(entries, key, node),
            },
        };
        self.faults.extend(fault);
    }
}

fn add_entry(entries: &mut Vec<Entry>, key: Node, node: Node) -> Option<Fault> {
    let text = match key.value {
        Value::Text(text) => text,
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Null => "null".to_owned(),
        Value::Broken => return None,
        Value::List(_) | Value::Map(_) => {
            return Some(Fault::new(&key.place, "", "a key must be text, and this is a list or a mapping"));
        }
    };
    match entries.len() {
        0..MAP_ENTRIES_MAX => {}
        MAP_ENTRIES_MAX => {
            entries.push(Entry { key: text, place: key.place.clone(), node });
            return Some(Fault::new(
                &key.place,
                "",
                format!("a mapping of more than {MAP_ENTRIES_MAX} keys"),
            ));
        }
        _ => return None,
    }
    if let Some(first) = entries.iter().find(|entry| entry.key == text) {
        let hint = match &first.place {
            Place::Line { line, .. } => format!("it is first given on line {line}; remove one of them"),
            Place::Flag(_) | Place::Document => String::new(),
        };
        return Some(Fault::new(&key.place, "", format!("the key {text} is given twice")).hint(hint));
    }
    entries.push(Entry { key: text, place: key.place, node });
    None
}

/// An unquoted scalar by YAML 1.2's core schema (section 10.3.2): `yes` and `on` are text.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let based = |prefix: &str, base: u32| {
        let digits = text.strip_prefix(prefix)?;
        let plain = digits.starts_with(|c: char| c.is_ascii_alphanumeric());
        plain.then(|| i128::from_str_radix(digits, base).ok()).flatten()
    };
    if let Some(number) = based("0x", 16).or_else(|| based("0o", 8)) {
        return Value::Integer(number);
    }
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
        && text.bytes().any(|b| b.is_ascii_digit());
    if numeric && let Ok(number) = text.parse() {
        return Value::Integer(number);
    }
    let float = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    match text.parse::<f64>() {
        Ok(number) if numeric && float && number.is_finite() => Value::Float(number),
        _ => Value::Text(text.to_owned()),
    }
}
