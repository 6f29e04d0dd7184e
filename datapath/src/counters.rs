//! What a data plane has done since its start, as numbers that only grow.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counts since a data plane's start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl AddAssign for Counters {
            fn add_assign(&mut self, other: Self) {
                $(self.$name = self.$name.saturating_add(other.$name);)*
            }
        }

        /// The same numbers while they are being counted, by many tasks.
        #[derive(Debug, Default)]
        pub(crate) struct Counting {
            $(pub(crate) $name: Count,)*
        }

        impl Counting {
            /// The numbers of this moment.
            pub(crate) fn read(&self) -> Counters {
                Counters { $($name: self.$name.0.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Bytes read from the store.
    store_bytes,
    /// Reads from the store.
    store_reads,
    /// Bytes of chunks read from the node-local tier.
    tier_bytes,
    /// Bytes of chunks written to it.
    tier_kept_bytes,
    /// Its chunks that were bad or could not be read.
    tier_faults,
    /// Sample bytes that came out of this worker's own cache.
    local_bytes,
    /// Sample bytes received from other owners over QUIC.
    quic_in_bytes,
    /// Sample bytes sent to other workers over QUIC.
    quic_out_bytes,
    /// Sample bytes that this worker has read from other owners over RDMA.
    rdma_in_bytes,
    /// Bytes of chunks lent to other workers: what they read of them over RDMA, only they know.
    rdma_lent_bytes,
    /// Times that a rail to a peer was left for another lane.
    rdma_failures,
    /// Times that one was used again.
    rdma_returns,
    /// Requests that were asked again.
    retries,
    /// Chunks found in the cache.
    cache_hits,
    /// Chunks dropped under pressure before all consumers had passed them.
    cache_evictions,
    /// Chunks read again after such a drop: the cache is too small for the window (reason `cache_small`).
    cache_rereads,
    /// Nanoseconds that feeds waited for a free slot (the trainer is slower than the data).
    slot_wait_ns,
    /// Batches published.
    batches,
}

/// One number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Counts so many more.
    pub(crate) fn add(&self, more: impl TryInto<u64>) {
        // Nothing else is ordered by a counter.
        self.0.fetch_add(more.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
