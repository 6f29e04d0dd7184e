//! The worker's side of the data plane: one plane for its life, one feed per rank and generation.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use datapath::Counters;
use tokio::task::AbortHandle;

use super::preflight::fault;
use super::shell::Notes;
use crate::config::WorkerConfig;
use crate::rendezvous::message::{Assignment, PreflightFault};
use crate::units::Rank;

/// The open data plane.
#[derive(Debug)]
pub(super) struct DataSide {}

/// One rank's feed; dropping it ends the feed.
#[derive(Debug)]
pub(super) struct RankFeed {
    /// The abstract unix socket, without the leading NUL.
    pub(super) socket: String,
    task: AbortHandle,
}

impl Drop for RankFeed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl DataSide {
    /// Opens what the configuration names; none for a job without data.
    pub(super) async fn start(config: &WorkerConfig) -> Result<Option<Self>, PreflightFault> {
        match &config.data {
            None => Ok(None),
            Some(_) => Err(fault("data_unsupported", "this build cannot feed data".into(), "")),
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    pub(super) fn counters(&self) -> Counters {
        Counters::default()
    }

    /// Joins the others and opens the ranks' feeds, whose news go to `notes`.
    pub(super) async fn enter(
        &self,
        _assignment: &Assignment,
        _notes: &Notes,
    ) -> Result<BTreeMap<Rank, RankFeed>, PreflightFault> {
        Ok(BTreeMap::new())
    }

    pub(super) async fn close(self) {}
}
