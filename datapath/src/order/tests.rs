//! Every sample once an epoch, in the same order for any number of consumers, from any step on.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::dataset::build::fixtures::dataset;

fn spec(global_batch: u32, window: u32, remainder: Remainder) -> OrderSpec {
    let shuffle = NonZeroU32::new(window).map_or(Shuffle::None, |chunks| Shuffle::Window { chunks });
    OrderSpec { seed: 17, global_batch: NonZeroU32::new(global_batch).unwrap(), shuffle, remainder }
}

fn consumers(of: u32) -> impl Iterator<Item = Consumer> {
    (0..of).map(move |index| Consumer { index, of: NonZeroU32::new(of).unwrap() })
}

fn whole_epoch(epoch: &EpochOrder, steps: u64) -> Vec<Placed> {
    (0..steps).flat_map(|step| epoch.step(step)).collect()
}

proptest! {
    #[test]
    fn an_epoch_has_every_sample_once(
        shards in proptest::collection::vec(1u8..40, 1..8),
        batch in 1u32..50, window in 0u32..9, epoch in 0u64..4, pad in any::<bool>(),
    ) {
        let manifest = dataset(&shards);
        let samples = manifest.sample_count();
        let remainder = if pad { Remainder::Pad } else { Remainder::Drop };
        let order = match Order::new(&manifest, spec(batch, window, remainder)) {
            Ok(order) => order,
            Err(OrderError::NoSteps { .. }) => {
                prop_assert!(!pad && samples < u64::from(batch));
                return Ok(());
            }
        };
        let steps = order.steps_per_epoch();
        let epoch = order.epoch(epoch);
        let placed = whole_epoch(&epoch, steps);
        prop_assert_eq!(count(placed.len()), steps * u64::from(batch));
        let real: Vec<_> = placed.iter().filter(|placed| !placed.padding).collect();
        let different: BTreeSet<_> = real.iter().map(|placed| placed.sample).collect();
        prop_assert_eq!(different.len(), real.len());
        prop_assert!(different.iter().all(|sample| sample.0 < samples));
        if pad {
            prop_assert_eq!(count(real.len()), samples);
            // What fills is what the epoch began with, again and again if need be, and stands behind all else.
            for (at, placed) in placed.iter().enumerate() {
                prop_assert_eq!(placed.padding, count(at) >= samples);
                prop_assert_eq!(placed.sample, epoch.sample_at(count(at) % samples));
            }
        } else {
            prop_assert_eq!(count(real.len()), samples - samples % u64::from(batch));
            prop_assert_eq!(real.len(), placed.len());
        }
        prop_assert!(epoch.step(steps).is_empty());
    }

    #[test]
    fn the_slices_of_any_number_of_consumers_are_the_step(
        shards in proptest::collection::vec(1u8..40, 1..8),
        batch in 1u32..50, window in 0u32..9, of in 1u32..60,
    ) {
        let order = Order::new(&dataset(&shards), spec(batch, window, Remainder::Pad)).unwrap();
        let epoch = order.epoch(3);
        for step in 0..order.steps_per_epoch() {
            let slices: Vec<_> = consumers(of).map(|consumer| epoch.slice(step, consumer)).collect();
            let lens = slices.iter().map(Vec::len);
            prop_assert!(lens.clone().max().unwrap() - lens.min().unwrap() <= 1);
            let joined: Vec<_> = slices.concat();
            prop_assert_eq!(&joined, &epoch.step(step));
            prop_assert!((0..).zip(&joined).all(|(position, placed)| placed.position == position));
        }
    }

    #[test]
    fn a_chunk_is_needed_between_its_first_and_its_last_step(
        shards in proptest::collection::vec(1u8..40, 1..8),
        batch in 1u32..50, window in 0u32..9, pad in any::<bool>(),
    ) {
        let manifest = dataset(&shards);
        let remainder = if pad { Remainder::Pad } else { Remainder::Drop };
        let Ok(order) = Order::new(&manifest, spec(batch, window, remainder)) else { return Ok(()) };
        let epoch = order.epoch(1);
        let mut of_windows: Vec<_> = (0..epoch.windows()).flat_map(|window| epoch.chunks_of_window(window)).collect();
        for step in 0..order.steps_per_epoch() {
            let windows = epoch.window_of_step(step);
            let chunks: Vec<_> = windows.flat_map(|window| epoch.chunks_of_window(window)).collect();
            for placed in epoch.step(step) {
                let chunk = manifest.chunk_of(placed.sample);
                prop_assert!(step <= epoch.last_step_of_chunk(chunk));
                prop_assert!(placed.padding || step >= epoch.first_step_of_chunk(chunk));
                prop_assert!(placed.padding || chunks.contains(&chunk));
            }
        }
        of_windows.sort_unstable();
        let all = 0..u32::try_from(manifest.chunks().len()).unwrap();
        prop_assert!(of_windows.into_iter().eq(all.map(ChunkId)));
        prop_assert_eq!(epoch.chunks_of_window(epoch.windows()).count(), 0);
    }
}

#[test]
fn the_digest_is_the_same_for_any_number_of_consumers_and_a_change_among_them() {
    let order = Order::new(&dataset(&[30, 7, 25, 39]), spec(24, 4, Remainder::Pad)).unwrap();
    let steps = order.steps_per_epoch();
    let digest_with = |consumers_at: &dyn Fn(u64) -> u32| {
        let mut digest = OrderDigest::default();
        for step in 0..3 * steps {
            let position = Position(step);
            let (epoch, step_in_epoch) = (position.epoch(&order), position.step_in_epoch(&order));
            for consumer in consumers(consumers_at(step)) {
                let mut own = OrderDigest::default();
                for placed in order.epoch(epoch).slice(step_in_epoch, consumer) {
                    own.add(epoch, step_in_epoch, placed.position, placed.sample);
                }
                digest.merge(own);
            }
        }
        digest
    };
    let one = digest_with(&|_| 1);
    for of in [2, 3, 4, 6, 7, 24, 30] {
        assert_eq!(digest_with(&|_| of), one, "{of} consumers");
    }
    assert_eq!(digest_with(&|step| if step < steps + 1 { 4 } else { 3 }), one);
    let short = Order::new(&dataset(&[30, 7, 25, 39]), OrderSpec { seed: 18, ..*order.spec() }).unwrap();
    assert_ne!(short.epoch(0).step(0), order.epoch(0).step(0));
}

#[test]
fn epochs_seeds_and_datasets_have_orders_of_their_own() {
    let manifest = dataset(&[39; 20]);
    let order = Order::new(&manifest, spec(39 * 20, 8, Remainder::Drop)).unwrap();
    let first = order.epoch(0).step(0);
    for other in 1..20 {
        assert_ne!(order.epoch(other).step(0), first);
    }
    assert_eq!(order.epoch(0).step(0), first);
    let reseeded = Order::new(&manifest, OrderSpec { seed: 18, ..*order.spec() }).unwrap();
    assert_ne!(reseeded.epoch(0).step(0), first);
    // The batch only cuts the sequence.
    let smaller = Order::new(&manifest, spec(1, 8, Remainder::Drop)).unwrap().epoch(0);
    assert!(first.iter().enumerate().all(|(at, placed)| smaller.step(count(at))[0].sample == placed.sample));
}

#[test]
fn without_a_shuffle_the_order_is_the_stored_one() {
    let order = Order::new(&dataset(&[30, 7, 25, 39]), spec(1, 0, Remainder::Drop)).unwrap();
    for epoch in 0..3 {
        let epoch = order.epoch(epoch);
        assert!((0..101).all(|at| epoch.sample_at(at) == SampleId(at)));
    }
}

/// A shuffle that leaves neighbours together is none: over many samples, a sample's successor is rarely the next stored one.
#[test]
fn a_window_mixes_its_chunks() {
    let order = Order::new(&dataset(&[40; 50]), spec(1, 64, Remainder::Drop)).unwrap().epoch(0);
    let sequence: Vec<_> = (0..2000).map(|at| order.sample_at(at).0).collect();
    let neighbours = sequence.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
    assert!(neighbours < 40, "{neighbours}");
    let moved: u64 = (0..).zip(&sequence).map(|(at, sample)| sample.abs_diff(at)).sum();
    // Random places are a third of the length apart on average.
    assert!((500..800).contains(&(moved / 2000)), "{}", moved / 2000);
}

/// An order is written into checkpoints as a seed and a step: the sequence must never change.
#[test]
fn the_sequence_is_fixed() {
    let order = Order::new(&dataset(&[30, 7, 25, 39]), spec(8, 4, Remainder::Drop)).unwrap();
    let step: Vec<_> = order.epoch(2).step(5).iter().map(|placed| placed.sample.0).collect();
    assert_eq!(step, [8, 9, 28, 39, 42, 10, 22, 63]);
}

#[test]
fn shares_differ_by_at_most_one_and_an_unknown_consumer_has_none() {
    let of = NonZeroU32::new(3).unwrap();
    assert_eq!(share(8, Consumer { index: 0, of }), 0..2);
    assert_eq!(share(8, Consumer { index: 1, of }), 2..5);
    assert_eq!(share(8, Consumer { index: 2, of }), 5..8);
    assert!(share(8, Consumer { index: 3, of }).is_empty());
    assert!(share(u32::MAX, Consumer { index: u32::MAX, of }).is_empty());
}

#[test]
fn a_batch_larger_than_the_dataset() {
    let manifest = dataset(&[3]);
    let error = Order::new(&manifest, spec(8, 4, Remainder::Drop)).unwrap_err();
    assert!(error.to_string().contains("make the batch smaller"), "{error}");
    let epoch = Order::new(&manifest, spec(8, 4, Remainder::Pad)).unwrap().epoch(0);
    let step = epoch.step(0);
    assert_eq!(step.iter().filter(|placed| !placed.padding).count(), 3);
    assert!((0..5).all(|at| step[at + 3].sample == step[at].sample));
}
