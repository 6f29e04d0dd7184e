//! Joining a job: the messages between launcher and worker, and the worker's client of them.

pub mod client;
pub mod message;
