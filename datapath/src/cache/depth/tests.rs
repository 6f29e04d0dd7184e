//! The rule, against a model of a store and of a trainer: no clock, no sockets.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::ahead;
use super::*;

const CHUNK: u64 = 4 << 20;

/// A store answers after a latency, and delivers so many bytes a second whoever asks; a trainer takes a chunk each `step`.
#[derive(Clone, Copy, Debug)]
struct Model {
    latency: Duration,
    rate: u64,
    step: Duration,
}

/// What came of a run.
#[derive(Debug)]
struct Run {
    depth: Depth,
    /// Of the second half.
    waited: Duration,
    lasted: Duration,
    changes: usize,
}

impl Model {
    /// Moves `chunks` chunks in order.
    fn run(self, mut depth: Depth, chunks: usize) -> Run {
        let transfer = Duration::from_nanos(CHUNK * 1_000_000_000 / self.rate);
        // Of each chunk: when it was asked of the store, and when it came.
        let mut under_way: VecDeque<(Duration, Duration)> = VecDeque::new();
        let mut came: VecDeque<Duration> = VecDeque::new();
        let (mut link_free, mut now) = (Duration::ZERO, Duration::ZERO);
        let (mut waited, mut half, mut changes) = (Duration::ZERO, Duration::ZERO, 0);
        for number in 0..chunks {
            // Time passes until the trainer asks for this chunk; reads end meanwhile, and others begin.
            let due = now + self.step;
            loop {
                while under_way.len() < depth.reads() && under_way.len() + came.len() < ahead(depth.reads()) {
                    link_free = link_free.max(now + self.latency) + transfer;
                    under_way.push_back((now, link_free));
                }
                let Some(&(asked, end)) = under_way.front() else { break };
                let is_late = came.is_empty() && end > due;
                if end > due && !is_late {
                    break;
                }
                now = now.max(end);
                under_way.pop_front();
                came.push_back(end);
                let waited = if is_late { end - due } else { Duration::ZERO };
                let done = Done { bytes: CHUNK, took: end - asked, waited };
                changes += usize::from(depth.done(done, now).is_some());
                if is_late {
                    break;
                }
            }
            came.pop_front();
            if now > due && number >= chunks / 2 {
                waited += now - due;
            }
            now = now.max(due);
            if number == chunks / 2 {
                half = now;
            }
        }
        Run { depth, waited, lasted: now - half, changes }
    }
}

#[test]
fn a_far_store_gets_as_many_reads_as_its_latency_takes() {
    // 2 GB/s out of 80 ms are 38 chunks under way; eight would deliver 0.42 GB/s.
    let model = Model { latency: Duration::from_millis(80), rate: 10 << 30, step: Duration::from_millis(2) };
    let run = model.run(Depth::new(), 4000);
    assert!((38..=READS_MAX).contains(&run.depth.reads()), "{run:?}");
    assert!(run.waited * 50 < run.lasted, "{run:?}");
}

#[test]
fn a_store_at_its_limit_is_not_asked_for_more_and_more() {
    let model = Model { latency: Duration::from_millis(1), rate: 1 << 30, step: Duration::from_micros(10) };
    let run = model.run(Depth::new(), 20_000);
    assert!(run.depth.reads() <= 2 * READS_START, "{run:?}");
    // Two for each trial, and trials are ever farther apart.
    assert!(run.changes < 40, "{run:?}");
}

#[test]
fn a_slow_trainer_needs_few() {
    let model = Model { latency: Duration::from_millis(5), rate: 10 << 30, step: Duration::from_millis(50) };
    let run = model.run(Depth::new(), 2000);
    assert_eq!((run.depth.reads(), run.waited), (READS_MIN, Duration::ZERO), "{run:?}");
}

#[test]
fn a_store_that_became_slow_is_noticed_and_one_that_became_quick_too() {
    let near = Model { latency: Duration::from_millis(2), rate: 10 << 30, step: Duration::from_millis(2) };
    let far = Model { latency: Duration::from_millis(60), ..near };
    let first = near.run(Depth::new(), 1000).depth;
    assert!(first.reads() <= READS_START);
    let second = far.run(first, 3000).depth;
    assert!(second.reads() >= 30, "{second:?}");
    let third = near.run(second, 3000).depth;
    assert!(third.reads() <= READS_START, "{third:?}");
}

proptest! {
    /// Whatever happens, the number has its bounds; and once the trainer's rate can be had, it is had.
    #[test]
    fn it_ends_up_where_nobody_waits(latency_ms in 0_u64..100, step_us in 2_500_u64..100_000) {
        let model = Model {
            latency: Duration::from_millis(latency_ms),
            rate: 10 << 30,
            step: Duration::from_micros(step_us),
        };
        let run = model.run(Depth::new(), 6000);
        prop_assert!((READS_MIN..=READS_MAX).contains(&run.depth.reads()));
        prop_assert!(run.waited * 20 < run.lasted, "{:?} {:?}", model, run);
    }

    #[test]
    fn nonsense_does_no_harm(reads in proptest::collection::vec((any::<u32>(), 0_u64..1 << 40, 0_u64..1 << 40, 0_u64..1 << 40), 0..500)) {
        let (mut depth, mut now) = (Depth::new(), Duration::ZERO);
        for (bytes, took, waited, passed) in reads {
            now += Duration::from_nanos(passed);
            let (took, waited) = (Duration::from_nanos(took), Duration::from_nanos(waited));
            depth.done(Done { bytes: bytes.into(), took, waited }, now);
            prop_assert!((READS_MIN..=READS_MAX).contains(&depth.reads()));
        }
    }
}
