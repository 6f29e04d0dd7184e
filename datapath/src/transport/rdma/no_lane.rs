//! In place of the lane over verbs, in builds without it: there is never an adapter, so nothing else ever runs.

use std::sync::Arc;
use std::time::Duration;

use quinn::Connection;

use super::choose::{Choice, DevicesWanted};
use super::comeback::Admission;
use super::endpoint::Endpoint;
use super::reason::Reason;
use crate::cache::Held;
use crate::transport::quic::client::Asking;
use crate::transport::{Outcome, Part};
use crate::wire::Lease;

/// None.
#[derive(Debug)]
pub(crate) enum Adapter {}

/// Why there is no lane on this host.
#[derive(Debug)]
pub(crate) struct Absence {
    pub(crate) reason: Reason,
    pub(crate) words: String,
}

fn not_built() -> Absence {
    Absence { reason: Reason::NotBuilt, words: "this build has no RDMA lane".to_owned() }
}

/// There are none for this build.
pub(crate) fn devices(_wanted: &DevicesWanted) -> Result<Choice, Absence> {
    Err(not_built())
}

impl Adapter {
    pub(crate) fn open(_names: &[String]) -> Result<Arc<Self>, Absence> {
        Err(not_built())
    }

    pub(crate) fn device(&self) -> &str {
        match *self {}
    }

    pub(crate) fn answer(&self, _peer: &Endpoint) -> Result<(Answering, Endpoint), Reason> {
        match *self {}
    }

    #[expect(clippy::unused_async, reason = "as the lane that is there")]
    pub(crate) async fn lend(&self, _held: Held) -> Result<(Lending, Lease), Reason> {
        match *self {}
    }
}

/// Nobody answers.
#[derive(Debug)]
pub(crate) enum Answering {}

/// Nothing is lent.
#[derive(Debug)]
pub(crate) enum Lending {}

/// Of no use.
#[derive(Debug, Default)]
pub(crate) struct Lane {}

impl Lane {
    #[expect(clippy::unused_async, reason = "as the lane that is there")]
    pub(crate) async fn fetch(
        &self,
        adapter: &Arc<Adapter>,
        _connection: &Connection,
        _asking: &Asking<'_>,
        _parts: &mut [Part<'_>],
    ) -> Vec<Option<Outcome>> {
        match **adapter {}
    }

    pub(crate) fn admit(&self, _now: Duration) -> Admission {
        Admission::Other
    }
}
