//! Verbs: an adapter moves bytes between this host's registered memory and another's, past both kernels.
//!
//! Reading order: `library` and `queue` call libibverbs, `device` and `memory` are what is made of it first, `chain` is work,
//! `queue_pair` hands it over and keeps what it touches until it has ended, `completion` hears that it has.
//!
//! Handles own what they were made from, so nothing is taken down before what stands on it. What keeps it sound that a device
//! works in its own time, whatever becomes of whoever asked: see `queue_pair`.

mod chain;
mod completion;
mod device;
mod keep;
mod library;
mod memory;
mod queue;
mod queue_pair;

pub use chain::{Chain, ChainError, Remote};
pub use completion::CompletionQueue;
pub use device::{Device, Event, Events, Path};
pub use keep::{Broken, Failure, Posted, Received, Receiving};
pub use memory::{Access, MemoryRegion, ProtectionDomain};
pub use queue::INLINE_BYTES;
pub use queue_pair::{DRAIN_MAX, QUEUE_MAX, QueuePair, Refusal, Refused, SIGNAL_EVERY, Sizes, Unconnected};
