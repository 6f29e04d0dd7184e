//! In place of the lane over verbs, in builds without it: there are never rails, so nothing else ever runs.

use std::sync::Arc;
use std::time::Duration;

use quinn::Connection;

use super::choose::DevicesWanted;
use super::endpoint::Endpoint;
use super::reason::Reason;
use crate::cache::Held;
use crate::transport::quic::client::Asking;
use crate::transport::{Outcome, Part};
use crate::wire::Lease;

/// None.
#[derive(Debug)]
pub(crate) enum Rails {}

/// Why there is no lane on this host.
#[derive(Debug)]
pub(crate) struct Absence {
    pub(crate) reason: Reason,
    pub(crate) words: String,
}

impl Rails {
    pub(crate) fn open(_wanted: &DevicesWanted) -> Result<Arc<Self>, Absence> {
        Err(Absence { reason: Reason::NotBuilt, words: "this build has no RDMA lane".to_owned() })
    }

    pub(crate) fn devices(&self) -> String {
        match *self {}
    }

    #[expect(clippy::unused_async, reason = "as the lane that is there")]
    pub(crate) async fn answer(&self, _rail: u8, _peer: &Endpoint) -> Result<(Answering, Endpoint), Reason> {
        match *self {}
    }

    #[expect(clippy::unused_async, reason = "as the lane that is there")]
    pub(crate) async fn lend(&self, _rail: u8, _held: Held) -> Result<(Lending, Lease), Reason> {
        match *self {}
    }
}

/// Nobody answers.
#[derive(Debug)]
pub(crate) enum Answering {}

impl Answering {
    #[expect(clippy::unused_async, clippy::needless_pass_by_ref_mut, reason = "as the lane that is there")]
    pub(crate) async fn replaced(&mut self) {
        match *self {}
    }
}

/// Nothing is lent.
#[derive(Debug)]
pub(crate) enum Lending {}

/// Of no use.
#[derive(Debug, Default)]
pub(crate) struct Lane {}

/// Nothing is admitted.
#[derive(Debug)]
pub(crate) enum Admitted {}

impl Admitted {
    pub(crate) fn is_empty(&self) -> bool {
        match *self {}
    }
}

impl Lane {
    #[expect(clippy::unused_async, reason = "as the lane that is there")]
    pub(crate) async fn fetch(
        &self,
        rails: &Arc<Rails>,
        _connection: &Connection,
        _asking: &Asking<'_>,
        _admitted: &Admitted,
        _parts: &mut [Part<'_>],
    ) -> Vec<Option<Outcome>> {
        match **rails {}
    }

    pub(crate) fn close(&self) {}

    pub(crate) fn admit(&self, rails: &Rails, _now: Duration) -> Result<Admitted, Reason> {
        match *rails {}
    }
}
