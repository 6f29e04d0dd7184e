//! From a store's shards to a manifest.

use std::num::NonZeroUsize;

use super::{CHUNK_TARGET_BYTES, DatasetFault, Manifest, RecordLayout};
use crate::store::Store;

/// How to index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexOptions {
    /// The layout of `.bin` shards; `.npy` shards say their own.
    pub record: Option<RecordLayout>,
    /// Items per record of `.npy` shards of one dimension.
    pub items: Option<u32>,
    /// The size of a chunk that is aimed at, in bytes; at most [`super::MAX_CHUNK_BYTES`].
    pub chunk_bytes: u32,
    /// Shards that are read at the same time.
    pub threads: NonZeroUsize,
}

impl Default for IndexOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { record: None, items: None, chunk_bytes: CHUNK_TARGET_BYTES, threads }
    }
}

/// Where a manifest came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was stored beside the shards, and describes those that are there.
    Stored,
    /// There was none; the shards were read.
    Indexed,
}

/// Reads every shard once and makes the table of the dataset; or says all that is wrong with it.
pub async fn index(store: &Store, options: &IndexOptions) -> Result<Manifest, Vec<DatasetFault>> {
    let _ = (store, options);
    Err(Vec::new())
}

/// Takes the stored manifest if there is one, else indexes in memory.
pub async fn open(store: &Store, options: &IndexOptions) -> Result<(Manifest, Origin), Vec<DatasetFault>> {
    let _ = (store, options);
    Err(Vec::new())
}

/// Stores a manifest beside its shards.
pub async fn save(store: &Store, manifest: &Manifest) -> Result<(), DatasetFault> {
    let _ = (store, manifest);
    Ok(())
}
