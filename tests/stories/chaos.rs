//! Twelve kills in one job, of random processes at random moments: it ends with the right order, and nothing is left.
//!
//! The choices follow from a seed, which is printed; `SLIPWAY_STORY_SEED` sets another. What the processes are doing
//! when they are hit is up to the machine.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tests::job::{Running, signal, status};
use tests::program::{User, root};
use tests::{dataset, leftovers};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[("chaos::twelve_random_kills_do_no_harm", twelve_kills)];

const KILLS: u32 = 12;
/// 4,000 samples, 10 a step.
const STEPS: u64 = 400;
/// Between two kills: from the middle of a restart to well into the next generation.
const PAUSE_MS: std::ops::Range<u64> = 30..900;

fn twelve_kills() {
    #[expect(clippy::disallowed_methods, reason = "the story's one setting")]
    let seed = std::env::var("SLIPWAY_STORY_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut chance = Chance(seed);
    let user = User::new();
    let data = dataset::tokens(&user, "tokens", 4, 1000, 16);
    let data = data.to_str().unwrap();
    let expected = audit(&user, data);
    let mut running = start(&user, data);
    running.wait_for("its first generation", |journal| journal.contains("\"running\""));
    let mut said = format!("SLIPWAY_STORY_SEED={seed}");
    let mut kills = 0;
    while kills < KILLS {
        let pause = chance.below(PAUSE_MS.end - PAUSE_MS.start) + PAUSE_MS.start;
        wait(Duration::from_millis(pause));
        assert!(!running.is_over(), "it ended too early\n{said}\n{}", running.stderr());
        let (name, victims) = match chance.below(4) {
            0 => ("the launcher", vec![running.pid()]),
            1 => ("a sidecar", leftovers::pids(&user, "launcher worker-agent")),
            _ => ("a rank", leftovers::pids(&user, "python3 ")),
        };
        let number = chance.below(64) % u64::try_from(victims.len().max(1)).unwrap();
        let Some(victim) = victims.get(usize::try_from(number).unwrap()) else { continue };
        kills += 1;
        said.push_str(&format!("\n{kills}: after {pause} ms, {name} ({number} of {})", victims.len()));
        signal(*victim, Signal::KILL);
        if *victim == running.pid() {
            running.await_end();
            leftovers::assert_none(&user);
            let id = user.jobs().pop().unwrap();
            assert_eq!(status(&user, &id)["phase"], "failed", "{said}");
            running = Running::start(&user, &["job", "resume", &id, "--output", "json"]);
        }
    }
    #[expect(clippy::print_stderr, reason = "what a failure is repeated with")]
    {
        eprintln!("{said}");
    }
    running.await_end();
    let end = status(&user, &user.jobs().pop().unwrap());
    assert_eq!(end["phase"], "succeeded", "{said}\n{end:#}");
    assert_eq!(end["summary"]["steps"], STEPS, "{said}\n{end:#}");
    assert_eq!(end["summary"]["orderDigest"], expected, "{said}\n{end:#}");
    leftovers::assert_none(&user);
}

fn start<'user>(user: &'user User, data: &str) -> Running<'user> {
    let trainer = root().join("tests/trainers/consume.py");
    let mut args = vec!["job", "submit", "--output", "json", "--workers", "3", "--spares", "1"];
    args.extend(["--data", data, "--record", "u16:16", "--global-batch", "10", "--seed", "3"]);
    args.extend(["--max-restarts", "100", "--set", "spec.restarts.backoff=0s"]);
    args.extend(["--env", "COMMIT_EVERY=4", "--env", "STEP_MS=20"]);
    args.extend(["--", "python3", trainer.to_str().unwrap()]);
    Running::start(user, &args)
}

fn audit(user: &User, data: &str) -> Value {
    let mut args =
        vec!["data", "order", data, "--record", "u16:16", "--workers", "3", "--global-batch", "10"];
    args.extend(["--seed", "3", "--epoch", "0", "--digest", "--output", "json"]);
    user.run(args).code(0).json()["digest"].clone()
}

/// Lets real time pass: the moment of a kill is what the story is about.
fn wait(time: Duration) {
    let end = leftovers::now() + time;
    while leftovers::now() < end {
        leftovers::pause();
    }
}

/// Numbers from a seed: splitmix64 (Steele, Lea and Flood, 2014).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
