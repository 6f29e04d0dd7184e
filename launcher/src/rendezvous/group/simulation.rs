//! The whole group in virtual time: seeded schedules of lossy, doubled and reordered messages, crashes of workers
//! between any two steps, ranks that fail, partitions, launchers that die between writing and acting, and late
//! messages of the dead. After every event the invariants are checked:
//!
//! - I1: at no moment live ranks or stores of two generations;
//! - I2: each (generation, rank) is executed at most once;
//! - I3: nothing of one generation counts in another: the order digest is exact;
//! - I4: `Running` means that all assigned ranks have been executed;
//! - I5: the generation grows strictly, also over launchers;
//! - I6: once faults stop, the job ends within a bound;
//! - I7: a recorded cause is one that happened, and never our own doing;
//! - I8: nothing that happens to data servers ends a generation; where only they have trouble, the job succeeds in its first;
//! - I9: a while after data servers came or went, every worker with ranks has the list of those that serve.
//!
//! `SLIPWAY_SIM_SCHEDULES` sets how many, `SLIPWAY_SIM_SEED` runs one and prints its events.

mod agent;
mod rig;

use rig::Rig;

/// Schedules of one run of the tests.
const SCHEDULES: u64 = 100_000;

/// SplitMix64 (Steele, Lea and Flood 2014): small, seedable, and good enough to draw faults with.
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit.max(1)
    }

    fn small(&mut self, limit: u32) -> u32 {
        u32::try_from(self.below(limit.into())).unwrap_or(0)
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

fn setting(name: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "a test's own settings")]
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn the_invariants_hold_in_every_schedule() {
    if let Some(seed) = setting("SLIPWAY_SIM_SEED") {
        let told = Rig::new(seed, true).run();
        println!("{told:?}");
        return;
    }
    let schedules = setting("SLIPWAY_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let ends = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut ends = [0_u64; 3];
                    for seed in (thread as u64..schedules).step_by(threads) {
                        let told = std::panic::catch_unwind(|| Rig::new(seed, false).run());
                        let Ok(told) = told else {
                            panic!(
                                "schedule {seed} breaks an invariant; replay it with\n  SLIPWAY_SIM_SEED={seed} \
                                 cargo test -p launcher --lib simulation -- --nocapture"
                            );
                        };
                        ends[told as usize] += 1;
                    }
                    ends
                })
            })
            .collect();
        let mut sum = [0; 3];
        for run in runs {
            match run.join() {
                Ok(ends) => sum.iter_mut().zip(ends).for_each(|(sum, end)| *sum += end),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        sum
    });
    println!("{schedules} schedules: succeeded, failed, cancelled = {ends:?}");
    if schedules >= 1000 {
        assert!(ends.iter().all(|end| *end > 0), "the schedules reach every end: {ends:?}");
    }
}
