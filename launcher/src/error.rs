//! What a user sees when a command fails, and the one table of exit codes.
//!
//! Inside the crate each boundary has its own error enum; a command turns it into a [`Failure`], which `main` prints
//! once. A failure says what could not be done, why (its causes, outermost first), and what to do about it.

use std::fmt;

pub use datapath::fault::in_full;
use serde::{Deserialize, Serialize};

/// How the process ends. The numbers are an interface: they never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitCode {
    /// 0: done.
    Ok,
    /// 1: the job ran and failed: a rank failed and the restart budget is used up.
    JobFailed,
    /// 2: the command line cannot be understood.
    Usage,
    /// 64: the job file is invalid.
    JobFile,
    /// 65: the data is invalid or corrupt.
    Data,
    /// 66: an input does not exist.
    NotFound,
    /// 69: no resources, ports or hosts to do it with, or this build cannot.
    Unavailable,
    /// 70: a fault of Slipway's own.
    Internal,
    /// 73: an output cannot be created.
    CannotCreate,
    /// 75: it may work when tried again.
    Temporary,
    /// 124: the job made no step for longer than it allows.
    Hang,
    /// 130: the job was cancelled.
    Cancelled,
}

impl ExitCode {
    /// Every code, in the order of its number.
    pub const ALL: [Self; 12] = [
        Self::Ok,
        Self::JobFailed,
        Self::Usage,
        Self::JobFile,
        Self::Data,
        Self::NotFound,
        Self::Unavailable,
        Self::Internal,
        Self::CannotCreate,
        Self::Temporary,
        Self::Hang,
        Self::Cancelled,
    ];

    /// The process's exit status.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::JobFailed => 1,
            Self::Usage => 2,
            Self::JobFile => 64,
            Self::Data => 65,
            Self::NotFound => 66,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::CannotCreate => 73,
            Self::Temporary => 75,
            Self::Hang => 124,
            Self::Cancelled => 130,
        }
    }

    /// A stable word for it, the same as in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::JobFailed => "job_failed",
            Self::Usage => "usage",
            Self::JobFile => "job_file",
            Self::Data => "data",
            Self::NotFound => "not_found",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
            Self::CannotCreate => "cannot_create",
            Self::Temporary => "temporary",
            Self::Hang => "hang",
            Self::Cancelled => "cancelled",
        }
    }

    /// What it means, for the table.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done; for a job: it succeeded",
            Self::JobFailed => "the job failed: a rank failed and its restarts are used up",
            Self::Usage => "the command line cannot be understood",
            Self::JobFile => "the job file (or a flag that stands for one of its fields) is invalid",
            Self::Data => "the data set is invalid or corrupt",
            Self::NotFound => "an input does not exist: a file, a data set, a job, a program",
            Self::Unavailable => "no resources, ports or hosts to do it with, or this build cannot",
            Self::Internal => "a fault of Slipway's own; please report it",
            Self::CannotCreate => "an output cannot be created: the state folder, a manifest",
            Self::Temporary => "it may work when tried again",
            Self::Hang => "the job made no step for longer than spec.hang.timeout",
            Self::Cancelled => "the job was cancelled",
        }
    }
}

/// Why a command failed, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// How the process will end.
    pub code: ExitCode,
    /// What could not be done: a lowercase fragment that stands after "error: ".
    pub message: String,
    /// Why, outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Single faults, where there are several (job file, data set).
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub report: Option<Box<Report>>,
}

/// The single faults behind a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// For machines.
    pub faults: Vec<serde_json::Value>,
    /// For people: whole lines, shown before the error.
    #[serde(skip)]
    pub text: String,
}

impl Failure {
    /// A failure without causes and hint.
    #[must_use]
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), causes: Vec::new(), hint: None, report: None }
    }

    /// A failure with an error and the errors under it as causes.
    #[must_use]
    pub fn from_error(code: ExitCode, error: &dyn std::error::Error) -> Self {
        let mut failure = Self::new(code, format!("failed to {error}"));
        failure.add_causes(error.source());
        failure
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        self.hint = (!hint.is_empty()).then_some(hint);
        self
    }

    /// The error that made it fail, with the errors under it.
    #[must_use]
    pub fn because(mut self, error: &dyn std::error::Error) -> Self {
        self.add_causes(Some(error));
        self
    }

    fn add_causes(&mut self, mut error: Option<&dyn std::error::Error>) {
        while let Some(current) = error {
            self.causes.push(current.to_string());
            error = current.source();
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(report) = &self.report {
            f.write_str(&report.text)?;
        }
        write!(f, "error: {}", self.message)?;
        for cause in &self.causes {
            write!(f, "\n  because: {cause}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_json_and_numbers_ascend() {
        for code in ExitCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.word());
        }
        assert!(ExitCode::ALL.windows(2).all(|pair| pair[0].number() < pair[1].number()));
    }

    #[test]
    fn a_failure_reads_from_what_to_why_to_what_to_do() {
        let inner = std::io::Error::other("disk on fire");
        let failure =
            Failure::new(ExitCode::CannotCreate, "failed to create /x").because(&inner).hint("pick /y");
        assert_eq!(
            failure.to_string(),
            "error: failed to create /x\n  because: disk on fire\n  hint: pick /y"
        );
    }
}
