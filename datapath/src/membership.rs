//! Who exchanges chunks with whom: one membership after the other, each with a larger fence.
//!
//! Whatever works for a membership holds its [`Member`]. When a newer one is entered, the older one's feeds are
//! stopped, its connections closed, and its requests refused: nothing of it speaks any more. While one lasts, peers may come
//! and go ([`Member::meet`]): whoever asks takes the [`Roster`] of that moment, and who owned a chunk before does not matter.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use crate::fault;
use crate::select::{Candidate, Health, PeerId, Role};
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
    /// Whether it owns chunks before others.
    pub role: Role,
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
    /// The number of this list of peers, for [`crate::plane::Plane::meet`].
    pub roster: u64,
}

/// A membership while it lasts.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) fence: u64,
    pub(crate) me: PeerId,
    roster: RwLock<Arc<Roster>>,
    /// There are servers, and none can be reached.
    without_servers: AtomicBool,
    /// The feeds of this membership; none once it has ended.
    feeds: Mutex<Option<JoinSet<()>>>,
    health: Mutex<Health>,
    positions: Mutex<Positions>,
    /// Told when the floor has moved or the roster has changed; one task waits.
    moved: Notify,
}

/// The peers at one moment.
#[derive(Debug)]
pub(crate) struct Roster {
    number: u64,
    /// Who may own chunks, ascending.
    pub(crate) candidates: Vec<Candidate>,
    peers: BTreeMap<PeerId, Peer>,
    pub(crate) links: BTreeMap<PeerId, Arc<Link>>,
}

#[derive(Debug, Default)]
struct Positions {
    of: u32,
    steps: BTreeMap<u32, u64>,
    floor: Option<u64>,
}

impl Roster {
    /// Which list of peers it is.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Links to the same process at the same place go on.
    fn new(number: u64, me: PeerId, peers: Vec<Peer>, before: Option<&Self>) -> Self {
        let peers: BTreeMap<_, _> = peers.into_iter().map(|peer| (peer.id, peer)).collect();
        let link = |peer: &Peer| {
            let kept = before.filter(|before| before.peers.get(&peer.id) == Some(peer));
            let kept = kept.and_then(|before| before.links.get(&peer.id).cloned());
            kept.unwrap_or_else(|| Arc::new(Link::new(peer.clone())))
        };
        let links = peers.values().filter(|peer| peer.id != me).map(|peer| (peer.id, link(peer))).collect();
        let candidates = peers.values().map(|peer| Candidate { id: peer.id, role: peer.role }).collect();
        Self { number, candidates, peers, links }
    }

    /// Links of `self` that `next` has not.
    fn left_by(&self, next: &Self) -> Vec<Arc<Link>> {
        let stays =
            |id: &PeerId, link: &Arc<Link>| next.links.get(id).is_some_and(|other| Arc::ptr_eq(link, other));
        self.links.iter().filter(|(id, link)| !stays(id, link)).map(|(_, link)| Arc::clone(link)).collect()
    }
}

impl Member {
    pub(crate) fn new(membership: Membership) -> Self {
        let Membership { fence, me, peers, roster } = membership;
        Self {
            fence,
            me,
            roster: RwLock::new(Arc::new(Roster::new(roster, me, peers, None))),
            without_servers: AtomicBool::new(false),
            feeds: Mutex::new(Some(JoinSet::new())),
            health: Mutex::default(),
            positions: Mutex::default(),
            moved: Notify::new(),
        }
    }

    /// The peers of this moment.
    pub(crate) fn roster(&self) -> Arc<Roster> {
        Arc::clone(&self.roster.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Goes on with these peers; the links that are no longer used, which are to be closed. An older list changes nothing.
    pub(crate) fn meet(&self, number: u64, peers: Vec<Peer>) -> Vec<Arc<Link>> {
        let mut roster = self.roster.write().unwrap_or_else(PoisonError::into_inner);
        if number <= roster.number {
            return Vec::new();
        }
        let next = Arc::new(Roster::new(number, self.me, peers, Some(&roster)));
        let before = std::mem::replace(&mut *roster, Arc::clone(&next));
        drop(roster);
        // What failed before was said of another process.
        let fresh = next
            .links
            .iter()
            .filter(|(id, link)| before.links.get(id).is_none_or(|other| !Arc::ptr_eq(link, other)));
        self.health(|health| {
            let gone = before.links.keys().filter(|id| !next.links.contains_key(id));
            fresh.map(|(id, _)| id).chain(gone).for_each(|id| health.succeeded(*id));
        });
        self.moved.notify_one();
        before.left_by(&next)
    }

    /// Says so, once, when no server of the roster can be reached any more, and when one can again.
    pub(crate) fn note_servers(&self, roster: &Roster) {
        let servers = || roster.candidates.iter().filter(|peer| peer.role == Role::Server);
        let without =
            servers().next().is_some() && self.health(|health| servers().all(|peer| !health.usable(peer.id)));
        if self.without_servers.swap(without, Ordering::Relaxed) == without {
            return;
        }
        if without {
            tracing::warn!(
                reason = fault::SERVERS_GONE,
                fence = self.fence,
                "no data server can be reached: workers read the store themselves"
            );
        } else {
            tracing::info!(fence = self.fence, "data servers own the chunks again");
        }
    }

    /// Runs something short on the peers' health.
    pub(crate) fn health<T>(&self, work: impl FnOnce(&mut Health) -> T) -> T {
        work(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether this certificate belongs to that peer.
    pub(crate) fn knows(&self, peer: PeerId, fingerprint: [u8; 32]) -> bool {
        self.roster().peers.get(&peer).is_some_and(|known| known.fingerprint == fingerprint)
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
        let floor = if all { positions.steps.values().copied().min() } else { None };
        if floor > positions.floor {
            positions.floor = floor;
            self.moved.notify_one();
        }
        floor
    }

    /// The first step that some consumer has not consumed; none before all of them have been heard of.
    pub(crate) fn floor(&self) -> Option<u64> {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner).floor
    }

    /// Waits until the floor or the roster has changed since the last call.
    pub(crate) async fn moved(&self) {
        self.moved.notified().await;
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
        for link in self.roster().links.values() {
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
        let member = member(Vec::new());
        assert_eq!(member.position(0, 2, 5), None);
        assert_eq!(member.floor(), None);
        assert_eq!(member.position(1, 2, 3), Some(3));
        assert_eq!(member.position(1, 2, 9), Some(5));
        assert_eq!(member.position(0, 2, 4), Some(5), "a position never goes back");
        assert_eq!(member.position(2, 2, 9), None, "there is no third");
        assert_eq!(member.position(0, 3, 9), None, "another count is another membership's");
        assert_eq!(member.floor(), Some(5));
    }

    fn member(peers: Vec<Peer>) -> Member {
        Member::new(Membership { fence: 1, me: PeerId(0), peers, roster: 1 })
    }

    fn peer(id: u32, port: u16, role: Role) -> Peer {
        let addr = ([127, 0, 0, 1], port).into();
        Peer { id: PeerId(id), addr, server_name: String::new(), fingerprint: [0; 32], role }
    }

    #[test]
    fn peers_come_and_go_and_the_others_connections_stay() {
        let (mine, other) = (peer(0, 1, Role::Worker), peer(1, 2, Role::Worker));
        let server = |port| peer(2, port, Role::Server);
        let member = member(vec![mine.clone(), other.clone(), server(3)]);
        let before = member.roster();
        member.health(|health| health.failed(PeerId(2), Duration::ZERO));
        assert!(member.meet(1, Vec::new()).is_empty(), "an old list changes nothing");
        assert_eq!(member.roster().candidates.len(), 3);

        let left = member.meet(2, vec![mine.clone(), other.clone(), server(4)]);
        let after = member.roster();
        assert!(Arc::ptr_eq(&before.links[&PeerId(1)], &after.links[&PeerId(1)]));
        assert!(left.len() == 1 && Arc::ptr_eq(&left[0], &before.links[&PeerId(2)]), "it is another process");
        assert!(member.health(|health| health.usable(PeerId(2))), "which has not failed");

        assert_eq!(member.meet(3, vec![mine, other]).len(), 1);
        assert!(member.knows(PeerId(1), [0; 32]) && !member.knows(PeerId(2), [0; 32]));
    }
}
