//! Stories on a real Ceph: monitor, OSDs and object gateway, all on this machine.
//!
//! `tests/run ceph`, or `SLIPWAY_CEPH=1 SLIPWAY_LAUNCHER=… cargo test --workspace --test ceph [NAME]` with a launcher that was
//! built with `--features ceph,s3`. Not a part of `cargo test --workspace`, since it needs Debian's Ceph.

#![expect(clippy::unwrap_used, reason = "a story fails by panicking")]

mod data;
mod faults;
mod tier;
mod training;

use libtest_mimic::Arguments;
use tests::program::cannot_run;
use tests::story::{Story, trials};

fn main() -> std::process::ExitCode {
    #[expect(clippy::disallowed_methods, reason = "the switch of a suite that needs Ceph")]
    let is_wanted = std::env::var("SLIPWAY_CEPH").as_deref() == Ok("1");
    if !is_wanted {
        cannot_run("these stories start a Ceph; say so with SLIPWAY_CEPH=1, or use tests/run ceph");
        return std::process::ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // Each story has a cluster of its own, and two cores carry two.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(2));
    let stories: &[&[Story]] = &[data::STORIES, faults::STORIES, tier::STORIES, training::STORIES];
    libtest_mimic::run(&arguments, trials(stories)).exit_code()
}
