//! Transfers in virtual time, with owners that fail in every way, by seed.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::*;
use crate::select::Role;

const ME: PeerId = PeerId(0);

struct Random {
    seed: u64,
    drawn: u64,
}

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.drawn += 1;
        xxh3_64_with_seed(&self.drawn.to_le_bytes(), self.seed) % bound
    }
}

fn peers(of: u32) -> Vec<Candidate> {
    (0..of).map(|id| Candidate { id: PeerId(id), role: Role::Worker }).collect()
}

/// One whole transfer; returns what it came to and when.
fn simulate(seed: u64) -> (Verdict, Duration) {
    let mut random = Random { seed, drawn: 0 };
    let mut peers = peers(u32::try_from(1 + random.below(5)).unwrap());
    for peer in peers.iter_mut().skip(1) {
        peer.role = if random.below(3) == 0 { Role::Server } else { Role::Worker };
    }
    let chunks = 1 + random.below(40);
    let trouble = random.below(60);
    let dead = PeerId(u32::try_from(1 + random.below(5)).unwrap());
    let mut transfer = Transfer::new((0..u32::try_from(chunks).unwrap()).map(ChunkId));
    let mut health = Health::default();
    let mut done = vec![0; usize::try_from(chunks).unwrap()];
    let mut under_way: Vec<(Duration, Ask)> = Vec::new();
    let mut now = Duration::ZERO;
    for _ in 0..10_000 {
        for peer in health.probes(now) {
            match random.below(2) {
                0 if peer != dead => health.succeeded(peer),
                _ => health.failed(peer, now),
            }
        }
        for ask in transfer.asks(ME, &peers, &health, now) {
            assert!(ask.owner == ME || health.usable(ask.owner));
            assert!(
                ask.parts.iter().all(|part| under_way.iter().all(|(_, other)| !other.parts.contains(part)))
            );
            under_way.push((now + Duration::from_millis(1 + random.below(30)), ask));
        }
        if transfer.verdict() != Verdict::Pending {
            break;
        }
        let next = under_way.iter().map(|(at, _)| *at).min();
        now = now.max(
            next.into_iter()
                .chain(transfer.next_due())
                .min()
                .expect("a pending transfer waits for something"),
        );
        let (arrived, waiting): (Vec<_>, _) = under_way.into_iter().partition(|(at, _)| *at <= now);
        under_way = waiting;
        for (_, ask) in arrived {
            for part in ask.parts {
                let failure = match random.below(100) {
                    _ if ask.owner == dead => Failure::Gone,
                    roll if roll >= trouble => {
                        done[part] += 1;
                        transfer.done(part);
                        health.succeeded(ask.owner);
                        continue;
                    }
                    roll if roll % 4 == 0 => Failure::Early { retry_after: Duration::from_millis(50) },
                    roll if roll % 4 == 1 && ask.owner != ME => Failure::Gone,
                    roll if roll % 4 == 2 => Failure::Corrupt { sample: Some(1) },
                    _ => Failure::Store { reason: fault::SHORT_READ, message: String::new() },
                };
                transfer.failed(part, failure, &mut health, now);
            }
        }
    }
    if transfer.verdict() == Verdict::Done {
        assert!(done.iter().all(|&times| times == 1), "seed {seed}: each part comes once: {done:?}");
    }
    (transfer.verdict(), now)
}

#[test]
fn every_transfer_ends_in_bounded_time_and_each_part_comes_once() {
    let mut outcomes = [0, 0];
    for seed in 0..2000 {
        let (verdict, took) = simulate(seed);
        match verdict {
            Verdict::Done => outcomes[0] += 1,
            Verdict::GaveUp { .. } => outcomes[1] += 1,
            other => panic!("seed {seed}: {other:?} after {took:?}"),
        }
        assert!(took < Duration::from_secs(60), "seed {seed}: {took:?}");
    }
    assert!(outcomes.iter().all(|&count| count > 100), "both ends are reached: {outcomes:?}");
}

#[test]
fn the_next_owner_is_asked_at_once_and_the_failed_one_rests() {
    let (peers, mut health, now) = (peers(3), Health::default(), Duration::from_secs(5));
    let chunk =
        (0..).map(ChunkId).find(|&chunk| owner(chunk, &peers, |_| true).unwrap().id == PeerId(2)).unwrap();
    let mut transfer = Transfer::new([chunk]);
    let first = transfer.asks(ME, &peers, &health, now);
    assert_eq!(first, [Ask { owner: PeerId(2), refresh: false, parts: vec![0] }]);
    assert_eq!(transfer.asks(ME, &peers, &health, now), []);
    transfer.failed(0, Failure::Gone, &mut health, now);
    let second = transfer.asks(ME, &peers, &health, now);
    assert_eq!(second[0].owner, owner(chunk, &peers, |peer| peer != PeerId(2)).unwrap().id);
    transfer.done(0);
    assert_eq!(transfer.verdict(), Verdict::Done);
}

#[test]
fn workers_are_asked_only_when_every_server_has_failed() {
    let (mut peers, mut health, now) = (peers(4), Health::default(), Duration::from_secs(5));
    peers[2].role = Role::Server;
    peers[3].role = Role::Server;
    let servers = [PeerId(2), PeerId(3)];
    let mut transfer = Transfer::new((0..64).map(ChunkId));
    let first = transfer.asks(ME, &peers, &health, now);
    assert_eq!(first.iter().map(|ask| ask.owner).collect::<Vec<_>>(), servers);
    first[0].parts.iter().for_each(|part| transfer.failed(*part, Failure::Gone, &mut health, now));
    let second = transfer.asks(ME, &peers, &health, now);
    assert_eq!(second.iter().map(|ask| ask.owner).collect::<Vec<_>>(), [PeerId(3)], "at once");
    let parts = first[1].parts.iter().chain(&second[0].parts);
    parts.for_each(|part| transfer.failed(*part, Failure::Gone, &mut health, now));
    let third = transfer.asks(ME, &peers, &health, now + BACKOFF_MAX);
    assert_eq!(third.iter().map(|ask| ask.owner).collect::<Vec<_>>(), [PeerId(0), PeerId(1)]);
    health.succeeded(PeerId(2));
    let mut later = Transfer::new((0..64).map(ChunkId));
    let asks = later.asks(ME, &peers, &health, now);
    assert_eq!(asks.iter().map(|ask| ask.owner).collect::<Vec<_>>(), [PeerId(2)], "one is back");
}

#[test]
fn an_owner_that_never_enters_does_not_use_all_attempts_up() {
    let (mut peers, mut health, mut now) = (peers(2), Health::default(), Duration::ZERO);
    peers[1].role = Role::Server;
    let mut transfer = Transfer::new([ChunkId(0)]);
    let early = Failure::Early { retry_after: Duration::from_millis(50) };
    for _ in 0..EARLY_MAX {
        assert_eq!(transfer.asks(ME, &peers, &health, now)[0].owner, PeerId(1));
        transfer.failed(0, early.clone(), &mut health, now);
        now += BACKOFF_MAX;
    }
    assert_eq!(transfer.asks(ME, &peers, &health, now)[0].owner, ME);
    transfer.done(0);
    assert_eq!(transfer.verdict(), Verdict::Done);
}

#[test]
fn corrupt_bytes_are_asked_for_once_more_with_suspicion() {
    let (peers, mut health, now) = (peers(1), Health::default(), Duration::ZERO);
    let mut transfer = Transfer::new([ChunkId(7), ChunkId(8)]);
    assert_eq!(transfer.asks(ME, &peers, &health, now)[0].parts, [0, 1]);
    transfer.done(1);
    transfer.failed(0, Failure::Corrupt { sample: Some(3) }, &mut health, now);
    let again = transfer.asks(ME, &peers, &health, now);
    assert_eq!(again, [Ask { owner: ME, refresh: true, parts: vec![0] }]);
    transfer.failed(0, Failure::Corrupt { sample: Some(3) }, &mut health, now);
    let failure = Failure::Corrupt { sample: Some(3) };
    assert_eq!(transfer.verdict(), Verdict::GaveUp { part: 0, failure });
    assert_eq!(transfer.asks(ME, &peers, &health, now), [], "what is over asks no more");
}

#[test]
fn an_owner_that_refuses_for_good_is_a_fault_at_once() {
    let (peers, mut health) = (peers(2), Health::default());
    let mut transfer = Transfer::new((0..64).map(ChunkId));
    let part = transfer.asks(ME, &peers, &health, Duration::ZERO)[1].parts[0];
    transfer.failed(part, Failure::Stranger, &mut health, Duration::ZERO);
    assert_eq!(transfer.verdict(), Verdict::GaveUp { part, failure: Failure::Stranger });
    assert_eq!(Failure::Stranger.reason(), fault::PEER_REFUSED);
}

#[test]
fn a_fenced_transfer_is_over_without_a_fault() {
    let (peers, mut health) = (peers(2), Health::default());
    let mut transfer = Transfer::new((0..64).map(ChunkId));
    let asks = transfer.asks(ME, &peers, &health, Duration::ZERO);
    transfer.failed(asks[1].parts[0], Failure::Fenced, &mut health, Duration::ZERO);
    assert_eq!(transfer.verdict(), Verdict::Fenced);
    assert!(health.usable(PeerId(1)), "a newer peer is not a broken one");
}
