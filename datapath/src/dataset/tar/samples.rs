//! From a tar's entries to samples and chunks, with every checksum, in one pass over the bytes (pure).
//!
//! The convention of WebDataset: a sample's key is the path up to the first dot of the file's name, the rest is the field
//! (lower case); files of one sample lie next to each other. Hidden files and `__name__` files at the top are left out.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::{Entry, Event, Scanner};
use crate::dataset::build::{Chunker, ShardTable};
use crate::dataset::{DatasetFault, FaultCode, FieldSpan, MAX_CHUNK_BYTES, MAX_FIELDS, count};
use crate::integrity::Crc32c;

/// Most faults of one shard that are reported: they mostly have one cause.
const MAX_SHARD_FAULTS: usize = 16;

/// What lies between two samples and is no longer than this is read with the first one, so that a folder's header does
/// not end a chunk. In bytes.
const MAX_ATTACHED_BYTES: u64 = 64 << 10;

/// Takes an archive's bytes in order and makes its part of the manifest.
#[derive(Debug)]
pub(in crate::dataset) struct TarIndexer {
    scanner: Scanner,
    grouping: Grouping,
    faults: Vec<DatasetFault>,
}

impl TarIndexer {
    pub(in crate::dataset) fn new(archive_bytes: u64, chunk_bytes: u32) -> Self {
        Self {
            scanner: Scanner::new(archive_bytes),
            grouping: Grouping::new(chunk_bytes),
            faults: Vec::new(),
        }
    }

    /// Takes the next bytes. `false`: more of this shard is of no use.
    pub(in crate::dataset) fn feed(&mut self, mut input: &[u8]) -> bool {
        loop {
            let before = self.scanner.offset();
            let (used, event) = match self.scanner.next(input) {
                Ok(next) => next,
                Err(fault) => {
                    self.faults.push(fault);
                    return false;
                }
            };
            let (taken, rest) = input.split_at(used);
            input = rest;
            let more = matches!(event, Event::More);
            let taken = Taken { bytes: taken, end: before + count(used) };
            if let Err(fault) = self.grouping.event(&taken, event) {
                self.faults.push(fault);
                if self.faults.len() >= MAX_SHARD_FAULTS {
                    return false;
                }
            }
            if more {
                return true;
            }
        }
    }

    /// The shard's table, once all bytes were fed.
    pub(in crate::dataset) fn finish(mut self) -> Result<ShardTable, Vec<DatasetFault>> {
        if self.faults.is_empty()
            && let Err(fault) = self.scanner.finish()
        {
            self.faults.push(fault);
        }
        match self.grouping.finish() {
            Ok(table) if self.faults.is_empty() => Ok(table),
            Ok(_) => Err(self.faults),
            // Samples that come again often do so because their shard was damaged: the damage is the thing to say.
            Err(split) if self.faults.is_empty() => Err(split),
            Err(_) => Err(self.faults),
        }
    }
}

/// Bytes that led to an event, and the offset behind them.
struct Taken<'a> {
    bytes: &'a [u8],
    end: u64,
}

#[derive(Debug)]
struct Grouping {
    chunker: Chunker,
    field_numbers: BTreeMap<String, u16>,
    /// A hash of each sample's key, and where it begins.
    keys: Vec<(u64, u64)>,
    /// The sample that is being read.
    open: Option<OpenSample>,
    /// All bytes since the open sample's first.
    raw: Crc32c,
    /// The bytes since the last entry's end: they belong to the next sample if the next entry begins one.
    head: Crc32c,
    /// The open sample's fields.
    content: Crc32c,
    /// Where the unit (an entry, or something skipped) began that is being read.
    unit_offset: u64,
    /// The payload that follows is no sample's.
    skipping: bool,
}

#[derive(Debug)]
struct OpenSample {
    key: String,
    offset: u64,
    /// Behind the last byte that surely belongs to it.
    end: u64,
    /// CRC of the bytes from `offset` to `end`.
    crc: u32,
    /// Offsets count from the sample's first byte.
    spans: Vec<FieldSpan>,
}

impl Grouping {
    fn new(chunk_bytes: u32) -> Self {
        Self {
            chunker: Chunker::new(chunk_bytes),
            field_numbers: BTreeMap::new(),
            keys: Vec::new(),
            open: None,
            raw: Crc32c::new(),
            head: Crc32c::new(),
            content: Crc32c::new(),
            unit_offset: 0,
            skipping: false,
        }
    }

    fn event(&mut self, taken: &Taken<'_>, event: Event<'_>) -> Result<(), DatasetFault> {
        self.raw.update(taken.bytes);
        match event {
            // Between an entry's header and its end, this is what no one asks for: `entry` and `unit_end` reset it.
            Event::More => self.head.update(taken.bytes),
            Event::Entry(entry) => {
                self.head.update(taken.bytes);
                return self.entry(&entry, taken.end);
            }
            Event::Data(piece) if !self.skipping => self.content.update(piece),
            Event::Data(_) => {}
            Event::EntryEnd => {
                let attach = !self.skipping || taken.end - self.unit_offset <= MAX_ATTACHED_BYTES;
                self.unit_end(taken.end, attach);
            }
            Event::Skipped => self.unit_end(taken.end, true),
            Event::End => self.unit_end(taken.end, false),
            Event::Refused(fault) => {
                self.unit_end(taken.end, true);
                return Err(fault);
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry, payload_offset: u64) -> Result<(), DatasetFault> {
        self.skipping = true;
        let Some((key, field)) = split_name(&entry.name) else {
            if is_left_out(&entry.name) {
                return Ok(());
            }
            let message = format!("{:?} has no extension, so it names no field", entry.name);
            let hint =
                "name files KEY.FIELD, as in 000017.jpg and 000017.cls, or leave it out of the archive";
            return Err(DatasetFault::new(FaultCode::NoField, message, hint).at(entry.offset));
        };
        if self.open.as_ref().is_none_or(|open| open.key != key) {
            self.close_sample()?;
            self.raw = std::mem::take(&mut self.head);
            let (offset, key) = (entry.offset, key.to_owned());
            self.open = Some(OpenSample { key, offset, end: offset, crc: 0, spans: Vec::new() });
        }
        let field = self.field_number(&field).map_err(|fault| fault.at(entry.offset))?;
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.spans.iter().any(|span| span.field == field) {
            let message = format!("{:?} gives its sample the same field a second time", entry.name);
            let hint = "give each file of a sample an extension of its own";
            return Err(DatasetFault::new(FaultCode::DuplicateField, message, hint).at(entry.offset));
        }
        let within = u32::try_from(payload_offset - open.offset).ok();
        let (Some(offset), Ok(len)) = (within, u32::try_from(entry.bytes)) else {
            return Err(too_large(&open.key, open.offset));
        };
        open.spans.push(FieldSpan { field, offset, len });
        self.skipping = false;
        Ok(())
    }

    /// The end of an entry or of something skipped. What is attached belongs to the open sample.
    fn unit_end(&mut self, end: u64, attach: bool) {
        if let Some(open) = self.open.as_mut().filter(|_| attach) {
            (open.end, open.crc) = (end, self.raw.value());
        }
        self.unit_offset = end;
        self.skipping = false;
        self.head = Crc32c::new();
    }

    fn close_sample(&mut self) -> Result<(), DatasetFault> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let content = self.content.take();
        let bytes = open.end - open.offset;
        let Some(len) = u32::try_from(bytes).ok().filter(|len| *len <= MAX_CHUNK_BYTES) else {
            return Err(too_large(&open.key, open.offset));
        };
        self.keys.push((xxh3_64(open.key.as_bytes()), open.offset));
        self.chunker.push_sample(open.offset, len, open.crc, content, &open.spans);
        Ok(())
    }

    fn field_number(&mut self, field: &str) -> Result<u16, DatasetFault> {
        if let Some(number) = self.field_numbers.get(field) {
            return Ok(*number);
        }
        let known = self.field_numbers.len();
        let Some(number) = u16::try_from(known).ok().filter(|_| known < MAX_FIELDS) else {
            return Err(too_many_fields());
        };
        self.field_numbers.insert(field.to_owned(), number);
        Ok(number)
    }

    fn finish(mut self) -> Result<ShardTable, Vec<DatasetFault>> {
        self.close_sample().map_err(|fault| vec![fault])?;
        self.keys.sort_unstable();
        let again = self.keys.windows(2).filter(|pair| pair[0].0 == pair[1].0);
        let faults: Vec<_> =
            again.take(MAX_SHARD_FAULTS).map(|pair| split_sample(pair[0].1, pair[1].1)).collect();
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut fields = vec![String::new(); self.field_numbers.len()];
        for (name, number) in self.field_numbers {
            fields[usize::from(number)] = name;
        }
        Ok(self.chunker.finish(fields))
    }
}

/// Key and field of a file's path; `None` if its name has no dot behind its first character, or nothing behind that.
fn split_name(path: &str) -> Option<(&str, String)> {
    if is_left_out(path) {
        return None;
    }
    let base = path.rfind('/').map_or(0, |slash| slash + 1);
    let (stem, field) = path[base..].split_once('.')?;
    (!stem.is_empty() && !field.is_empty()).then(|| (&path[..base + stem.len()], field.to_ascii_lowercase()))
}

fn is_left_out(path: &str) -> bool {
    let base = path.rsplit('/').next().unwrap_or(path);
    base.starts_with('.') || (base == path && path.starts_with("__") && path.ends_with("__"))
}

fn too_large(key: &str, offset: u64) -> DatasetFault {
    let message = format!("the sample {key:?} has more than {MAX_CHUNK_BYTES} bytes");
    DatasetFault::new(FaultCode::SampleTooLarge, message, "split it into smaller samples").at(offset)
}

/// Also said when the fields of all shards together are too many.
pub(in crate::dataset) fn too_many_fields() -> DatasetFault {
    let message = format!("there are more than {MAX_FIELDS} different fields");
    let hint =
        "the field is all that follows the first dot of a file's name: take other dots out of the names";
    DatasetFault::new(FaultCode::TooMany, message, hint)
}

fn split_sample(first: u64, second: u64) -> DatasetFault {
    let message = format!("the sample that begins at byte {first} comes again here");
    let hint =
        "put all files of a sample next to each other: write the archive with sorted names (tar --sort=name)";
    DatasetFault::new(FaultCode::SampleSplit, message, hint).at(second)
}
