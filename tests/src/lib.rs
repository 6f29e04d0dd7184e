//! What the stories stand on: the built program, a job of it under watch, and the look for leftovers.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a harness fails by panicking, and tells on stderr"
)]

pub mod dataset;
pub mod job;
pub mod leftovers;
pub mod program;
