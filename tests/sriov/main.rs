//! Stories on a machine with two NUMA nodes and an SR-IOV NIC on each: the emulated one of `tests/rig/rdma`.
//!
//! `tests/run rdma`, or `verbs-rig run --sriov PROGRAM [NAME]` with `SLIPWAY_LAUNCHER` and `SLIPWAY_WORKER`, both built with the feature
//! `rdma`. Not a part of `cargo test --workspace`, since they run nowhere else.

#![expect(clippy::unwrap_used, reason = "a story fails by panicking")]

mod job;
mod probe;

use libtest_mimic::Arguments;
use tests::program::cannot_run;
use tests::story::{Story, trials};

fn main() -> std::process::ExitCode {
    #[expect(clippy::disallowed_methods, reason = "what the machine says of itself")]
    let is_there = std::env::var("SLIPWAY_SRIOV").as_deref() == Ok("1");
    if !is_there {
        cannot_run("these stories need the emulated machine with SR-IOV: use tests/run rdma");
        return std::process::ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // They have one fabric.
    arguments.test_threads = Some(1);
    let stories: &[&[Story]] = &[probe::STORIES, job::STORIES];
    libtest_mimic::run(&arguments, trials(stories)).exit_code()
}
