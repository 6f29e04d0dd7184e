//! One consumer's batch of one step (pure): which samples, where each lies in its chunk and in the slot.
//!
//! A plan is made once and leaves nothing to decide but who delivers each chunk. It can [`Plan::split`] a slot into
//! parts that share no byte, so that several owners fill it at the same time.

use std::ops::Range;

use crate::dataset::{ChunkId, Format, Manifest, SampleId};
use crate::order::{Consumer, EpochOrder, OrderDigest};
use crate::ring::layout::{ABSENT, FIELD_ALIGN, Header, payload_offset, table_offset};
use crate::transport::{Part, Piece};
use crate::wire::RANGES_MAX;

/// A step of the whole job, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepPlace {
    /// Over all epochs.
    pub step: u64,
    /// The epoch.
    pub epoch: u64,
    /// In its epoch.
    pub step_in_epoch: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
}

impl StepPlace {
    /// Where a step lies.
    #[must_use]
    pub fn of(step: u64, steps_per_epoch: u64) -> Self {
        let per_epoch = steps_per_epoch.max(1);
        Self { step, epoch: step / per_epoch, step_in_epoch: step % per_epoch, steps_per_epoch: per_epoch }
    }
}

/// What to put where.
#[derive(Clone, Debug)]
pub struct Plan {
    place: StepPlace,
    header: Header,
    samples: Vec<PlannedSample>,
    spans: Vec<PlannedSpan>,
    by_chunk: Vec<u32>,
    parts: Vec<PlannedPart>,
    fields: usize,
    digest: OrderDigest,
    real_bytes: u64,
}

#[derive(Clone, Debug)]
struct PlannedSample {
    sample: SampleId,
    crc32c: u32,
    spans: Range<usize>,
}

#[derive(Clone, Copy, Debug)]
struct PlannedSpan {
    field: u16,
    source: u32,
    len: u32,
    target: u64,
}

/// The samples of one chunk.
#[derive(Clone, Debug)]
pub struct PlannedPart {
    /// The chunk.
    pub chunk: ChunkId,
    /// The last step, over all epochs, that needs it.
    pub until: u64,
    samples: Range<usize>,
}

impl Plan {
    /// The batch of `consumer` at `place`, which lies in the epoch of `order`.
    #[must_use]
    pub fn new(manifest: &Manifest, order: &EpochOrder, place: StepPlace, consumer: Consumer) -> Self {
        let placed = order.slice(place.step_in_epoch, consumer);
        let fields = manifest.fields().len();
        let align = if matches!(manifest.format(), Format::Tar) { FIELD_ALIGN } else { 1 };
        let start = payload_offset(wide(placed.len()), wide(fields));
        let (mut end, mut real, mut real_bytes, mut digest) = (start, 0_u32, 0, OrderDigest::default());
        let mut samples = Vec::with_capacity(placed.len());
        let mut spans = Vec::with_capacity(placed.len());
        for placed in &placed {
            let (first, before) = (spans.len(), end);
            for span in manifest.spans(placed.sample) {
                let target = end.next_multiple_of(align);
                end = target + u64::from(span.len);
                spans.push(PlannedSpan { field: span.field, source: span.offset, len: span.len, target });
            }
            if !placed.padding {
                real += 1;
                real_bytes += spans[first..].iter().map(|span| u64::from(span.len)).sum::<u64>();
            }
            debug_assert!(before <= end, "the payload only grows");
            digest.add(place.epoch, place.step_in_epoch, placed.position, placed.sample);
            samples.push(PlannedSample {
                sample: placed.sample,
                crc32c: manifest.sample_crc32c(placed.sample),
                spans: first..spans.len(),
            });
        }
        let header = Header {
            slot_generation: 0,
            step: place.step,
            epoch: place.epoch,
            samples: narrow(samples.len()),
            real,
            fields: narrow(fields),
            first_position: placed.first().map_or(0, |placed| placed.position),
            payload_offset: start,
            payload_bytes: end - start,
        };
        let mut plan = Self {
            place,
            header,
            samples,
            spans,
            by_chunk: Vec::new(),
            parts: Vec::new(),
            fields,
            digest,
            real_bytes,
        };
        plan.group(manifest, order);
        plan
    }

    /// Sorts the samples by where they are stored and cuts the sequence between chunks.
    fn group(&mut self, manifest: &Manifest, order: &EpochOrder) {
        self.by_chunk = (0..self.header.samples).collect();
        // Sample numbers ascend with chunks and with offsets in them.
        self.by_chunk.sort_unstable_by_key(|&at| self.samples[index(at)].sample);
        let epoch_start = self.place.epoch * self.place.steps_per_epoch;
        // A part must fit into one request, whatever its samples look like.
        let most = (RANGES_MAX / 2 / self.fields.max(1)).max(1);
        let mut from = 0;
        while from < self.by_chunk.len() {
            let sample_at = |at: usize| self.samples[index(self.by_chunk[at])].sample;
            let chunk = manifest.chunk_of(sample_at(from));
            let place = manifest.chunk(chunk);
            let next = SampleId(place.first_sample.0 + u64::from(place.samples));
            let rest = &self.by_chunk[from..];
            let to = from + rest.partition_point(|&at| self.samples[index(at)].sample < next).min(most);
            let until = epoch_start + order.last_step_of_chunk(chunk);
            self.parts.push(PlannedPart { chunk, until, samples: from..to });
            from = to;
        }
    }

    /// Where the step lies.
    #[must_use]
    pub fn place(&self) -> StepPlace {
        self.place
    }

    /// What comes from each chunk, by chunk.
    #[must_use]
    pub fn parts(&self) -> &[PlannedPart] {
        &self.parts
    }

    /// Samples that are no padding.
    #[must_use]
    pub fn real_samples(&self) -> u32 {
        self.header.real
    }

    /// Their bytes.
    #[must_use]
    pub fn real_bytes(&self) -> u64 {
        self.real_bytes
    }

    /// Bytes of the batch in a slot, from the slot's start.
    #[must_use]
    pub fn slot_bytes(&self) -> u64 {
        self.header.payload_offset + self.header.payload_bytes
    }

    /// The order digest of what is delivered, padding included.
    #[must_use]
    pub fn digest(&self) -> OrderDigest {
        self.digest
    }

    /// Writes header, sample numbers and table to a slot.
    ///
    /// # Panics
    /// When the slot is too small for the batch.
    pub fn write_table(&self, slot: &mut [u8], slot_generation: u64) {
        Header { slot_generation, ..self.header }.write(slot);
        let count = wide(self.samples.len());
        let table_start = size(table_offset(count));
        let table_end = table_start + 16 * self.samples.len() * self.fields;
        let (ids, table) = slot[size(table_offset(0))..table_end].split_at_mut(8 * self.samples.len());
        for (id, sample) in ids.chunks_exact_mut(8).zip(&self.samples) {
            id.copy_from_slice(&sample.sample.0.to_le_bytes());
        }
        for (row, sample) in table.chunks_exact_mut(16 * self.fields.max(1)).zip(&self.samples) {
            let spans = &self.spans[sample.spans.clone()];
            if spans.len() < self.fields {
                for entry in row.chunks_exact_mut(16) {
                    entry[..8].fill(0);
                    entry[8..].copy_from_slice(&ABSENT.to_le_bytes());
                }
            }
            for span in spans {
                let entry = &mut row[16 * usize::from(span.field)..][..16];
                entry[..8].copy_from_slice(&span.target.to_le_bytes());
                entry[8..].copy_from_slice(&u64::from(span.len).to_le_bytes());
            }
        }
    }

    /// The slot's payload, cut into what comes from each chunk, in the order of [`Plan::parts`].
    ///
    /// # Panics
    /// When the slot is too small for the batch.
    pub fn split<'slot>(&self, slot: &'slot mut [u8]) -> Vec<Part<'slot>> {
        let mut targets = Vec::with_capacity(self.spans.len());
        let (mut rest, mut at) = (slot, 0);
        for span in &self.spans {
            let (gap, len) = (size(span.target - at), size(span.len.into()));
            let (target, after) = rest[gap..].split_at_mut(len);
            targets.push(target);
            (rest, at) = (after, span.target + u64::from(span.len));
        }
        let mut part = |planned: &PlannedPart| {
            let samples = &self.by_chunk[planned.samples.clone()];
            let mut pieces = Vec::with_capacity(samples.len());
            for sample in samples.iter().map(|&at| &self.samples[index(at)]) {
                for at in sample.spans.clone() {
                    let last = at + 1 == sample.spans.end;
                    pieces.push(Piece {
                        offset: self.spans[at].source,
                        target: std::mem::take(&mut targets[at]),
                        sample: sample.sample,
                        ends_with: last.then_some(sample.crc32c),
                    });
                }
            }
            Part::new(planned.chunk, planned.until, pieces)
        };
        self.parts.iter().map(&mut part).collect()
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn narrow(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::order::{Order, OrderSpec, Remainder, Shuffle};
    use crate::testing::{Dataset, Size};

    fn order(dataset: &Dataset, global_batch: u32, remainder: Remainder) -> Order {
        let spec = OrderSpec {
            seed: 3,
            global_batch: NonZeroU32::new(global_batch).unwrap(),
            shuffle: Shuffle::Window { chunks: NonZeroU32::new(3).unwrap() },
            remainder,
        };
        Order::new(&dataset.manifest, spec).unwrap()
    }

    fn number(slot: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(slot[at..at + 8].try_into().unwrap())
    }

    /// Fills a slot by the plan, straight from the files, and reads it back as a trainer does.
    fn deliver(dataset: &Dataset, order: &Order, step: u64, consumer: Consumer) -> Vec<(u64, Vec<u8>)> {
        let place = StepPlace::of(step, order.steps_per_epoch());
        let plan = Plan::new(&dataset.manifest, &order.epoch(place.epoch), place, consumer);
        let mut slot = vec![0xAA; size(plan.slot_bytes())];
        plan.write_table(&mut slot, 77);
        for mut part in plan.split(&mut slot) {
            let chunk = dataset.manifest.chunk(part.chunk());
            let name = &dataset.manifest.shard(chunk.shard).name;
            let file = std::fs::read(dataset.folder.path().join(name)).unwrap();
            part.fill_from(&file[size(chunk.offset)..][..index(chunk.len)]).unwrap();
        }
        let header = Header::read(&slot).unwrap();
        assert_eq!((header.slot_generation, header.step, header.epoch), (77, step, place.epoch));
        let (n, f) = (index(header.samples), index(header.fields));
        assert_eq!(header.payload_offset % 64, 0);
        let sample = |at: usize| {
            let mut bytes = Vec::new();
            for field in 0..f {
                let entry = 64 + 8 * n + 16 * (at * f + field);
                let (offset, len) = (number(&slot, entry), number(&slot, entry + 8));
                if len != ABSENT {
                    assert!(f == 1 || offset % 8 == 0);
                    bytes.extend(&slot[size(offset)..size(offset + len)]);
                }
            }
            (number(&slot, 64 + 8 * at), bytes)
        };
        (0..n).map(sample).collect()
    }

    #[test]
    fn every_sample_lies_where_the_table_says() {
        let size = Size { samples: 50, sample_bytes: 33, samples_per_chunk: 4, chunks_per_shard: 3 };
        for dataset in [Dataset::records(size), Dataset::fields(size)] {
            let order = order(&dataset, 7, Remainder::Pad);
            for step in 0..2 * order.steps_per_epoch() {
                let mut delivered = Vec::new();
                for consumer in 0..3 {
                    let of = NonZeroU32::new(3).unwrap();
                    delivered.extend(deliver(&dataset, &order, step, Consumer { index: consumer, of }));
                }
                let epoch = order.epoch(step / order.steps_per_epoch());
                let expected = epoch.step(step % order.steps_per_epoch());
                assert_eq!(delivered.len(), expected.len());
                for ((id, bytes), expected) in delivered.iter().zip(&expected) {
                    assert_eq!(*id, expected.sample.0);
                    assert_eq!(bytes, &dataset.samples[size_of_id(*id)]);
                }
            }
        }
    }

    fn size_of_id(id: u64) -> usize {
        usize::try_from(id).unwrap()
    }

    #[test]
    fn padding_is_counted_apart_and_records_have_no_gaps() {
        let size = Size { samples: 10, sample_bytes: 5, samples_per_chunk: 4, chunks_per_shard: 3 };
        let dataset = Dataset::records(size);
        let order = order(&dataset, 4, Remainder::Pad);
        let of = NonZeroU32::MIN;
        let place = StepPlace::of(2, order.steps_per_epoch());
        let plan = Plan::new(&dataset.manifest, &order.epoch(0), place, Consumer { index: 0, of });
        assert_eq!((plan.real_samples(), plan.real_bytes()), (2, 10));
        assert_eq!(plan.header.payload_bytes, 20);
    }
}
