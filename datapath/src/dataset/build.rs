//! From tables to a [`Manifest`]: every invariant is checked here, once, for an index and for a decoded file alike (pure).

use super::records::RecordLayout;
use super::{
    Chunk, DatasetDigest, FieldSpan, Format, MAX_CHUNK_BYTES, MAX_FIELDS, MAX_NAME_BYTES, MAX_SHARDS,
};
use super::{Manifest, SampleId, Shard, ShardId, count, index_of, manifest};
use crate::integrity::combine;

/// The tables of a manifest that is being put together.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) format: Format,
    pub(super) fields: Vec<String>,
    pub(super) shards: Vec<Shard>,
    pub(super) chunks: Vec<Chunk>,
    pub(super) sample_crcs: Vec<u32>,
    /// Tar only: one entry more than samples, the first is 0.
    pub(super) span_starts: Vec<u32>,
    pub(super) spans: Vec<FieldSpan>,
}

/// Why tables describe no possible dataset.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// Fields are not as they must be.
    #[error("field names are not sorted, unique and at most {MAX_FIELDS}")]
    Fields,
    /// A shard is not as it must be.
    #[error("shard {0} has an unusable name, size or place in the order")]
    Shard(usize),
    /// A record has no size.
    #[error("the record layout is impossible")]
    Layout,
    /// A chunk is not as it must be.
    #[error("chunk {0} does not lie inside its shard, after the one before")]
    Chunk(usize),
    /// A sample is not as it must be.
    #[error("sample {0} does not lie inside its chunk, after the one before")]
    Sample(u64),
    /// There are none.
    #[error("there are no samples")]
    NoSamples,
}

impl Draft {
    pub(super) fn new(format: Format, fields: Vec<String>, shards: Vec<Shard>) -> Self {
        let span_starts = if format == Format::Tar { vec![0] } else { Vec::new() };
        let (chunks, sample_crcs, spans) = (Vec::new(), Vec::new(), Vec::new());
        Self { format, fields, shards, chunks, sample_crcs, span_starts, spans }
    }

    /// Takes the next shard's table in. `None`: more spans than can be numbered. Its fields must be known.
    pub(super) fn append(&mut self, shard: ShardId, table: ShardTable) -> Option<()> {
        let first_sample = count(self.sample_crcs.len());
        let first_span = u32::try_from(self.spans.len()).ok()?;
        let known =
            |field: &String| self.fields.binary_search(field).ok().and_then(|at| u16::try_from(at).ok());
        let numbers = table.fields.iter().map(known).collect::<Option<Vec<_>>>()?;
        self.sample_crcs.extend(table.sample_crcs);
        if self.format == Format::Tar {
            first_span.checked_add(u32::try_from(table.spans.len()).ok()?)?;
            self.span_starts.extend(table.span_ends.iter().map(|end| first_span + end));
            let renumber = |span: FieldSpan| FieldSpan { field: numbers[usize::from(span.field)], ..span };
            self.spans.extend(table.spans.into_iter().map(renumber));
        }
        self.chunks.extend(table.chunks.into_iter().map(|chunk| Chunk {
            shard,
            first_sample: SampleId(first_sample + chunk.first_sample.0),
            ..chunk
        }));
        Some(())
    }

    /// Checks everything and computes the digest.
    pub(super) fn finish(self) -> Result<Manifest, DraftError> {
        let mut manifest = self.finish_as(DatasetDigest([0; 32]))?;
        manifest.digest = manifest::digest_of(&manifest);
        Ok(manifest)
    }

    /// Checks everything; the digest is known.
    pub(super) fn finish_as(mut self, digest: DatasetDigest) -> Result<Manifest, DraftError> {
        self.check_names()?;
        let (bytes, max_sample_bytes) = match self.format {
            Format::Tar => self.check_chunks(|draft, chunk| draft.check_tar(chunk))?,
            Format::Records(layout) => {
                layout.check().map_err(|_| DraftError::Layout)?;
                self.check_chunks(|_, chunk| check_records(layout, chunk))?
            }
        };
        self.sample_crcs.shrink_to_fit();
        self.span_starts.shrink_to_fit();
        self.spans.shrink_to_fit();
        Ok(Manifest {
            format: self.format,
            fields: self.fields,
            shards: self.shards,
            chunks: self.chunks.into(),
            sample_crcs: self.sample_crcs,
            span_starts: self.span_starts,
            spans: self.spans,
            bytes,
            max_sample_bytes,
            digest,
        })
    }

    fn check_names(&self) -> Result<(), DraftError> {
        let sorted = self.fields.is_sorted_by(|a, b| a < b);
        let records = matches!(self.format, Format::Records(_));
        if !sorted || self.fields.len() > MAX_FIELDS || (records && self.fields != ["data"]) {
            return Err(DraftError::Fields);
        }
        if self.shards.len() > MAX_SHARDS {
            return Err(DraftError::Shard(MAX_SHARDS));
        }
        for (at, shard) in self.shards.iter().enumerate() {
            let after = at == 0 || self.shards[at - 1].name < shard.name;
            if !after || !is_shard_name(&shard.name) || i64::try_from(shard.bytes).is_err() {
                return Err(DraftError::Shard(at));
            }
        }
        Ok(())
    }

    /// Bytes of all samples, and of the largest.
    fn check_chunks(
        &self,
        samples: impl Fn(&Self, &Chunk) -> Result<(u64, u64), DraftError>,
    ) -> Result<(u64, u64), DraftError> {
        let (mut next_sample, mut shard, mut end) = (0u64, 0, 0u64);
        let (mut bytes, mut largest) = (0u64, 0);
        for (at, chunk) in self.chunks.iter().enumerate() {
            if chunk.shard != ShardId(shard) {
                end = 0;
            }
            let holder = self.shards.get(index_of(chunk.shard.0.into()));
            let chunk_end = chunk.offset.saturating_add(chunk.len.into());
            let fits = holder.is_some_and(|holder| chunk_end <= holder.bytes);
            let sized = chunk.samples > 0 && (1..=MAX_CHUNK_BYTES).contains(&chunk.len);
            let ordered =
                chunk.shard.0 >= shard && chunk.offset >= end && chunk.first_sample.0 == next_sample;
            if !(fits && sized && ordered) || u32::try_from(at).is_err() {
                return Err(DraftError::Chunk(at));
            }
            next_sample += u64::from(chunk.samples);
            if next_sample > count(self.sample_crcs.len()) {
                return Err(DraftError::Chunk(at));
            }
            (shard, end) = (chunk.shard.0, chunk_end);
            let (sum, max) = samples(self, chunk)?;
            bytes = bytes.saturating_add(sum);
            largest = largest.max(max);
        }
        if next_sample == 0 {
            return Err(DraftError::NoSamples);
        }
        if next_sample != count(self.sample_crcs.len()) {
            return Err(DraftError::Sample(next_sample));
        }
        Ok((bytes, largest))
    }

    fn check_tar(&self, chunk: &Chunk) -> Result<(u64, u64), DraftError> {
        let (mut bytes, mut largest, mut end) = (0u64, 0u64, 0u64);
        for sample in chunk.first_sample.0..chunk.first_sample.0 + u64::from(chunk.samples) {
            let wrong = DraftError::Sample(sample);
            let at = index_of(sample);
            let (Some(&from), Some(&to)) = (self.span_starts.get(at), self.span_starts.get(at + 1)) else {
                return Err(wrong);
            };
            let spans = self.spans.get(index_of(from.into())..index_of(to.into())).unwrap_or(&[]);
            let mut sample_bytes = 0;
            for (nth, span) in spans.iter().enumerate() {
                let known = usize::from(span.field) < self.fields.len();
                let doubled = spans[..nth].iter().any(|earlier| earlier.field == span.field);
                if !known || doubled || u64::from(span.offset) < end {
                    return Err(wrong);
                }
                end = u64::from(span.offset) + u64::from(span.len);
                sample_bytes += u64::from(span.len);
            }
            if spans.is_empty() || end > chunk.len.into() {
                return Err(wrong);
            }
            bytes += sample_bytes;
            largest = largest.max(sample_bytes);
        }
        Ok((bytes, largest))
    }
}

fn check_records(layout: RecordLayout, chunk: &Chunk) -> Result<(u64, u64), DraftError> {
    let bytes = layout.record_bytes().saturating_mul(chunk.samples.into());
    if bytes == u64::from(chunk.len) {
        Ok((bytes, layout.record_bytes()))
    } else {
        Err(DraftError::Sample(chunk.first_sample.0))
    }
}

/// One shard's part of a manifest; samples, fields and chunks are numbered from 0.
#[derive(Debug, Default)]
pub(super) struct ShardTable {
    pub(super) fields: Vec<String>,
    pub(super) chunks: Vec<Chunk>,
    pub(super) sample_crcs: Vec<u32>,
    /// Tar only: the end of each sample's spans.
    pub(super) span_ends: Vec<u32>,
    pub(super) spans: Vec<FieldSpan>,
}

/// Puts one shard's samples together into chunks of about the wanted size.
#[derive(Debug)]
pub(super) struct Chunker {
    chunk_bytes: u32,
    table: ShardTable,
}

impl Chunker {
    pub(super) fn new(chunk_bytes: u32) -> Self {
        Self { chunk_bytes: chunk_bytes.clamp(1, MAX_CHUNK_BYTES), table: ShardTable::default() }
    }

    /// The next sample: where its bytes lie in the shard and their CRC, the CRC of its content, and its spans, whose offsets
    /// count from the sample's first byte. It begins a chunk if the last one would get too large or does not end where it
    /// begins. `len` is at most [`MAX_CHUNK_BYTES`].
    pub(super) fn push_sample(
        &mut self,
        offset: u64,
        len: u32,
        crc: u32,
        content_crc: u32,
        spans: &[FieldSpan],
    ) {
        let table = &mut self.table;
        let first_sample = SampleId(count(table.sample_crcs.len()));
        let fits = |last: &Chunk| {
            let joins = last.offset + u64::from(last.len) == offset;
            joins && last.len.checked_add(len).is_some_and(|sum| sum <= self.chunk_bytes)
        };
        let within = match table.chunks.last_mut().filter(|last| fits(last)) {
            Some(last) => {
                let within = last.len;
                last.crc32c = combine(last.crc32c, crc, len.into());
                last.len += len;
                last.samples += 1;
                within
            }
            None => {
                table.chunks.push(Chunk {
                    shard: ShardId(0),
                    offset,
                    len,
                    crc32c: crc,
                    first_sample,
                    samples: 1,
                });
                0
            }
        };
        table.sample_crcs.push(content_crc);
        table.spans.extend(spans.iter().map(|span| FieldSpan { offset: within + span.offset, ..*span }));
        table.span_ends.push(u32::try_from(table.spans.len()).unwrap_or(u32::MAX));
    }

    pub(super) fn finish(mut self, fields: Vec<String>) -> ShardTable {
        self.table.fields = fields;
        self.table
    }
}

/// A relative path of plain parts: no root, no `..`, nothing empty, so that it can never lead out of a dataset.
pub(crate) fn is_shard_name(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.contains('\0') && name.split('/').all(plain)
}

/// Datasets without files, for tests.
#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;
    use crate::dataset::Dtype;

    /// A dataset of one-byte records, in shards of those many records, of about four records a chunk.
    pub(crate) fn dataset(shards: &[u8]) -> Manifest {
        let layout = RecordLayout { dtype: Dtype::U8, items: 1, header_bytes: 0 };
        let named = shards.iter().enumerate();
        let named =
            named.map(|(at, records)| Shard { name: format!("{at:04}.bin"), bytes: u64::from(*records) });
        let mut draft = Draft::new(Format::Records(layout), vec!["data".into()], named.collect());
        for (shard, records) in (0..).zip(shards) {
            let mut chunker = Chunker::new(4);
            for record in 0..*records {
                chunker.push_sample(record.into(), 1, record.into(), record.into(), &[]);
            }
            draft.append(ShardId(shard), chunker.finish(vec!["data".into()])).unwrap();
        }
        draft.finish().unwrap()
    }
}
