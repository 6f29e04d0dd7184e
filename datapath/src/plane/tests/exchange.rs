//! Several planes: every chunk is read once by its owner, whatever fails.

use std::collections::BTreeMap;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::trainer::{Content, Trainer};
use super::*;

/// Bytes of a chunk of [`small`].
const CHUNK_BYTES: u64 = 8 * 700;

fn consume(name: String) -> JoinHandle<Vec<Content>> {
    spawn_blocking(move || Trainer::attach(&name).consume())
}

/// Takes a feed's events until it has ended; its digest by step.
pub(super) fn digests(mut feed: Feed) -> JoinHandle<BTreeMap<u64, OrderDigest>> {
    tokio::spawn(async move {
        let mut digests = BTreeMap::new();
        loop {
            match timeout(HANG, feed.events.recv()).await.expect("an event comes") {
                Some(FeedEvent::Consumed { step, digest, .. }) => drop(digests.insert(step, digest)),
                Some(FeedEvent::Ended) | None => return digests,
                Some(FeedEvent::Fault(fault)) => panic!("{fault:?}"),
                Some(_) => {}
            }
        }
    })
}

/// Checks that the consumers' batches together are exactly the order's.
pub(super) fn check(dataset: &Dataset, order: &Order, batches: &[Vec<Content>], steps: u64) {
    let per_epoch = order.steps_per_epoch();
    for step in 0..steps {
        let expected = order.epoch(step / per_epoch).step(step % per_epoch);
        let at = usize::try_from(step).unwrap();
        let delivered: Vec<_> = batches.iter().flat_map(|batches| &batches[at].samples).collect();
        assert_eq!(delivered.len(), expected.len());
        for ((id, bytes), placed) in delivered.into_iter().zip(expected) {
            assert_eq!(*id, placed.sample.0, "step {step}, position {}", placed.position);
            assert_eq!(bytes, &dataset.samples[usize::try_from(*id).unwrap()]);
        }
    }
}

pub(super) fn sum(group: &Group) -> Counters {
    let mut sum = Counters::default();
    group.planes.iter().for_each(|plane| sum += plane.counters());
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_of_planes_delivers_the_same_and_reads_once() {
    let mut all_digests = Vec::new();
    for of in 1..=4 {
        let dataset = small();
        let order = order(&dataset, 10, Remainder::Pad);
        let group = Group::start(&dataset, &order, of, 1 << 20).await;
        let steps = order.steps_per_epoch();
        let (mut trainers, mut feeds) = (Vec::new(), Vec::new());
        for id in 0..of {
            let config = group.feed_config(id, 1, 1);
            let name = config.socket.clone();
            feeds.push(digests(group.planes[usize::try_from(id).unwrap()].feed(config).await.unwrap()));
            trainers.push(consume(name));
        }
        let mut batches = Vec::new();
        for trainer in trainers {
            batches.push(timeout(HANG, trainer).await.expect("the trainer ends").unwrap());
        }
        check(&dataset, &order, &batches, steps);
        let mut by_step = BTreeMap::<u64, OrderDigest>::new();
        for feed in feeds {
            for (step, digest) in feed.await.unwrap() {
                by_step.entry(step).or_default().merge(digest);
            }
        }
        all_digests.push(by_step);
        // An owner counts what it has sent, which may be a moment after it has come.
        let counted = async {
            loop {
                let counters = sum(&group);
                if counters.retries > 0 || counters.quic_in_bytes == counters.quic_out_bytes {
                    return counters;
                }
                tokio::task::yield_now().await;
            }
        };
        let counters = timeout(HANG, counted).await.expect("what came was sent");
        // Once, unless a loaded machine made somebody ask for a chunk again elsewhere: then that owner reads it too.
        let again = counters.retries * CHUNK_BYTES;
        let read = dataset.stored_bytes()..=dataset.stored_bytes() + again;
        assert!(read.contains(&counters.store_bytes), "{of} planes: {counters:?}");
        assert_eq!(counters.quic_in_bytes > 0, of > 1);
        for plane in group.planes {
            timeout(HANG, plane.close()).await.expect("a plane closes");
        }
    }
    assert!(
        all_digests.windows(2).all(|pair| pair[0] == pair[1]),
        "the digest does not depend on the planes"
    );
    assert_eq!(all_digests[0].len(), 21);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_vanishes_is_replaced() {
    let size = Size { samples: 800, sample_bytes: 500, samples_per_chunk: 8, chunks_per_shard: 20 };
    let dataset = Dataset::records(size);
    let order = order(&dataset, 10, Remainder::Drop);
    let mut group = Group::start(&dataset, &order, 3, 1 << 20).await;
    let steps = order.steps_per_epoch();
    let (mut trainers, mut feeds) = (Vec::new(), Vec::new());
    // Two consumers; the third plane only owns.
    for id in 0..2 {
        let mut config = group.feed_config(id, 1, 1);
        config.consumer.of = NonZeroU32::new(2).unwrap();
        let name = config.socket.clone();
        feeds.push(digests(group.planes[usize::try_from(id).unwrap()].feed(config).await.unwrap()));
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let trainer = spawn_blocking(move || {
            let trainer = Trainer::attach(&name);
            let mut batches = Vec::new();
            for _ in 0..20 {
                let descriptor = trainer.descriptor();
                batches.push(trainer.content(descriptor));
                trainer.say(1, descriptor);
            }
            gone.recv().unwrap();
            batches.extend(trainer.consume());
            batches
        });
        trainers.push((trainer, go));
    }
    while group.planes[2].counters().quic_out_bytes == 0 {
        tokio::task::yield_now().await;
    }
    timeout(HANG, group.planes.pop().unwrap().close()).await.expect("a plane closes");
    let mut batches = Vec::new();
    for (_, go) in &trainers {
        go.send(()).unwrap();
    }
    for (trainer, _) in trainers {
        batches.push(timeout(HANG, trainer).await.expect("the trainer ends").unwrap());
    }
    check(&dataset, &order, &batches, steps);
    assert!(sum(&group).retries > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_fence_ends_the_feeds_and_refuses_the_older() {
    let dataset = small();
    let order = order(&dataset, 10, Remainder::Drop);
    let group = Group::start(&dataset, &order, 2, 1 << 20).await;
    let mut old = group.planes[0].feed(group.feed_config(0, 1, 100)).await.unwrap();
    group.enter(0, 2).await;
    while let Some(event) = timeout(HANG, old.events.recv()).await.expect("the feed ends") {
        assert!(!matches!(event, FeedEvent::Fault(_)), "{event:?}");
    }
    let refused = group.planes[0].feed(group.feed_config(0, 1, 1)).await;
    assert!(matches!(refused, Err(PlaneError::Fenced { asked: 1, current: Some(2) })));
    // Plane 1 is still in fence 1: plane 0 refuses it for ever, and itself has to wait for plane 1.
    let answered = || [group.planes[0].counters().quic_out_bytes, group.planes[1].counters().quic_in_bytes];
    let before = answered();
    let config = group.feed_config(1, 1, 1);
    let name = config.socket.clone();
    let _stale = group.planes[1].feed(config).await.unwrap();
    let stale = spawn_blocking(move || Trainer::attach(&name).packet());
    let config = group.feed_config(0, 2, 1);
    let name = config.socket.clone();
    let fed = digests(group.planes[0].feed(config).await.unwrap());
    let mine = consume(name);
    while group.planes.iter().any(|plane| plane.counters().retries < 3) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(before, answered(), "nothing of fence 1 was answered by fence 2");
    group.enter(1, 1).await;
    group.enter(1, 2).await;
    let config = group.feed_config(1, 2, 1);
    let name = config.socket.clone();
    let fed_too = digests(group.planes[1].feed(config).await.unwrap());
    let theirs = consume(name);
    let batches =
        [timeout(HANG, mine).await.unwrap().unwrap(), timeout(HANG, theirs).await.unwrap().unwrap()];
    check(&dataset, &order, &batches, order.steps_per_epoch());
    assert_eq!((fed.await.unwrap().len(), fed_too.await.unwrap().len()), (20, 20));
    assert_eq!(timeout(HANG, stale).await.unwrap().unwrap(), b"", "the old feed's trainer sees its end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planes_with_different_data_say_so() {
    let dataset = small();
    let order = order(&dataset, 10, Remainder::Drop);
    let mut group = Group::start(&dataset, &order, 2, 1 << 20).await;
    let mut manifest = Manifest::clone(&dataset.manifest);
    manifest.digest = crate::dataset::DatasetDigest([8; 32]);
    group.planes[0].manifest = Arc::new(manifest);
    let mut feed = group.planes[0].feed(group.feed_config(0, 1, 1)).await.unwrap();
    let FeedEvent::Fault(fault) = timeout(HANG, feed.events.recv()).await.unwrap().unwrap() else { panic!() };
    assert_eq!(fault.reason, crate::fault::PEER_REFUSED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_is_corrupt_at_its_owner_is_named_at_the_reader() {
    let dataset = small();
    let order = order(&dataset, 10, Remainder::Drop);
    let group = Group::start(&dataset, &order, 2, 1 << 20).await;
    let remote = |chunk: &u32| {
        let chunk = crate::dataset::ChunkId(*chunk);
        let candidate = |id| crate::select::Candidate { id: PeerId(id), role: Role::Worker };
        crate::select::owner(chunk, &[0, 1].map(candidate), |_| true).unwrap().id == PeerId(1)
    };
    let chunk = (0..20).find(remote).unwrap();
    for at in 0..dataset.manifest.chunks()[usize::try_from(chunk).unwrap()].samples {
        dataset.corrupt(chunk, at * 700 + 3);
    }
    let config = group.feed_config(0, 1, 1);
    let name = config.socket.clone();
    let mut feed = group.planes[0].feed(config).await.unwrap();
    let trainer = spawn_blocking(move || {
        let trainer = Trainer::attach(&name);
        loop {
            let descriptor = trainer.descriptor();
            if descriptor.kind != 1 {
                return descriptor.kind;
            }
            trainer.say(1, descriptor);
        }
    });
    let fault = loop {
        if let FeedEvent::Fault(fault) = timeout(HANG, feed.events.recv()).await.unwrap().unwrap() {
            break fault;
        }
    };
    assert_eq!((fault.chunk, fault.reason.as_str()), (chunk, crate::fault::CRC_MISMATCH));
    assert!(fault.sample.is_some());
    assert_eq!(timeout(HANG, trainer).await.unwrap().unwrap(), 3);
    assert!(group.planes[1].counters().store_reads > 0);
}
