//! What the sidecar and the ranks' container of one pod say to each other (pure).
//!
//! ```text
//! ranks' container (worker exec)           sidecar (worker pod)
//!   Hello(environment, CPUs, folder)  ->
//!                            <- Launch(g, ranks)
//!   Started(g) | NotStarted(g)        ->
//!                            <- Stop(g, grace)
//!   Exited(g, rank), Stopped(g)       ->
//!   Terminating                       ->   (the kubelet stops the pod)
//!                            <- Over
//! ```
//! The frames are the rendezvous' own ([`crate::rendezvous::message`]): both ends are the same executable, which the
//! sidecar has put where the ranks' container finds it, so the version is never in doubt.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::rendezvous::message::pairs;
use crate::supervisor::{Launch, RankExit, SupervisorEvent};
use crate::units::{Generation, Rank};

/// From the sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum ToRanks {
    /// Execute these.
    Launch(Launch),
    /// End a generation.
    Stop {
        /// Which.
        generation: Generation,
        /// From SIGTERM to SIGKILL.
        grace_ms: u64,
    },
    /// The job is over: exit with 0.
    Over,
}

/// From the ranks' container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum FromRanks {
    /// First on every connection.
    Hello(Surroundings),
    /// All ranks are executed.
    Started {
        /// Of which generation.
        generation: Generation,
        /// Their processes, as their container numbers them.
        #[serde(with = "pairs")]
        pids: BTreeMap<Rank, u32>,
    },
    /// A rank could not be executed; the ones after it were not tried.
    NotStarted {
        /// Of which generation.
        generation: Generation,
        /// Which.
        rank: Rank,
        /// Why.
        error: ErrorWords,
    },
    /// A rank ended.
    Exited(RankExit),
    /// Nothing of the generation is left.
    Stopped {
        /// Which.
        generation: Generation,
    },
    /// Somebody sent SIGTERM: the ranks are being stopped, and this container ends.
    Terminating,
}

/// What the ranks find around them in their container, and their sidecar cannot see.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Surroundings {
    /// The environment that ranks inherit. It may hold secrets of the user's, so it is never shown.
    pub(crate) env: BTreeMap<String, String>,
    /// CPUs that the container may use; empty if the kernel does not say.
    pub(crate) cpus: Vec<u32>,
    /// The image's working folder.
    pub(crate) workdir: PathBuf,
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings")
            .field("env", &self.env.len())
            .field("cpus", &self.cpus)
            .field("workdir", &self.workdir)
            .finish()
    }
}

/// An I/O error on its way to another process: its text, and as much of its kind as decides anything here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ErrorWords {
    kind: ErrorKind,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ErrorKind {
    NotFound,
    PermissionDenied,
    Other,
}

impl From<&io::Error> for ErrorWords {
    fn from(error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
            _ => ErrorKind::Other,
        };
        Self { kind, text: error.to_string() }
    }
}

impl From<ErrorWords> for io::Error {
    fn from(words: ErrorWords) -> Self {
        let kind = match words.kind {
            ErrorKind::NotFound => io::ErrorKind::NotFound,
            ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
            ErrorKind::Other => io::ErrorKind::Other,
        };
        Self::new(kind, words.text)
    }
}

impl ToRanks {
    /// The order to end a generation.
    pub(crate) fn stop(generation: Generation, grace: Duration) -> Self {
        Self::Stop { generation, grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) }
    }
}

impl From<SupervisorEvent> for FromRanks {
    fn from(event: SupervisorEvent) -> Self {
        match event {
            SupervisorEvent::Started { generation, pids } => Self::Started { generation, pids },
            SupervisorEvent::NotStarted { generation, rank, error } => {
                Self::NotStarted { generation, rank, error: ErrorWords::from(&error) }
            }
            SupervisorEvent::Exited(exit) => Self::Exited(exit),
            SupervisorEvent::Stopped { generation } => Self::Stopped { generation },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rendezvous::message::{body_length, decode, encode};

    fn round<T: Serialize + serde::de::DeserializeOwned>(message: &T) -> T {
        let frame = encode(message).unwrap();
        let (prefix, body) = frame.split_first_chunk().unwrap();
        assert_eq!(body_length(*prefix).unwrap(), body.len());
        decode(body).unwrap()
    }

    #[test]
    fn an_error_keeps_what_is_decided_by_it() {
        for (number, kind) in
            [(2, io::ErrorKind::NotFound), (13, io::ErrorKind::PermissionDenied), (8, io::ErrorKind::Other)]
        {
            let error = io::Error::from_raw_os_error(number);
            let there = io::Error::from(round(&ErrorWords::from(&error)));
            assert_eq!((there.kind(), there.to_string()), (kind, error.to_string()));
        }
    }

    #[test]
    fn the_users_environment_is_never_shown() {
        let env = BTreeMap::from([("TOKEN".to_owned(), "hunter2".to_owned())]);
        let hello = FromRanks::Hello(Surroundings { env, cpus: vec![1], workdir: "/app".into() });
        assert!(!format!("{hello:?}").contains("hunter2"), "{hello:?}");
        assert_eq!(round(&hello), hello);
    }

    proptest! {
        #[test]
        fn launches_and_ends_are_read_back(
            (number, rank, pid) in (any::<u64>(), any::<u32>(), any::<u32>()),
            (name, value) in ("[^\0=]{1,20}", "[^\0]{0,50}"),
            cpus in proptest::collection::vec(any::<u32>(), 0..5),
        ) {
            use crate::rendezvous::message::ExitStatus;
            use crate::supervisor::{Container, RankProcess};
            let (generation, rank) = (Generation(number), Rank(rank));
            let process = RankProcess {
                rank,
                env: BTreeMap::from([(name, value.clone())]),
                cpus,
                log: "/slipway/logs/rank-0.log".into(),
            };
            let launch = ToRanks::Launch(Launch {
                generation,
                cookie: "u.1.2".into(),
                command: vec![value],
                workdir: "/".into(),
                ranks: vec![process],
            });
            prop_assert_eq!(round(&launch), launch);
            let started = FromRanks::Started { generation, pids: BTreeMap::from([(rank, pid)]) };
            prop_assert_eq!(round(&started), started);
            let exit = FromRanks::Exited(RankExit {
                generation,
                rank,
                status: ExitStatus::Signal { signal: 9 },
                stopped_by_us: true,
                log_start: number,
                container: Container::Other { oom_counted: true },
            });
            prop_assert_eq!(round(&exit), exit);
        }

        #[test]
        fn arbitrary_bytes_are_refused_and_nothing_else(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<FromRanks>(&bytes);
            let _ = decode::<ToRanks>(&bytes);
            if let Some((prefix, _)) = bytes.split_first_chunk() {
                let _ = body_length(*prefix);
            }
        }
    }
}
