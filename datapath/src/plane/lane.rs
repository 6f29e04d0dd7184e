//! A lane to one peer, asked directly and not for a batch: what a bench or a test of the transport alone needs.

use std::sync::Arc;

use super::Plane;
use crate::loader::fill::Source;
use crate::membership::Member;
use crate::select::PeerId;
use crate::transport::quic::client::Link;
use crate::transport::{Outcome, Part};

/// The lanes to one peer of the membership that a plane was in when it was asked for.
pub struct PeerLane {
    source: Source,
    peer: PeerId,
}

impl Plane {
    /// The lane to a peer; none without a membership, or when this plane is the peer, or does not know it.
    #[must_use]
    pub fn lane(&self, peer: PeerId) -> Option<PeerLane> {
        let member = self.member.borrow().clone()?;
        member.roster().links.contains_key(&peer).then(|| PeerLane { source: self.source(&member), peer })
    }

    pub(super) fn source(&self, member: &Arc<Member>) -> Source {
        Source {
            manifest: Arc::clone(&self.manifest),
            cache: self.cache.clone(),
            counters: Arc::clone(&self.counters),
            lane: Arc::clone(&self.lane),
            rails: self.rails.as_ref().ok().map(Arc::clone),
            member: Arc::clone(member),
            epoch: self.started,
        }
    }
}

impl PeerLane {
    /// Asks the peer for all parts in one request, which must fit into a frame ([`crate::wire::RANGES_MAX`] and
    /// [`crate::wire::GROUPS_MAX`]). Connects at the first call. One outcome for each part, in their order; nothing is
    /// asked again.
    pub async fn fetch(&self, parts: &mut [Part<'_>]) -> Vec<Outcome> {
        let Some(link) = self.link() else { return Vec::new() };
        link.fetch(&self.source.asking(0, false), parts).await
    }

    /// What quinn has counted on the connection: datagrams and bytes each way, losses, the packet size found for what
    /// this side sends. None without a connection.
    pub async fn stats(&self) -> Option<quinn::ConnectionStats> {
        self.link()?.stats().await
    }

    fn link(&self) -> Option<Arc<Link>> {
        self.source.member.roster().links.get(&self.peer).cloned()
    }
}

impl std::fmt::Debug for PeerLane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerLane").field("peer", &self.peer).finish_non_exhaustive()
    }
}
