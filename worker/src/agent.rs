//! One worker's life, from its registration to its exit: the shell around [`machine`].

mod machine;

use std::io::{self, Read};
use std::process::ExitCode;

use crate::config::WorkerConfig;

/// What ends when the launcher ends: the worker's standard input, usually.
pub type Lifeline = Box<dyn Read + Send>;

/// How a worker ended. Whatever it is, no rank, socket or temporary file of this worker is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The launcher said that the job is over.
    Finished,
    /// The launcher does not want this worker.
    Refused {
        /// Its reason.
        reason: String,
    },
    /// The launcher is gone: its pipe closed, or the lease ran out.
    LauncherLost,
    /// Somebody sent SIGTERM or SIGINT.
    Terminated,
    /// The worker itself cannot go on.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

impl Outcome {
    /// The process's exit code: 0 finished, 77 refused (`EX_NOPERM`), 75 launcher lost (`EX_TEMPFAIL`),
    /// 143 terminated (128 + SIGTERM), 70 failed (`EX_SOFTWARE`).
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Finished => 0,
            Self::Refused { .. } => 77,
            Self::LauncherLost => 75,
            Self::Terminated => 143,
            Self::Failed { .. } => 70,
        }
    }
}

/// The whole of `worker agent`: the configuration is the first line of standard input, whose end is the launcher's.
#[must_use]
pub fn main() -> ExitCode {
    crate::telemetry::init(|name| std::env::var_os(name)?.into_string().ok());
    let config = match WorkerConfig::read(&mut io::stdin().lock()) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(error = %crate::config::chain(&error), "cannot start");
            return ExitCode::from(64);
        }
    };
    ExitCode::from(run(config, Some(Box::new(io::stdin()))).code())
}

/// Runs one worker until its end. Blocks; makes its own runtime. The calling process must have no other children:
/// it becomes their reaper.
#[must_use]
pub fn run(_config: WorkerConfig, _lifeline: Option<Lifeline>) -> Outcome {
    Outcome::Failed { reason: "not yet".into() }
}
