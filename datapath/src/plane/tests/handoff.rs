//! One plane, one trainer: everything that goes over the socket.

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::trainer::{Descriptor, Trainer};
use super::*;
use crate::cache::need;
use crate::fault;

/// Something that no trainer may do, given the first descriptor.
type Wrong = &'static dyn Fn(&Trainer, Descriptor);

async fn event(feed: &mut Feed) -> FeedEvent {
    timeout(HANG, feed.events.recv()).await.expect("an event comes").expect("the feed runs")
}

/// Runs a trainer on its own thread, since its calls block.
async fn trainer<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    timeout(HANG, spawn_blocking(work)).await.expect("the trainer ends").unwrap()
}

async fn one(dataset: &Dataset, remainder: Remainder) -> Group {
    Group::start(dataset, &order(dataset, 10, remainder), 1, 1 << 20).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_epochs_of_each_format_arrive_in_order_and_are_acknowledged() {
    let size = Size { samples: 203, sample_bytes: 700, samples_per_chunk: 8, chunks_per_shard: 5 };
    for dataset in [Dataset::records(size), Dataset::fields(size)] {
        let group = one(&dataset, Remainder::Pad).await;
        let config = group.feed_config(0, 1, 2);
        let (name, steps) = (config.socket.clone(), config.end_step);
        let mut feed = group.planes[0].feed(config).await.unwrap();
        let consumed = tokio::spawn(async move {
            assert_eq!(event(&mut feed).await, FeedEvent::Attached { pid: 4321 });
            let (mut digests, mut samples) = (Vec::new(), 0);
            for expected in 0..steps {
                let FeedEvent::Consumed { step, digest, samples: real, .. } = event(&mut feed).await else {
                    panic!()
                };
                assert_eq!(step, expected);
                digests.push(digest);
                samples += real;
            }
            assert_eq!(event(&mut feed).await, FeedEvent::Ended);
            assert_eq!(event(&mut feed).await, FeedEvent::Detached);
            (digests, samples)
        });
        let (hello, batches) = trainer(move || {
            let trainer = Trainer::attach(&name);
            (trainer.hello.clone(), trainer.consume())
        })
        .await;
        assert_eq!(hello["extra"], "word");
        assert_eq!(
            (&hello["slots"], &hello["epochs"], &hello["global_batch"]),
            (&3.into(), &2.into(), &10.into())
        );
        assert_eq!((&hello["start_step"], &hello["end_step"]), (&0.into(), &steps.into()));
        assert_eq!(batches.len(), usize::try_from(steps).unwrap());
        let (digests, samples) = consumed.await.unwrap();
        assert_eq!(samples, 2 * 203);
        let per_epoch = group.order.steps_per_epoch();
        for (step, (batch, digest)) in (0..).zip(batches.iter().zip(digests)) {
            let expected = group.order.epoch(step / per_epoch).step(step % per_epoch);
            let mut expected_digest = OrderDigest::default();
            assert_eq!(batch.samples.len(), expected.len());
            for ((id, bytes), placed) in batch.samples.iter().zip(&expected) {
                assert_eq!(*id, placed.sample.0);
                assert_eq!(bytes, &dataset.samples[usize::try_from(*id).unwrap()]);
                expected_digest.add(step / per_epoch, step % per_epoch, placed.position, placed.sample);
            }
            assert_eq!(digest, expected_digest);
            let real = expected.iter().filter(|placed| !placed.padding).count();
            assert_eq!(usize::try_from(batch.header.real).unwrap(), real);
        }
        let counters = group.planes[0].counters();
        assert_eq!(counters.store_bytes, dataset.stored_bytes(), "the second epoch comes from the cache");
        assert_eq!(counters.batches, steps);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_trainer_stops_the_reading() {
    const CACHE: u64 = 10 * 8 * 700;
    let size = Size { samples: 2000, sample_bytes: 700, samples_per_chunk: 8, chunks_per_shard: 50 };
    let dataset = Dataset::records(size);
    let group = Group::start(&dataset, &order(&dataset, 10, Remainder::Drop), 1, CACHE).await;
    let config = group.feed_config(0, 1, 1);
    let name = config.socket.clone();
    let _feed = group.planes[0].feed(config).await.unwrap();
    let (_held, steps) = trainer(move || {
        let trainer = Trainer::attach(&name);
        let steps: Vec<_> = (0..3).map(|_| trainer.descriptor().step).collect();
        (trainer, steps)
    })
    .await;
    assert_eq!(steps, [0, 1, 2]);
    // Every slot is in the trainer's hands; read-ahead comes to rest when the cache is full of what is needed.
    let plane = &group.planes[0];
    let mut before = plane.counters();
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = plane.counters();
        if now == before {
            break;
        }
        before = now;
    }
    assert!(before.store_bytes <= 2 * CACHE, "{before:?}");
    assert_eq!(before.batches, 3);
    assert!(plane.cache.bytes() <= CACHE);
}

/// Chunks that are needed later never take the room of those that are needed before: with room for two windows, and jobs
/// have more, every chunk is read once per epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_windows_of_room_are_enough_to_read_each_chunk_once() {
    let size = Size { samples: 4000, sample_bytes: 700, samples_per_chunk: 8, chunks_per_shard: 50 };
    let dataset = Dataset::records(size);
    let order = order(&dataset, 10, Remainder::Drop);
    let room = 2 * need(&dataset.manifest, order.spec().shuffle, NonZeroU32::MIN).once;
    assert!(room < dataset.stored_bytes() / 10);
    let group = Group::start(&dataset, &order, 1, room).await;
    let config = group.feed_config(0, 1, 1);
    let name = config.socket.clone();
    let mut feed = group.planes[0].feed(config).await.unwrap();
    let events = tokio::spawn(async move { while feed.events.recv().await.is_some() {} });
    let batches = trainer(move || Trainer::attach(&name).consume()).await;
    assert_eq!(batches.len(), 400);
    events.abort();
    let counters = group.planes[0].counters();
    assert_eq!(counters.cache_rereads, 0, "{counters:?}");
    assert_eq!(counters.store_bytes, dataset.stored_bytes(), "{counters:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seek_commit_report_and_release_without_acknowledgement() {
    let dataset = small();
    let group = one(&dataset, Remainder::Drop).await;
    let config = group.feed_config(0, 1, 3);
    let name = config.socket.clone();
    let mut feed = group.planes[0].feed(config).await.unwrap();
    trainer(move || {
        let trainer = Trainer::attach(&name);
        let first = trainer.descriptor();
        trainer.say(1, first);
        trainer.say(2, Descriptor { step: 1, ..first });
        trainer.send(br#"{"report":{"loss":0.5}}"#);
        trainer.say(3, Descriptor { step: 45, ..first });
        let mut old = trainer.descriptor();
        while old.kind == 1 {
            assert!(old.step < 10);
            trainer.say(5, old);
            old = trainer.descriptor();
        }
        assert_eq!((old.kind, old.step), (4, 45));
        for step in 45..60 {
            let next = trainer.descriptor();
            assert_eq!((next.kind, next.step), (1, step));
            assert_eq!(trainer.content(next).samples.len(), 10);
            trainer.say(1, next);
        }
        assert_eq!(trainer.descriptor().kind, 2);
    })
    .await;
    assert_eq!(event(&mut feed).await, FeedEvent::Attached { pid: 4321 });
    assert!(matches!(event(&mut feed).await, FeedEvent::Consumed { step: 0, .. }));
    assert_eq!(event(&mut feed).await, FeedEvent::Committed { step: 1 });
    let values = BTreeMap::from([("loss".to_owned(), 0.5)]);
    assert_eq!(event(&mut feed).await, FeedEvent::Reported { values });
    for expected in 45..60 {
        assert!(matches!(event(&mut feed).await, FeedEvent::Consumed { step, .. } if step == expected));
    }
    assert_eq!(event(&mut feed).await, FeedEvent::Ended);
}

/// Attaches as soon as the one before is gone for the feed too, which is a race.
fn attach_after(name: &str) -> Trainer {
    loop {
        let trainer = Trainer::attach(name);
        if trainer.hello.get("error").is_none() {
            return trainer;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trainer_at_a_time_and_the_next_goes_on_where_the_last_stopped() {
    let dataset = small();
    let group = one(&dataset, Remainder::Drop).await;
    let config = group.feed_config(0, 1, 1);
    let name = config.socket.clone();
    let mut feed = group.planes[0].feed(config).await.unwrap();
    trainer(move || {
        let first = Trainer::attach(&name);
        let (one, two) = (first.descriptor(), first.descriptor());
        let second = Trainer::attach(&name);
        assert!(second.hello["error"].as_str().unwrap().contains("another process"), "{}", second.hello);
        assert!(!second.hello["hint"].as_str().unwrap().is_empty());
        assert_eq!(second.packet(), b"");
        first.say(1, one);
        first.say(5, two);
        drop(first);
        let third = attach_after(&name);
        assert_eq!(third.hello["start_step"], 1);
        assert_eq!(third.consume().len(), 19);
    })
    .await;
    assert_eq!(event(&mut feed).await, FeedEvent::Attached { pid: 4321 });
    assert!(matches!(event(&mut feed).await, FeedEvent::Consumed { step: 0, .. }));
    assert_eq!(event(&mut feed).await, FeedEvent::Detached);
    assert_eq!(event(&mut feed).await, FeedEvent::Attached { pid: 4321 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_keep_to_the_handoff_is_sent_away() {
    let dataset = small();
    let group = one(&dataset, Remainder::Drop).await;
    let config = group.feed_config(0, 1, 1);
    let name = config.socket.clone();
    let mut feed = group.planes[0].feed(config).await.unwrap();
    trainer(move || {
        for hello in [&b"nonsense"[..], br#"{"version":9,"pid":1}"#] {
            let mut bad = Trainer::connect(&name);
            bad.send(hello);
            bad.receive_hello();
            assert!(!bad.hello["error"].as_str().unwrap().is_empty());
            assert_eq!(bad.packet(), b"");
        }
        const NOTHING: Descriptor = Descriptor { kind: 0, slot: 0, generation: 0, step: 0, bytes: 0 };
        let wrong: [Wrong; 6] = [
            &|trainer, _| trainer.send(b"what?"),
            &|trainer, _| trainer.say(77, NOTHING),
            &|trainer, first| trainer.say(1, Descriptor { generation: first.generation + 9, ..first }),
            &|trainer, first| trainer.say(1, Descriptor { slot: 1000, ..first }),
            &|trainer, _| trainer.say(2, Descriptor { step: 1 << 40, ..NOTHING }),
            &|trainer, _| trainer.say(3, Descriptor { step: 1 << 40, ..NOTHING }),
        ];
        for wrong in wrong {
            let trainer = attach_after(&name);
            let first = trainer.descriptor();
            wrong(&trainer, first);
            while trainer.descriptor().kind == 1 {}
            assert!(!trainer.json()["error"].as_str().unwrap().is_empty());
            assert_eq!(trainer.packet(), b"");
        }
    })
    .await;
    for _ in 0..6 {
        assert_eq!(event(&mut feed).await, FeedEvent::Attached { pid: 4321 });
        assert_eq!(event(&mut feed).await, FeedEvent::Detached);
    }
}

/// Gives back what was sent before a seek, up to its answer.
fn sought(trainer: &Trainer) {
    loop {
        let old = trainer.descriptor();
        if old.kind == 4 {
            return;
        }
        trainer.say(5, old);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_trainer_starts_at_the_first_step_not_acknowledged_also_after_a_seek() {
    let dataset = small();
    let group = one(&dataset, Remainder::Drop).await;
    let config = group.feed_config(0, 1, 1);
    let name = config.socket.clone();
    let _feed = group.planes[0].feed(config).await.unwrap();
    trainer(move || {
        let first = Trainer::attach(&name);
        let taken = [first.descriptor(), first.descriptor(), first.descriptor()];
        first.say(1, taken[0]);
        first.say(1, taken[2]);
        drop(first);
        let second = attach_after(&name);
        assert_eq!(second.hello["start_step"], 1, "step 2 was acknowledged, step 1 was not");
        second.say(3, Descriptor { step: 10, ..taken[0] });
        sought(&second);
        let next = second.descriptor();
        assert_eq!((next.kind, next.step), (1, 10));
        second.say(1, next);
        second.say(3, Descriptor { step: 4, ..next });
        sought(&second);
        let next = second.descriptor();
        assert_eq!((next.kind, next.step), (1, 4));
        second.say(1, next);
        drop(second);
        let third = attach_after(&name);
        assert_eq!(third.hello["start_step"], 5, "it went back to step 4 and did that");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plane_that_is_dropped_feeds_nobody() {
    let dataset = small();
    let mut group = one(&dataset, Remainder::Drop).await;
    let mut feed = group.planes[0].feed(group.feed_config(0, 1, 1)).await.unwrap();
    drop(group.planes.pop());
    assert_eq!(timeout(HANG, feed.events.recv()).await.expect("the feed ends"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_chunk_is_named_after_what_is_good() {
    let dataset = small();
    let order = order(&dataset, 10, Remainder::Drop);
    let bad = order.epoch(0).step(5)[3].sample;
    let chunk = dataset.manifest.chunk_of(bad);
    let within = u32::try_from(bad.0 - dataset.manifest.chunk(chunk).first_sample.0).unwrap();
    dataset.corrupt(chunk.0, within * 700 + 20);
    let group = Group::start(&dataset, &order, 1, 1 << 20).await;
    let config = group.feed_config(0, 1, 1);
    let name = config.socket.clone();
    let mut feed = group.planes[0].feed(config).await.unwrap();
    let good = trainer(move || {
        let trainer = Trainer::attach(&name);
        let mut good = 0;
        loop {
            let descriptor = trainer.descriptor();
            if descriptor.kind == 3 {
                let told = trainer.json();
                assert!(told["error"].as_str().unwrap().contains("sample"), "{told}");
                assert_eq!(told["reason"], fault::CRC_MISMATCH);
                assert!(!told["hint"].as_str().unwrap().is_empty());
                return good;
            }
            assert_eq!((descriptor.kind, descriptor.step), (1, good));
            for (id, bytes) in trainer.content(descriptor).samples {
                assert_eq!(bytes, dataset.samples[usize::try_from(id).unwrap()]);
            }
            trainer.say(1, descriptor);
            good += 1;
        }
    })
    .await;
    assert_eq!(good, 5, "all before it is delivered");
    let fault = loop {
        if let FeedEvent::Fault(fault) = event(&mut feed).await {
            break fault;
        }
    };
    assert_eq!(
        (fault.chunk, fault.sample, fault.reason.as_str()),
        (chunk.0, Some(bad.0), fault::CRC_MISMATCH)
    );
    assert!(fault.shard.starts_with("shard-"));
}
