//! Joining a job: the messages between launcher and worker, and the worker's client of them.

pub mod client;
pub mod message;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "helpers of tests")]
pub(crate) mod testing;
