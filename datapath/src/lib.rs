//! Datasets, memory and transports: the way of a training sample from its store into the trainer's memory.
//!
//! Knows no job, no rank and no Kubernetes. Reading order: `dataset`, `order`, `store`, `memory`, `tier`, `cache`, `wire`,
//! `session`, `select`, `transport`, `loader`, `ring`, `handoff`.

pub mod cache;
pub mod counters;
pub mod dataset;
pub mod fault;
pub mod handoff;
pub mod integrity;
pub mod loader;
mod membership;
pub mod memory;
pub mod order;
pub mod plane;
pub mod ring;
pub mod select;
pub mod session;
pub mod store;
#[cfg(test)]
mod testing;
pub mod tier;
pub mod transport;
pub mod wire;

pub use counters::Counters;
