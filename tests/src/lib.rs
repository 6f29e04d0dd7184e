//! What the stories stand on: the built program, a job of it under watch, and the look for leftovers.

#![expect(clippy::unwrap_used, reason = "a harness fails by panicking")]

pub mod ceph;
pub mod dataset;
pub mod job;
pub mod kube;
pub mod leftovers;
pub mod program;
pub mod story;
