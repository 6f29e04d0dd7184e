//! Which owner and which lane carries a request next (pure).
//!
//! A chunk's owner is the usable peer with the highest score by rendezvous hashing: every worker computes the same
//! without talking, and when one goes, only its chunks move. Servers come before workers, whatever the scores: as long as
//! one is usable, no worker reads the store for others. A peer that failed is asked for nothing until it has
//! answered a probe; probes are further apart each time, so no batch ever waits to find out whether it is back.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::dataset::ChunkId;

/// A peer is probed this long after its first failure: longer than a lost packet, shorter than a restart.
pub const COOLDOWN_MIN: Duration = Duration::from_secs(1);
/// And this long after the last probe at the most, so that a healed peer is found again within half a minute.
pub const COOLDOWN_MAX: Duration = Duration::from_secs(30);

/// Which lanes a job allows between workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransportPolicy {
    /// RDMA where it works, QUIC where it does not.
    #[default]
    PreferRdma,
    /// RDMA or nothing.
    RequireRdma,
    /// QUIC only.
    Quic,
}

/// What a QUIC lane takes for a full network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Congestion {
    /// Nothing but losses: a window that stands, for a network that belongs to the workers.
    #[default]
    Fixed,
    /// CUBIC (RFC 9438), for a network that is shared with others.
    Cubic,
}

/// A lane kind that a plane uses towards all peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaneKind {
    /// One-sided reads through a host channel adapter.
    Rdma,
    /// Streams of one QUIC connection.
    Quic,
}

/// The lane to use, and the reason when it is not the preferred one; none when the policy allows none that works.
#[must_use]
pub fn lane(policy: TransportPolicy, rdma: Result<(), &str>) -> Option<(LaneKind, Option<String>)> {
    match (policy, rdma) {
        (TransportPolicy::Quic, _) => Some((LaneKind::Quic, None)),
        (_, Ok(())) => Some((LaneKind::Rdma, None)),
        (TransportPolicy::PreferRdma, Err(reason)) => Some((LaneKind::Quic, Some(reason.to_owned()))),
        (TransportPolicy::RequireRdma, Err(_)) => None,
    }
}

/// One worker's data plane, by the worker's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerId(pub u32);

/// What a plane is to its peers. The larger one owns chunks before the smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Feeds consumers, and owns chunks while no server is usable.
    #[default]
    Worker,
    /// Has no consumers: it is there to own chunks.
    Server,
}

/// Who may own chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// The peer.
    pub id: PeerId,
    /// Whether it comes before others.
    pub role: Role,
}

/// The owner of a chunk among the usable peers, and as what it was chosen: a worker only when no server is usable. None only
/// when nobody is usable.
#[must_use]
pub fn owner(chunk: ChunkId, peers: &[Candidate], usable: impl Fn(PeerId) -> bool) -> Option<Candidate> {
    // Ties (one in 2^64) go to the higher number, so that all agree also then.
    let rank = |peer: &Candidate| (peer.role, score(chunk, peer.id), peer.id);
    peers.iter().copied().filter(|peer| usable(peer.id)).max_by_key(rank)
}

fn score(chunk: ChunkId, peer: PeerId) -> u64 {
    let both = u64::from(chunk.0) << 32 | u64::from(peer.0);
    xxh3_64(&both.to_le_bytes())
}

/// Which peers have failed lately. Times count from any fixed moment.
#[derive(Clone, Debug, Default)]
pub struct Health {
    resting: BTreeMap<PeerId, Rest>,
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Duration,
    failures: u32,
    /// A probe is under way.
    probing: bool,
}

impl Health {
    /// Whether requests may go to this peer.
    #[must_use]
    pub fn usable(&self, peer: PeerId) -> bool {
        !self.resting.contains_key(&peer)
    }

    /// Peers that are to be probed now, each once: whoever asks must say how it ended.
    pub fn probes(&mut self, now: Duration) -> Vec<PeerId> {
        let due = self.resting.iter_mut().filter(|(_, rest)| rest.until <= now && !rest.probing);
        due.map(|(peer, rest)| {
            rest.probing = true;
            *peer
        })
        .collect()
    }

    /// It answered: it is as good as new.
    pub fn succeeded(&mut self, peer: PeerId) {
        self.resting.remove(&peer);
    }

    /// It failed. Several failures during one rest (of requests that were under way together) count as one.
    pub fn failed(&mut self, peer: PeerId, now: Duration) {
        let failures = match self.resting.get(&peer) {
            Some(rest) if rest.until > now => return,
            Some(rest) => rest.failures.saturating_add(1),
            None => 1,
        };
        let rest = COOLDOWN_MIN.saturating_mul(1 << (failures - 1).min(16)).min(COOLDOWN_MAX);
        self.resting.insert(peer, Rest { until: now + rest, failures, probing: false });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(of: u32) -> Vec<Candidate> {
        (0..of).map(|id| Candidate { id: PeerId(id), role: Role::Worker }).collect()
    }

    #[test]
    fn owners_are_spread_and_only_the_lost_ones_chunks_move() {
        let all = peers(4);
        let mut owned = BTreeMap::<PeerId, u32>::new();
        for chunk in (0..4000).map(ChunkId) {
            let before = owner(chunk, &all, |_| true).unwrap().id;
            *owned.entry(before).or_default() += 1;
            let after = owner(chunk, &all, |peer| peer != PeerId(2)).unwrap().id;
            assert_ne!(after, PeerId(2));
            assert!(before == PeerId(2) || before == after);
        }
        assert!(owned.values().all(|&chunks| (850..1150).contains(&chunks)), "{owned:?}");
        assert_eq!(owner(ChunkId(1), &all, |_| false), None);
    }

    #[test]
    fn servers_own_all_chunks_while_one_of_them_is_usable() {
        let workers = peers(4);
        let mut all = workers.clone();
        all.extend([5, 6].map(|id| Candidate { id: PeerId(id), role: Role::Server }));
        let mut owned = BTreeMap::<PeerId, u32>::new();
        for chunk in (0..1000).map(ChunkId) {
            let both = owner(chunk, &all, |_| true).unwrap();
            assert_eq!(both.role, Role::Server);
            *owned.entry(both.id).or_default() += 1;
            let one = owner(chunk, &all, |peer| peer != PeerId(5)).unwrap();
            assert_eq!(one, Candidate { id: PeerId(6), role: Role::Server });
            let none = owner(chunk, &all, |peer| peer < PeerId(5)).unwrap();
            assert_eq!(Some(none), owner(chunk, &workers, |_| true), "as if there had never been servers");
        }
        assert!(owned.values().all(|&chunks| (400..600).contains(&chunks)), "{owned:?}");
    }

    #[test]
    fn a_failed_peer_is_probed_ever_more_seldom_and_used_once_it_answers() {
        let (mut health, peer) = (Health::default(), PeerId(1));
        let mut now = Duration::from_secs(100);
        for rest in [1, 2, 4, 8, 16, 30, 30].map(Duration::from_secs) {
            health.failed(peer, now);
            health.failed(peer, now);
            assert_eq!(health.probes(now + rest - Duration::from_millis(1)), []);
            now += rest;
            assert_eq!(health.probes(now), [peer]);
            assert_eq!(health.probes(now), [], "one probe at a time");
            assert!(!health.usable(peer), "no request finds out whether it is back");
        }
        health.succeeded(peer);
        assert!(health.usable(peer));
        health.failed(peer, now);
        assert_eq!(health.probes(now + COOLDOWN_MIN), [peer]);
    }

    #[test]
    fn a_downgrade_has_a_reason_and_a_requirement_is_kept() {
        use TransportPolicy::{PreferRdma, Quic, RequireRdma};
        assert_eq!(lane(Quic, Ok(())), Some((LaneKind::Quic, None)));
        assert_eq!(lane(PreferRdma, Ok(())), Some((LaneKind::Rdma, None)));
        assert_eq!(lane(PreferRdma, Err("no device")), Some((LaneKind::Quic, Some("no device".to_owned()))));
        assert_eq!(lane(RequireRdma, Err("no device")), None);
    }
}
