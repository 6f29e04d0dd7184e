//! From a shard's records to chunks, with every checksum, in one pass over the bytes (pure).

use super::RecordLayout;
use crate::dataset::build::ShardTable;
use crate::dataset::{Chunk, SampleId, ShardId, count, index_of};
use crate::integrity::{Crc32c, crc32c};

/// Takes a shard's bytes in order and makes its part of the manifest.
#[derive(Debug)]
pub(in crate::dataset) struct RecordIndexer {
    /// Bytes of the shard's own header that are still to come.
    header_rest: u64,
    record_bytes: usize,
    /// Records of a full chunk.
    chunk_records: u32,
    /// Where the next byte lies in the shard.
    offset: u64,
    /// Bytes of the record that is cut by the end of the last piece, and their CRC.
    cut_bytes: usize,
    cut: Crc32c,
    /// The CRC of the last chunk.
    chunk: Crc32c,
    table: ShardTable,
}

impl RecordIndexer {
    /// `layout` was checked; records begin at `data_offset`.
    pub(in crate::dataset) fn new(layout: RecordLayout, data_offset: u64, chunk_bytes: u32) -> Self {
        let record_bytes = layout.record_bytes().max(1);
        let chunk_records = u32::try_from((u64::from(chunk_bytes) / record_bytes).max(1)).unwrap_or(1);
        Self {
            header_rest: data_offset,
            record_bytes: index_of(record_bytes),
            chunk_records,
            offset: 0,
            cut_bytes: 0,
            cut: Crc32c::new(),
            chunk: Crc32c::new(),
            table: ShardTable { fields: vec!["data".into()], ..ShardTable::default() },
        }
    }

    /// Takes the next bytes.
    pub(in crate::dataset) fn feed(&mut self, mut input: &[u8]) {
        let skipped = usize::try_from(self.header_rest).map_or(input.len(), |rest| rest.min(input.len()));
        self.header_rest -= count(skipped);
        self.offset += count(skipped);
        input = &input[skipped..];
        while !input.is_empty() {
            if self.cut_bytes == 0 {
                self.open_chunk();
            }
            let taken = if self.cut_bytes == 0 && input.len() >= self.record_bytes {
                self.whole_records(input)
            } else {
                self.piece_of_record(input)
            };
            self.offset += count(taken);
            input = &input[taken..];
        }
    }

    /// The shard's table, once all bytes were fed.
    pub(in crate::dataset) fn finish(mut self) -> ShardTable {
        self.close_chunk();
        self.table
    }

    /// As many records as lie whole in `input`, up to the chunk's end.
    fn whole_records(&mut self, input: &[u8]) -> usize {
        let room = self.table.chunks.last().map_or(0, |chunk| self.chunk_records - chunk.samples);
        let records = (input.len() / self.record_bytes).min(index_of(room.into()));
        let bytes = &input[..records * self.record_bytes];
        self.table.sample_crcs.extend(bytes.chunks_exact(self.record_bytes).map(crc32c));
        self.chunk.update(bytes);
        self.grow_chunk(u32::try_from(records).unwrap_or(room));
        bytes.len()
    }

    fn piece_of_record(&mut self, input: &[u8]) -> usize {
        let piece = &input[..input.len().min(self.record_bytes - self.cut_bytes)];
        self.cut.update(piece);
        self.chunk.update(piece);
        self.cut_bytes += piece.len();
        if self.cut_bytes == self.record_bytes {
            self.table.sample_crcs.push(self.cut.take());
            self.cut_bytes = 0;
            self.grow_chunk(1);
        }
        piece.len()
    }

    fn grow_chunk(&mut self, records: u32) {
        // A record is at most a chunk long, and a chunk's length fits in 32 bits.
        let record_bytes = u32::try_from(self.record_bytes).unwrap_or(u32::MAX);
        if let Some(chunk) = self.table.chunks.last_mut() {
            chunk.samples += records;
            chunk.len += records * record_bytes;
        }
    }

    /// Makes sure that the last chunk has room for a record.
    fn open_chunk(&mut self) {
        if self.table.chunks.last().is_some_and(|chunk| chunk.samples < self.chunk_records) {
            return;
        }
        self.close_chunk();
        let first_sample = SampleId(count(self.table.sample_crcs.len()));
        let chunk =
            Chunk { shard: ShardId(0), offset: self.offset, len: 0, crc32c: 0, first_sample, samples: 0 };
        self.table.chunks.push(chunk);
    }

    fn close_chunk(&mut self) {
        if let Some(chunk) = self.table.chunks.last_mut() {
            chunk.crc32c = self.chunk.take();
        }
    }
}
