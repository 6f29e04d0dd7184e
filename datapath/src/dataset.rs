//! What a dataset is: shards in a store, chunks of whole samples in them, and where each sample's fields lie.
//!
//! Everything here is plain data. [`manifest`] writes it as bytes, [`index`] makes it from a store's shards,
//! [`tar`] and [`records`] read the two kinds of shards.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub mod fault;
pub mod index;
pub mod manifest;
pub mod put;
pub mod records;
pub mod tar;
pub mod verify;

pub(crate) mod build;

pub use build::DraftError;
pub(crate) use build::is_shard_name;

pub use fault::{DatasetFault, FaultCode};
pub use records::{Dtype, RecordLayout};

/// Where the manifest of a dataset lies, beside its shards.
pub const MANIFEST_NAME: &str = "slipway.manifest";

/// Size of a chunk that the index aims at, in bytes: large enough that a store's per-request cost vanishes, small
/// enough that a few hundred fit in a worker's cache.
pub const CHUNK_TARGET_BYTES: u32 = 4 << 20;

/// Largest chunk, and so largest sample with its framing, in bytes: a chunk is read, verified and cached in one piece.
pub const MAX_CHUNK_BYTES: u32 = 256 << 20;

/// Most shards of one dataset: 2^20 shards of 100 MB are 100 TB, and their names must fit in every worker.
pub const MAX_SHARDS: usize = 1 << 20;

/// Most fields of a dataset: fields are the columns of every batch's table.
pub const MAX_FIELDS: usize = 256;

/// Longest name of a shard or a field, in bytes.
pub const MAX_NAME_BYTES: usize = 4096;

/// A shard's number: shards are numbered in the order of their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub u32);

/// A chunk's number, over all shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkId(pub u32);

/// A sample's number, over all shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SampleId(pub u64);

/// SHA-256 over a manifest's content: the same wherever the shards are stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatasetDigest(pub [u8; 32]);

/// What kind of shards a dataset has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Format {
    /// Tar archives, one or more files a sample (the WebDataset convention).
    Tar,
    /// Fixed-size records, one a sample.
    Records(RecordLayout),
}

/// One file or object of the dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Its name in the store, relative, with `/` between parts.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// A contiguous run of whole samples inside one shard: what is read, verified and cached at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The shard that holds it.
    pub shard: ShardId,
    /// Its first byte in the shard.
    pub offset: u64,
    /// Its length in bytes, with whatever frames the samples (tar headers and padding).
    pub len: u32,
    /// CRC-32C of those bytes.
    pub crc32c: u32,
    /// The first of its samples; the others follow in order.
    pub first_sample: SampleId,
    /// How many samples it has.
    pub samples: u32,
}

/// Where one field of a sample lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldSpan {
    /// Index into [`Manifest::fields`].
    pub field: u16,
    /// First byte, counted from the chunk's first.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}

/// The table of a dataset: every shard, chunk and sample. Flat vectors, cheap to share behind an [`Arc`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub(crate) format: Format,
    pub(crate) fields: Vec<String>,
    pub(crate) shards: Vec<Shard>,
    pub(crate) chunks: Arc<[Chunk]>,
    pub(crate) sample_crcs: Vec<u32>,
    /// Tar only: the first span of each sample, and one more entry for the end of the last.
    pub(crate) span_starts: Vec<u32>,
    pub(crate) spans: Vec<FieldSpan>,
    pub(crate) bytes: u64,
    pub(crate) max_sample_bytes: u64,
    pub(crate) digest: DatasetDigest,
}

impl Manifest {
    /// What kind of shards these are.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Names of the fields, sorted; `["data"]` for records.
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// All shards, sorted by name; [`ShardId`] is the index.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// All chunks, by shard and offset; [`ChunkId`] is the index.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The shard of that number. Panics if there is none: numbers come from this manifest.
    pub fn shard(&self, shard: ShardId) -> &Shard {
        &self.shards[index_of(shard.0.into())]
    }

    /// The chunk of that number. Panics if there is none: check numbers from outside against [`Self::chunks`].
    pub fn chunk(&self, chunk: ChunkId) -> &Chunk {
        &self.chunks[index_of(chunk.0.into())]
    }

    /// The chunk that holds a sample; the last chunk for a number past the end.
    pub fn chunk_of(&self, sample: SampleId) -> ChunkId {
        let after = self.chunks.partition_point(|chunk| chunk.first_sample <= sample);
        ChunkId(u32::try_from(after.saturating_sub(1)).unwrap_or(u32::MAX))
    }

    /// How many samples there are.
    pub fn sample_count(&self) -> u64 {
        count(self.sample_crcs.len())
    }

    /// The bytes of all samples, without what frames them in their shards.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// CRC-32C over a sample's bytes (its fields in span order, joined). Panics past [`Self::sample_count`].
    pub fn sample_crc32c(&self, sample: SampleId) -> u32 {
        self.sample_crcs[index_of(sample.0)]
    }

    /// Where a sample's fields lie in its chunk, in stored order. Panics past [`Self::sample_count`].
    pub fn spans(&self, sample: SampleId) -> impl Iterator<Item = FieldSpan> + '_ {
        let (stored, record) = match &self.format {
            Format::Tar => (self.stored_spans(sample), None),
            Format::Records(layout) => (&[][..], Some(self.record_span(*layout, sample))),
        };
        stored.iter().copied().chain(record)
    }

    /// Bytes of a sample: the sum of its fields. Panics past [`Self::sample_count`].
    pub fn sample_bytes(&self, sample: SampleId) -> u64 {
        match &self.format {
            Format::Tar => self.stored_spans(sample).iter().map(|span| u64::from(span.len)).sum(),
            Format::Records(layout) => layout.record_bytes(),
        }
    }

    /// Bytes of the largest sample.
    pub fn max_sample_bytes(&self) -> u64 {
        self.max_sample_bytes
    }

    /// What the dataset is, in 32 bytes.
    pub fn digest(&self) -> &DatasetDigest {
        &self.digest
    }

    /// The chunk table by itself: what an order needs.
    pub(crate) fn shared_chunks(&self) -> Arc<[Chunk]> {
        Arc::clone(&self.chunks)
    }

    fn stored_spans(&self, sample: SampleId) -> &[FieldSpan] {
        let at = index_of(sample.0);
        &self.spans[index_of(self.span_starts[at].into())..index_of(self.span_starts[at + 1].into())]
    }

    fn record_span(&self, layout: RecordLayout, sample: SampleId) -> FieldSpan {
        let chunk = self.chunk(self.chunk_of(sample));
        // Both fit: a checked manifest's chunk is at most MAX_CHUNK_BYTES long and holds this record.
        let len = u32::try_from(layout.record_bytes()).unwrap_or(u32::MAX);
        let within = u32::try_from(sample.0 - chunk.first_sample.0).unwrap_or(u32::MAX);
        FieldSpan { field: 0, offset: within.saturating_mul(len), len }
    }
}

/// A number from one of the tables as an index: memory has room for every entry that a table has.
pub(crate) fn index_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A length as a number of its units.
pub(crate) fn count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SampleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for DatasetDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DatasetDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatasetDigest({self})")
    }
}

impl Serialize for DatasetDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
