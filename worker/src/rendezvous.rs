//! Joining a job: the messages between launcher and worker, and the worker's client of them.

use crate::units::WorkerId;

pub mod client;
pub mod message;

/// The name in a worker's certificate: under it the launcher and the other workers know it.
#[must_use]
pub fn certificate_name(worker: WorkerId) -> String {
    format!("worker-{worker}")
}

#[cfg(test)]
pub(crate) mod testing;
