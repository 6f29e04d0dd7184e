//! Who exchanges chunks with whom: one membership after the other, each with a larger fence.
//!
//! Whatever works for a membership holds its [`Member`]. When a newer one is entered, the older one's feeds are
//! stopped, its connections closed, and its requests refused: nothing of it speaks any more.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};

use crate::select::{Health, PeerId};
use crate::transport::quic::client::Link;

/// One worker's data plane, seen from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The worker.
    pub id: PeerId,
    /// Where its plane listens.
    pub addr: SocketAddr,
    /// The name in its certificate.
    pub server_name: String,
    /// SHA-256 of its certificate.
    pub fingerprint: [u8; 32],
}

/// A generation's data planes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The generation's number: only grows.
    pub fence: u64,
    /// This plane.
    pub me: PeerId,
    /// All planes, this one included: the owners of chunks.
    pub peers: Vec<Peer>,
}

/// A membership while it lasts.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) fence: u64,
    pub(crate) me: PeerId,
    /// All of them, ascending.
    pub(crate) ids: Vec<PeerId>,
    pub(crate) peers: BTreeMap<PeerId, Peer>,
    pub(crate) links: BTreeMap<PeerId, Link>,
    /// The feeds of this membership; none once it has ended.
    feeds: Mutex<Option<JoinSet<()>>>,
    health: Mutex<Health>,
    positions: Mutex<Positions>,
}

#[derive(Debug, Default)]
struct Positions {
    of: u32,
    steps: BTreeMap<u32, u64>,
}

impl Member {
    pub(crate) fn new(membership: Membership) -> Self {
        let peers: BTreeMap<_, _> = membership.peers.into_iter().map(|peer| (peer.id, peer)).collect();
        let others = peers.values().filter(|peer| peer.id != membership.me);
        Self {
            fence: membership.fence,
            me: membership.me,
            ids: peers.keys().copied().collect(),
            links: others.map(|peer| (peer.id, Link::new(peer.clone()))).collect(),
            peers,
            feeds: Mutex::new(Some(JoinSet::new())),
            health: Mutex::default(),
            positions: Mutex::default(),
        }
    }

    /// Runs something short on the peers' health.
    pub(crate) fn health<T>(&self, work: impl FnOnce(&mut Health) -> T) -> T {
        work(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether this certificate belongs to that peer.
    pub(crate) fn knows(&self, peer: PeerId, fingerprint: [u8; 32]) -> bool {
        self.peers.get(&peer).is_some_and(|known| known.fingerprint == fingerprint)
    }

    /// A consumer has consumed everything before `step`. Returns the first step that some consumer has not consumed,
    /// once all of them have been heard of.
    pub(crate) fn position(&self, consumer: u32, of: u32, step: u64) -> Option<u64> {
        let mut positions = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        if consumer >= of || (positions.of != 0 && positions.of != of) {
            return None;
        }
        positions.of = of;
        let known = positions.steps.entry(consumer).or_default();
        *known = (*known).max(step);
        let all = u32::try_from(positions.steps.len()).is_ok_and(|known| known == of);
        if all { positions.steps.values().copied().min() } else { None }
    }

    /// Starts a feed; none when the membership has ended meanwhile.
    pub(crate) fn spawn(&self, feed: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        let feeds = feeds.as_mut()?;
        while feeds.try_join_next().is_some() {}
        Some(feeds.spawn(feed))
    }

    /// Stops the feeds, waits until they have stopped, and closes the connections.
    pub(crate) async fn end(&self) {
        let feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut feeds) = feeds {
            feeds.shutdown().await;
        }
        for link in self.links.values() {
            link.close().await;
        }
    }

    /// Stops the feeds without waiting for them.
    pub(crate) fn stop(&self) {
        drop(self.feeds.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// How long a fenced request should wait when this side is the older one.
    pub(crate) const EARLY_RETRY: Duration = Duration::from_millis(50);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_slowest_consumers_once_all_are_known() {
        let member = Member::new(Membership { fence: 1, me: PeerId(0), peers: Vec::new() });
        assert_eq!(member.position(0, 2, 5), None);
        assert_eq!(member.position(1, 2, 3), Some(3));
        assert_eq!(member.position(1, 2, 9), Some(5));
        assert_eq!(member.position(0, 2, 4), Some(5), "a position never goes back");
        assert_eq!(member.position(2, 2, 9), None, "there is no third");
        assert_eq!(member.position(0, 3, 9), None, "another count is another membership's");
    }
}
