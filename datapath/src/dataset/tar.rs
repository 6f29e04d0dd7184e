//! Tar archives, read as a stream of bytes that may be cut anywhere (pure).
//!
//! POSIX ustar with its name prefix, pax records (`path`, `size`) per entry and for all entries, GNU long names and
//! base-256 sizes. Header layout: POSIX.1-2017, `pax`, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
//!
//! ```text
//! Header ─ a file ──▶ Payload ─▶ Padding ─▶ Header          Entry, Data…, EntryEnd
//!        ─ x g L K ─▶ Extension ─▶ Padding ─▶ Header        (changes what the next headers mean)
//!        ─ a folder ─▶ Header                               Skipped
//!        ─ zeros ───▶ Tail                                  End; from here on all bytes must be zero
//! ```

use super::{DatasetFault, FaultCode, MAX_NAME_BYTES, count};

mod header;
mod samples;

use header::{BLOCK_BYTES, Header, Kind, Overrides};
pub(super) use samples::{TarIndexer, too_many_fields};

/// Longest pax or GNU extension of one entry, in bytes: names are at most 4 KiB, the rest is attributes that nobody reads.
pub const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// A file in the archive; its payload follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its first header, in the archive: where its extensions begin, if it has any.
    pub offset: u64,
    /// Its path.
    pub name: String,
    /// Length of its payload.
    pub bytes: u64,
}

/// What the scanner came upon.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// All of the input is used up.
    More,
    /// A file begins; its payload comes next.
    Entry(Entry),
    /// A piece of the payload.
    Data(&'a [u8]),
    /// The file's payload and padding are over.
    EntryEnd,
    /// Something without payload that is no file and of no account.
    Skipped,
    /// Something that cannot be part of a sample (a link, a device); the scan can go on behind it.
    Refused(DatasetFault),
    /// The end of the archive.
    End,
}

/// Reads one archive. Memory: a header block and at most [`MAX_EXTENSION_BYTES`].
#[derive(Debug)]
pub struct Scanner {
    state: State,
    /// Bytes taken so far.
    offset: u64,
    /// Bytes that the archive has.
    archive_bytes: u64,
    /// Where the entry that is being read began: its first extension, or its header.
    entry_offset: u64,
    /// An extension of it was read.
    entry_begun: bool,
    /// The header that is being read.
    block: [u8; BLOCK_BYTES],
    local: Overrides,
    global: Overrides,
}

#[derive(Debug)]
enum State {
    Header { filled: usize },
    Extension { kind: Kind, rest: u64, padding: u64, content: Vec<u8> },
    Payload { rest: u64, padding: u64 },
    Padding { rest: u64, of: PaddingOf },
    Tail,
}

#[derive(Clone, Copy, Debug)]
enum PaddingOf {
    File,
    Extension,
}

impl Scanner {
    /// A scanner at an archive's first byte.
    pub fn new(archive_bytes: u64) -> Self {
        let (local, global) = (Overrides::default(), Overrides::default());
        Self {
            state: State::Header { filled: 0 },
            offset: 0,
            archive_bytes,
            entry_offset: 0,
            entry_begun: false,
            block: [0; BLOCK_BYTES],
            local,
            global,
        }
    }

    /// Bytes taken so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes some of `input` and says how much, and what it is. To be called until it says [`Event::More`]; after a fault
    /// the scan is over.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Event<'a>), DatasetFault> {
        let mut used = 0;
        loop {
            let (taken, event) = self.advance(&input[used..])?;
            used += taken;
            self.offset += count(taken);
            if let Some(event) = event {
                return Ok((used, event));
            }
        }
    }

    /// To be asked at the archive's end: did it end where an archive may?
    pub fn finish(&self) -> Result<(), DatasetFault> {
        let message = match &self.state {
            State::Tail => return Ok(()),
            State::Header { filled: 0, .. } => "the archive ends without its end-of-archive marker",
            State::Header { .. } => "the archive ends inside a header",
            _ => "the archive ends inside an entry",
        };
        let hint = "the shard is cut short: copy or write it again";
        Err(DatasetFault::new(FaultCode::Truncated, message, hint).at(self.offset))
    }

    /// One step: bytes taken, and an event if there is one.
    fn advance<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Option<Event<'a>>), DatasetFault> {
        match &mut self.state {
            State::Header { filled } => {
                let taken = input.len().min(BLOCK_BYTES - *filled);
                self.block[*filled..*filled + taken].copy_from_slice(&input[..taken]);
                *filled += taken;
                if *filled < BLOCK_BYTES {
                    return Ok((taken, Some(Event::More)));
                }
                let block = self.block;
                Ok((taken, self.header(&block, self.offset + count(taken))?))
            }
            State::Extension { rest, content, .. } => {
                let taken = at_most(input.len(), *rest);
                content.extend(&input[..taken]);
                *rest -= count(taken);
                if *rest > 0 {
                    return Ok((taken, Some(Event::More)));
                }
                self.extension()?;
                Ok((taken, None))
            }
            State::Payload { rest: 0, padding } => {
                self.state = State::Padding { rest: *padding, of: PaddingOf::File };
                Ok((0, None))
            }
            State::Payload { rest, .. } => {
                let taken = at_most(input.len(), *rest);
                *rest -= count(taken);
                Ok((taken, Some(if taken == 0 { Event::More } else { Event::Data(&input[..taken]) })))
            }
            State::Padding { rest, of } => {
                let taken = at_most(input.len(), *rest);
                *rest -= count(taken);
                if *rest > 0 {
                    return Ok((taken, Some(Event::More)));
                }
                let event = match of {
                    PaddingOf::File => Some(Event::EntryEnd),
                    PaddingOf::Extension => None,
                };
                self.state = State::Header { filled: 0 };
                Ok((taken, event))
            }
            State::Tail => match input.iter().position(|byte| *byte != 0) {
                None => Ok((input.len(), Some(Event::More))),
                Some(at) => {
                    let message = "there are bytes after the end of the archive";
                    let hint = "archives that were joined by cat hide all but the first: split it, or use tar --concatenate";
                    Err(DatasetFault::new(FaultCode::TrailingBytes, message, hint)
                        .at(self.offset + count(at)))
                }
            },
        }
    }

    /// A whole header block; `end` is the offset behind it.
    fn header(
        &mut self,
        block: &[u8; BLOCK_BYTES],
        end: u64,
    ) -> Result<Option<Event<'static>>, DatasetFault> {
        let block_offset = end - count(BLOCK_BYTES);
        if block.iter().all(|byte| *byte == 0) {
            if self.local.begun {
                let message = "an extension is followed by no entry";
                return Err(DatasetFault::new(FaultCode::TarHeader, message, REWRITE).at(block_offset));
            }
            self.state = State::Tail;
            return Ok(Some(Event::End));
        }
        if !std::mem::replace(&mut self.entry_begun, true) {
            self.entry_offset = block_offset;
        }
        let header = Header::parse(block).map_err(|fault| fault.at(block_offset))?;
        if header.kind.is_extension() {
            let announced = self.within(header.size, end)?;
            if announced > MAX_EXTENSION_BYTES {
                let message = format!("an extension has {announced} bytes, more than {MAX_EXTENSION_BYTES}");
                return Err(DatasetFault::new(FaultCode::TarHeader, message, REWRITE).at(block_offset));
            }
            let padding = padding_after(announced);
            self.local.begun |= header.kind != Kind::PaxGlobal;
            self.state =
                State::Extension { kind: header.kind, rest: announced, padding, content: Vec::new() };
            return Ok(None);
        }
        self.entry_begun = false;
        let local = std::mem::take(&mut self.local);
        self.state = State::Header { filled: 0 };
        let name = local.path.or_else(|| self.global.path.clone()).map_or_else(|| header.name(), Ok);
        let name = name.map_err(|fault| fault.at(block_offset))?;
        match header.kind {
            Kind::Directory => return Ok(Some(Event::Skipped)),
            Kind::File if name.ends_with('/') => return Ok(Some(Event::Skipped)),
            Kind::File if !local.sparse => {}
            Kind::Link(what) => {
                let message = format!("{name:?} is {what}, not a file");
                let hint = "write the archive with --dereference --hard-dereference, and without devices";
                let fault = DatasetFault::new(FaultCode::TarEntryKind, message, hint).at(self.entry_offset);
                return Ok(Some(Event::Refused(fault)));
            }
            _ => {
                let message = format!("{name:?} is a sparse, split or unknown kind of entry");
                return Err(
                    DatasetFault::new(FaultCode::TarEntryKind, message, REWRITE).at(self.entry_offset)
                );
            }
        }
        let bytes = self.within(local.size.or(self.global.size).unwrap_or(header.size), end)?;
        self.state = State::Payload { rest: bytes, padding: padding_after(bytes) };
        Ok(Some(Event::Entry(Entry { offset: self.entry_offset, name, bytes })))
    }

    /// A whole extension: its meaning is kept for the next header.
    fn extension(&mut self) -> Result<(), DatasetFault> {
        let next = State::Padding { rest: 0, of: PaddingOf::Extension };
        if let State::Extension { kind, padding, content, .. } = std::mem::replace(&mut self.state, next) {
            self.state = State::Padding { rest: padding, of: PaddingOf::Extension };
            let read = match kind {
                Kind::Pax => self.local.read_pax(&content),
                Kind::PaxGlobal => self.global.read_pax(&content),
                Kind::GnuLongName => self.local.read_long_name(&content),
                _ => Ok(()),
            };
            read.map_err(|fault| fault.at(self.entry_offset))?;
        }
        Ok(())
    }

    /// An announced length, if the archive is long enough for it.
    fn within(&self, announced: u64, from: u64) -> Result<u64, DatasetFault> {
        if announced <= self.archive_bytes.saturating_sub(from) {
            return Ok(announced);
        }
        let message = format!(
            "an entry of {announced} bytes begins, but the archive ends at byte {}",
            self.archive_bytes
        );
        let hint = "the shard is cut short: copy or write it again";
        Err(DatasetFault::new(FaultCode::Truncated, message, hint).at(self.entry_offset))
    }
}

const REWRITE: &str =
    "write the archive again with GNU tar, bsdtar or Python's tarfile, without sparse files";

fn at_most(len: usize, rest: u64) -> usize {
    usize::try_from(rest).map_or(len, |rest| rest.min(len))
}

/// Zeros up to the next block.
fn padding_after(bytes: u64) -> u64 {
    bytes.next_multiple_of(count(BLOCK_BYTES)) - bytes
}

/// A name as text, if it is one.
fn name_from(bytes: &[u8]) -> Result<String, DatasetFault> {
    let hint = "rename the file: names are UTF-8, and at most 4096 bytes long";
    match std::str::from_utf8(bytes) {
        Ok(name) if name.len() <= MAX_NAME_BYTES && !name.is_empty() => Ok(name.to_owned()),
        Ok(name) => {
            let message = format!("a file's name has {} bytes", name.len());
            Err(DatasetFault::new(FaultCode::BadName, message, hint))
        }
        Err(_) => Err(DatasetFault::new(FaultCode::BadName, "a file's name is not UTF-8", hint)),
    }
}

#[cfg(test)]
pub(in crate::dataset) mod tests;
