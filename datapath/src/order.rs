//! Which samples form step s, for consumer i of n: a pure function of the dataset's digest, the seed and the epoch.
//!
//! Chunks are permuted; so many consecutive permuted chunks form a window; samples are permuted inside their window. The
//! sequence of samples is then cut into global batches, and each batch into one run of positions per consumer. Nothing
//! depends on how many consumers there are, so any step can be taken up again by any number of them. Asking for a step
//! costs the same anywhere in an epoch; an epoch takes 16 bytes of memory per chunk.

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::dataset::{Chunk, ChunkId, DatasetDigest, Manifest, SampleId, count, index_of};

mod digest;
mod permutation;

pub use digest::{OrderDigest, OrderDigestError};
use permutation::Permutation;

/// Chunks per window if a job does not say: 256 MiB of samples are mixed, and a worker of a few must cache as much.
pub const DEFAULT_WINDOW_CHUNKS: NonZeroU32 = NonZeroU32::new(64).unwrap();

/// How samples are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case")]
pub enum Shuffle {
    /// In the order in which they are stored.
    None,
    /// Chunks are permuted; samples are permuted inside windows of that many consecutive permuted chunks.
    Window {
        /// Chunks per window.
        chunks: NonZeroU32,
    },
}

/// What happens with the samples of an epoch that do not fill a global batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remainder {
    /// They are left out of this epoch (another epoch's order leaves out others).
    Drop,
    /// The last batch is filled from the epoch's beginning; the filling is marked.
    Pad,
}

/// What an order depends on, besides the dataset's digest and the epoch. The number of consumers is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderSpec {
    /// The job's seed.
    pub seed: u64,
    /// Samples of one step, over all consumers.
    pub global_batch: NonZeroU32,
    /// How samples are mixed.
    pub shuffle: Shuffle,
    /// What happens at an epoch's end.
    pub remainder: Remainder,
}

/// The order of a dataset over all epochs.
#[derive(Clone, Debug)]
pub struct Order {
    spec: OrderSpec,
    dataset: DatasetDigest,
    chunks: Arc<[Chunk]>,
    samples: u64,
}

/// Why there is no order.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Not one whole batch.
    #[error(
        "order the samples: the dataset has {samples}, fewer than one global batch of {global_batch}; \
         make the batch smaller or pad the remainder"
    )]
    NoSteps {
        /// Samples of the dataset.
        samples: u64,
        /// Samples of a batch.
        global_batch: NonZeroU32,
    },
}

/// One of so many consumers that share each global batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consumer {
    /// Which one, from 0.
    pub index: u32,
    /// Of how many.
    pub of: NonZeroU32,
}

/// A sample in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// Its position in the global batch.
    pub position: u32,
    /// Which sample.
    pub sample: SampleId,
    /// It only fills the epoch's last batch; it was delivered before.
    pub padding: bool,
}

/// A step's number over all epochs: the whole position of a training run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position(pub u64);

impl Position {
    /// The epoch that the step is in.
    pub fn epoch(self, order: &Order) -> u64 {
        self.0 / order.steps_per_epoch()
    }

    /// The step's number in its epoch.
    pub fn step_in_epoch(self, order: &Order) -> u64 {
        self.0 % order.steps_per_epoch()
    }
}

impl Order {
    /// Refuses a dataset that does not fill a single batch, unless batches are padded.
    pub fn new(manifest: &Manifest, spec: OrderSpec) -> Result<Self, OrderError> {
        let (samples, global_batch) = (manifest.sample_count(), spec.global_batch);
        if spec.remainder == Remainder::Drop && samples < u64::from(global_batch.get()) {
            return Err(OrderError::NoSteps { samples, global_batch });
        }
        Ok(Self { spec, dataset: *manifest.digest(), chunks: manifest.shared_chunks(), samples })
    }

    /// What it was made from.
    pub fn spec(&self) -> &OrderSpec {
        &self.spec
    }

    /// Steps of every epoch: at least 1.
    pub fn steps_per_epoch(&self) -> u64 {
        let batch = u64::from(self.spec.global_batch.get());
        match self.spec.remainder {
            Remainder::Drop => self.samples / batch,
            Remainder::Pad => self.samples.div_ceil(batch),
        }
    }

    /// The order of one epoch: O(chunks) work, then O(1) per sample.
    pub fn epoch(&self, epoch: u64) -> EpochOrder {
        let chunk_count = count(self.chunks.len());
        let (key, window) = match self.spec.shuffle {
            Shuffle::None => (None, 1),
            Shuffle::Window { chunks } => {
                (Some(self.epoch_key(epoch)), chunk_count.min(chunks.get().into()).max(1))
            }
        };
        let permutation = key.map(|key| Permutation::new(chunk_count, derive(key, u64::MAX)));
        let mut chunk_at = Vec::with_capacity(self.chunks.len());
        let mut place_of = vec![0; self.chunks.len()];
        let mut starts = Vec::with_capacity(self.chunks.len() + 1);
        let mut start = 0;
        for place in 0..self.chunks.len() {
            let chunk =
                permutation.as_ref().map_or(place, |permutation| index_of(permutation.apply(count(place))));
            starts.push(start);
            start += u64::from(self.chunks[chunk].samples);
            // A manifest numbers its chunks in 32 bits.
            place_of[chunk] = u32::try_from(place).unwrap_or(u32::MAX);
            chunk_at.push(u32::try_from(chunk).unwrap_or(u32::MAX));
        }
        starts.push(start);
        EpochOrder { order: self.clone(), key, window: index_of(window), chunk_at, place_of, starts }
    }

    fn epoch_key(&self, epoch: u64) -> u64 {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend(b"slipway order 1\0");
        bytes.extend(self.dataset.0);
        bytes.extend(self.spec.seed.to_le_bytes());
        bytes.extend(epoch.to_le_bytes());
        xxh3_64(&bytes)
    }
}

/// The order of one epoch.
#[derive(Clone, Debug)]
pub struct EpochOrder {
    order: Order,
    /// `None`: nothing is permuted.
    key: Option<u64>,
    /// Chunks per window.
    window: usize,
    /// The chunk at each place of the permuted sequence.
    chunk_at: Vec<u32>,
    /// The place of each chunk in it.
    place_of: Vec<u32>,
    /// Samples before each place, and at the end all of them.
    starts: Vec<u64>,
}

impl EpochOrder {
    /// The sample at an index of the epoch's sequence. Past the end the sequence begins again, as it does for padding.
    pub fn sample_at(&self, index: u64) -> SampleId {
        let index = index % self.order.samples;
        let mut found = SampleId(0);
        self.visit(index..index + 1, |sample| found = sample);
        found
    }

    /// All samples of a step, in batch order; none past the epoch's end.
    pub fn step(&self, step: u64) -> Vec<Placed> {
        self.placed(step, 0..self.order.spec.global_batch.get())
    }

    /// One consumer's samples of a step, in batch order; none past the epoch's end.
    pub fn slice(&self, step: u64, consumer: Consumer) -> Vec<Placed> {
        self.placed(step, share(self.order.spec.global_batch.get(), consumer))
    }

    /// The windows that a step's samples come from. Padding comes from the epoch's first windows besides.
    pub fn window_of_step(&self, step: u64) -> Range<u64> {
        let batch = u64::from(self.order.spec.global_batch.get());
        let first = step.saturating_mul(batch).min(self.order.samples - 1);
        let last = (first + batch).min(self.order.samples) - 1;
        count(self.window_of_index(first))..count(self.window_of_index(last)) + 1
    }

    /// How many windows the epoch has.
    pub fn windows(&self) -> u64 {
        count(self.chunk_at.len().div_ceil(self.window))
    }

    /// The chunks of a window, in the order of the permuted sequence; none past the last window.
    pub fn chunks_of_window(&self, window: u64) -> impl Iterator<Item = ChunkId> + '_ {
        let places = self.places(index_of(window).min(self.chunk_at.len()));
        self.chunk_at[places].iter().copied().map(ChunkId)
    }

    /// The first step that may need a chunk: from then on it pays to have it at hand.
    pub fn first_step_of_chunk(&self, chunk: ChunkId) -> u64 {
        let first = self.starts[self.places(self.window_of_chunk(chunk)).start];
        (first / u64::from(self.order.spec.global_batch.get())).min(self.order.steps_per_epoch() - 1)
    }

    /// The last step that may need a chunk: once every consumer has passed it, the chunk can go.
    pub fn last_step_of_chunk(&self, chunk: ChunkId) -> u64 {
        let batch = u64::from(self.order.spec.global_batch.get());
        let steps = self.order.steps_per_epoch();
        let places = self.places(self.window_of_chunk(chunk));
        let padding = (steps * batch).saturating_sub(self.order.samples);
        if self.starts[places.start] < padding {
            return steps - 1;
        }
        ((self.starts[places.end] - 1) / batch).min(steps - 1)
    }

    fn placed(&self, step: u64, positions: Range<u32>) -> Vec<Placed> {
        if step >= self.order.steps_per_epoch() {
            return Vec::new();
        }
        let samples = self.order.samples;
        let base = step * u64::from(self.order.spec.global_batch.get());
        let end = base + u64::from(positions.end);
        let mut placed = Vec::with_capacity(positions.len());
        let mut position = positions.start;
        let mut next = base + u64::from(positions.start);
        while next < end {
            // One run up to the end of the sequence, then again from its beginning.
            let from = next % samples;
            let run = (samples - from).min(end - next);
            let padding = next >= samples;
            self.visit(from..from + run, |sample| {
                placed.push(Placed { position, sample, padding });
                position += 1;
            });
            next += run;
        }
        placed
    }

    /// Calls for every sample of a range of the sequence, in order.
    fn visit(&self, range: Range<u64>, mut each: impl FnMut(SampleId)) {
        let mut next = range.start;
        while next < range.end {
            let window = self.window_of_index(next);
            let places = self.places(window);
            let starts = &self.starts[places.start..=places.end];
            let (first, end) = (starts[0], starts[starts.len() - 1]);
            let permutation = self.key.map(|key| Permutation::new(end - first, derive(key, count(window))));
            for index in next..end.min(range.end) {
                let index = permutation
                    .as_ref()
                    .map_or(index, |permutation| first + permutation.apply(index - first));
                let within = starts.partition_point(|start| *start <= index) - 1;
                let chunk = self.chunk_at[places.start + within];
                let first_sample = self.order.chunks[index_of(chunk.into())].first_sample.0;
                each(SampleId(first_sample + (index - starts[within])));
            }
            next = end;
        }
    }

    fn window_of_index(&self, index: u64) -> usize {
        (self.starts.partition_point(|start| *start <= index) - 1) / self.window
    }

    fn window_of_chunk(&self, chunk: ChunkId) -> usize {
        index_of(self.place_of[index_of(chunk.0.into())].into()) / self.window
    }

    fn places(&self, window: usize) -> Range<usize> {
        let chunks = self.chunk_at.len();
        window.saturating_mul(self.window).min(chunks)
            ..window.saturating_add(1).saturating_mul(self.window).min(chunks)
    }
}

/// A consumer's run of positions in a global batch: runs follow each other, and their lengths differ by at most one.
pub fn share(global_batch: u32, consumer: Consumer) -> Range<u32> {
    let bound = |index: u32| {
        let bound =
            u64::from(global_batch) * u64::from(index.min(consumer.of.get())) / u64::from(consumer.of.get());
        u32::try_from(bound).unwrap_or(global_batch)
    };
    bound(consumer.index)..bound(consumer.index.saturating_add(1))
}

/// A key for one part of an epoch.
fn derive(key: u64, part: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&key.to_le_bytes());
    bytes[8..].copy_from_slice(&part.to_le_bytes());
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests;
