//! Every environment variable that this program reads, in one place and read once.
//!
//! | variable | meaning |
//! |---|---|
//! | `SLIPWAY_HOME` | where jobs keep their state and logs; default `$XDG_STATE_HOME/slipway`, else `~/.local/state/slipway` |
//! | `SLIPWAY_LOG` | what is logged to standard error, as `tracing` directives; default `warn,kube_client=off` |
//! | `NO_COLOR` | any value: no colour |
//! | `CLICOLOR_FORCE` | any value but `0`: colour also when standard error is no terminal |
//! | `TERM` | `dumb`: no colour and no redrawn lines |

use std::path::PathBuf;

use crate::error::{ExitCode, Failure};

/// Warnings, but not of the Kubernetes client: what it meets we tell ourselves, with a hint, or it is none of the user's.
const LOG_DEFAULT: &str = "warn,kube_client=off";

/// The environment, or in tests a table.
pub trait Environment {
    /// The variable's value; none when it is unset or empty.
    fn get(&self, name: &str) -> Option<String>;
}

/// The process's environment.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
    fn get(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }
}

impl Environment for std::collections::BTreeMap<&str, &str> {
    fn get(&self, name: &str) -> Option<String> {
        Self::get(self, name).filter(|value| !value.is_empty()).map(|value| (*value).to_owned())
    }
}

/// What the environment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    home: Option<PathBuf>,
    /// `tracing` directives for standard error.
    pub log: String,
    /// Colour is wanted (`Some(true)`), unwanted (`Some(false)`), or up to the terminal.
    pub color: Option<bool>,
    /// The terminal cannot redraw a line.
    pub dumb_terminal: bool,
}

impl Config {
    /// Reads the environment.
    #[must_use]
    pub fn read(environment: &impl Environment) -> Self {
        let home = environment
            .get("SLIPWAY_HOME")
            .map(PathBuf::from)
            .or_else(|| environment.get("XDG_STATE_HOME").map(|folder| PathBuf::from(folder).join("slipway")))
            .or_else(|| {
                environment.get("HOME").map(|folder| PathBuf::from(folder).join(".local/state/slipway"))
            });
        let dumb_terminal = environment.get("TERM").as_deref() == Some("dumb");
        let color = if environment.get("NO_COLOR").is_some() || dumb_terminal {
            Some(false)
        } else {
            environment.get("CLICOLOR_FORCE").filter(|value| value != "0").map(|_| true)
        };
        let log = environment.get("SLIPWAY_LOG").unwrap_or_else(|| LOG_DEFAULT.to_owned());
        Self { home, log, color, dumb_terminal }
    }

    /// Where jobs keep their state: absolute; it need not exist yet.
    ///
    /// # Errors
    /// When no variable says where.
    pub fn state_home(&self) -> Result<StateHome, Failure> {
        let missing = || {
            Failure::new(ExitCode::CannotCreate, "failed to find a folder for the jobs' state")
                .hint("set SLIPWAY_HOME to a folder that you may write")
        };
        let home = self.home.clone().ok_or_else(missing)?;
        std::path::absolute(home).map(StateHome).map_err(|error| missing().because(&error))
    }
}

/// The folder that holds `jobs/<id>/`. Absolute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StateHome(pub PathBuf);

impl StateHome {
    /// The folder of all jobs.
    #[must_use]
    pub fn jobs(&self) -> PathBuf {
        self.0.join("jobs")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn home(variables: &[(&str, &str)]) -> Result<PathBuf, Failure> {
        let environment: BTreeMap<&str, &str> = variables.iter().copied().collect();
        Config::read(&environment).state_home().map(|home| home.0)
    }

    #[test]
    fn the_state_folder_is_found_in_this_order() {
        let all = [("SLIPWAY_HOME", "/a"), ("XDG_STATE_HOME", "/b"), ("HOME", "/c")];
        assert_eq!(home(&all).unwrap(), PathBuf::from("/a"));
        assert_eq!(home(&all[1..]).unwrap(), PathBuf::from("/b/slipway"));
        assert_eq!(home(&all[2..]).unwrap(), PathBuf::from("/c/.local/state/slipway"));
        assert_eq!(home(&[("SLIPWAY_HOME", "")]).unwrap_err().code, ExitCode::CannotCreate);
    }

    #[test]
    fn colour_is_off_when_asked_for() {
        let read = |variables: &[(&str, &str)]| {
            Config::read(&variables.iter().copied().collect::<BTreeMap<&str, &str>>()).color
        };
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]), Some(false));
        assert_eq!(read(&[("CLICOLOR_FORCE", "1")]), Some(true));
        assert_eq!(read(&[("TERM", "dumb")]), Some(false));
    }
}
