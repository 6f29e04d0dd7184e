//! What is wrong with a job file: every fault with its place, its path and what to do about it (pure).

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::error::{ExitCode, Failure, Report};

/// Faults that are listed; a file with more is wrong as a whole, and a screen holds no more.
pub const FAULTS_MAX: usize = 100;

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line and a column (in characters), both from 1.
    Line {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// A flag of the command line, with its dashes.
    Flag(Arc<str>),
    /// A document without lines: an object of the Kubernetes API.
    Document,
}

impl Place {
    /// A flag of the command line, with its dashes.
    #[must_use]
    pub fn flag(name: &str) -> Self {
        Self::Flag(name.into())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Where it was written.
    pub place: Place,
    /// Which field: `spec.data.globalBatch`; empty for the document as a whole.
    pub path: String,
    /// What is wrong: a lowercase fragment.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl Fault {
    /// A fault without a hint.
    pub fn new(place: &Place, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.clone(), path: path.into(), message: message.into(), hint: String::new() }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

/// Everything that is wrong with one document, in the order of the places. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    origin: String,
    list: Vec<Fault>,
    omitted: usize,
}

impl Faults {
    /// The faults of the document that people know as `origin` (a path as they typed it).
    #[must_use]
    pub fn new(origin: impl Into<String>, mut list: Vec<Fault>) -> Self {
        list.sort();
        list.dedup();
        let omitted = list.len().saturating_sub(FAULTS_MAX);
        list.truncate(FAULTS_MAX);
        Self { origin: origin.into(), list, omitted }
    }

    /// The faults, at most [`FAULTS_MAX`].
    #[must_use]
    pub fn list(&self) -> &[Fault] {
        &self.list
    }

    fn count(&self) -> String {
        match self.list.len() + self.omitted {
            1 => "1 fault".to_owned(),
            n => format!("{n} faults"),
        }
    }
}

impl fmt::Display for Faults {
    /// One line per fault, like a compiler's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.list {
            match &fault.place {
                Place::Line { line, column } => write!(f, "{}:{line}:{column}: ", self.origin)?,
                Place::Flag(flag) => write!(f, "{flag}: ")?,
                // A job of flags has no file to name.
                Place::Document if self.origin.is_empty() => {}
                Place::Document => write!(f, "{}: ", self.origin)?,
            }
            if !fault.path.is_empty() {
                write!(f, "{}: ", fault.path)?;
            }
            f.write_str(&fault.message)?;
            if !fault.hint.is_empty() {
                write!(f, " ({})", fault.hint)?;
            }
            writeln!(f)?;
        }
        if self.omitted > 0 {
            writeln!(f, "{}: {} more", self.origin, self.omitted)?;
        }
        Ok(())
    }
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Fault", 6)?;
        let (line, column, flag) = match &self.place {
            Place::Line { line, column } => (Some(*line), Some(*column), None),
            Place::Flag(flag) => (None, None, Some(&**flag)),
            Place::Document => (None, None, None),
        };
        fields.serialize_field("line", &line)?;
        fields.serialize_field("column", &column)?;
        fields.serialize_field("flag", &flag)?;
        fields.serialize_field("path", &self.path)?;
        fields.serialize_field("message", &self.message)?;
        fields.serialize_field("hint", &self.hint)?;
        fields.end()
    }
}

impl std::error::Error for Faults {}

impl From<Faults> for Failure {
    fn from(faults: Faults) -> Self {
        let whose = if faults.origin.is_empty() { "the job" } else { &faults.origin };
        let message = format!("{whose} has {}; nothing was started", faults.count());
        let mut failure = Self::new(ExitCode::JobFile, message)
            .hint("`launcher schema` describes every field of a job file");
        let text = faults.to_string();
        let values = faults.list.iter().filter_map(|fault| serde_json::to_value(fault).ok()).collect();
        failure.report = Some(Box::new(Report { faults: values, text }));
        failure
    }
}
