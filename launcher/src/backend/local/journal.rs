//! A job's journal: one JSON line per thing that must be known later, only ever appended to.
//!
//! Each line carries a CRC-32C over its time and entry. A line that cannot be read (torn by a crash, or damaged) is
//! left out and counted; the others still count, because what a journal says only grows: the largest generation,
//! the furthest commit.
//!
//! A job that commits every second for a year would write gigabytes, so a journal that has grown is replaced by what
//! it says: one line that holds the membership's memory. [`writer`] does all writing on a thread of its own.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use datapath::integrity::crc32c;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use worker::units::Generation;

use super::folder::{private_file, sync_folder};
use crate::backend::Phase;
use crate::rendezvous::group::{Memory, Record};

pub(super) mod writer;

/// A journal that is larger than this, and twice as large as its last summary, is replaced by one: an hour of a
/// commit a second. It is read in milliseconds.
const COMPACT_BYTES: u64 = 1 << 20;
/// No journal of ours is this large; reading another's must not fill the memory.
const JOURNAL_BYTES_MAX: u64 = 1 << 28;

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    /// The job exists.
    Created {
        /// Unique among all jobs of all time.
        uid: String,
    },
    /// A controller begins.
    Controller {
        /// Its process.
        pid: u32,
        /// Workers with ranks that it wants.
        workers: u32,
    },
    /// The phase changed. For people and tests; nothing depends on it.
    Phase {
        /// The new one.
        phase: Phase,
        /// The generation.
        generation: Generation,
    },
    /// What the membership must remember.
    Group(Box<Record>),
    /// What all records before it said.
    Memory(Box<Memory>),
}

/// An entry and its time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    /// Milliseconds since the Unix epoch.
    pub(super) at: u64,
    pub(super) entry: Entry,
}

/// A line as it stands in the file. The checksum is over the entry's text, not its value: a number that is parsed
/// and printed again may differ in its last digit.
#[derive(Serialize, Deserialize)]
struct Written<'text> {
    at: u64,
    #[serde(borrow)]
    entry: &'text RawValue,
    crc: u32,
}

impl Line {
    /// The line's text, with its end.
    fn encode(at: u64, entry: &Entry) -> io::Result<Vec<u8>> {
        let entry = serde_json::value::to_raw_value(entry)?;
        let mut text = serde_json::to_vec(&Written { at, entry: &entry, crc: checksum(at, &entry) })?;
        text.push(b'\n');
        Ok(text)
    }

    fn decode(text: &[u8]) -> Option<Self> {
        let written: Written<'_> = serde_json::from_slice(text).ok()?;
        let entry = serde_json::from_str(written.entry.get()).ok()?;
        (checksum(written.at, written.entry) == written.crc).then_some(Self { at: written.at, entry })
    }
}

fn checksum(at: u64, entry: &RawValue) -> u32 {
    crc32c(&[&at.to_le_bytes(), entry.get().as_bytes()].concat())
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes in the file.
    length: u64,
    /// The length at which it is replaced by its summary.
    compact_at: u64,
}

impl Journal {
    /// Opens it for appending.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = private_file().read(true).append(true).create(true).open(path)?;
        let mut length = file.seek(SeekFrom::End(0))?;
        // A torn last line must not swallow the next one.
        if length > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                length += 1;
            }
        }
        Ok(Self { path: path.to_owned(), file, length, compact_at: COMPACT_BYTES })
    }

    /// Appends; returns when it is in the file, or if wanted on the disk.
    pub(super) fn append(&mut self, at: u64, entry: &Entry, durable: bool) -> io::Result<()> {
        self.append_text(&Line::encode(at, entry)?, durable)
    }

    fn append_text(&mut self, text: &[u8], durable: bool) -> io::Result<()> {
        self.file.write_all(text)?;
        self.length += u64::try_from(text.len()).unwrap_or(u64::MAX);
        if durable {
            self.file.sync_data()?;
        }
        if self.length >= self.compact_at { self.compact() } else { Ok(()) }
    }

    /// Replaces the file by its summary, as one step: whoever reads, and whatever dies, there is the old or the new.
    fn compact(&mut self) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let (file, length) = match self.write_summary(&new) {
            Ok(written) => written,
            Err(error) => {
                // The old one is as good, only longer.
                tracing::warn!(%error, "cannot shorten the journal");
                self.compact_at = self.length.saturating_mul(2);
                return Ok(());
            }
        };
        std::fs::rename(&new, &self.path)?;
        sync_folder(&self.path)?;
        self.file = file;
        self.length = length;
        self.compact_at = COMPACT_BYTES.max(length.saturating_mul(2));
        Ok(())
    }

    fn write_summary(&self, path: &Path) -> io::Result<(File, u64)> {
        let mut text = Vec::new();
        for line in Story::read(&self.path)?.summary() {
            text.extend(Line::encode(line.at, &line.entry)?);
        }
        // A launcher may have been killed right here, and have left a part of one.
        let mut file = private_file().write(true).create(true).truncate(true).open(path)?;
        file.write_all(&text)?;
        file.sync_all()?;
        let file = private_file().append(true).open(path)?;
        Ok((file, u64::try_from(text.len()).unwrap_or(u64::MAX)))
    }
}

/// What a journal says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Story {
    pub(super) lines: Vec<Line>,
    /// Lines that cannot be read.
    pub(super) damaged: usize,
}

impl Story {
    /// Reads a journal; a missing one says nothing.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(file) if file.metadata()?.len() > JOURNAL_BYTES_MAX => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than any journal"));
            }
            Ok(mut file) => file.read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        Ok(Self::parse(&bytes))
    }

    fn parse(bytes: &[u8]) -> Self {
        let mut story = Self::default();
        for text in bytes.split(|byte| *byte == b'\n').filter(|text| !text.is_empty()) {
            match Line::decode(text) {
                Some(line) => story.lines.push(line),
                None => story.damaged += 1,
            }
        }
        story
    }

    /// What the membership must know.
    pub(super) fn memory(&self) -> Memory {
        let mut memory = Memory::default();
        for line in &self.lines {
            match &line.entry {
                Entry::Group(record) => memory.take(record),
                Entry::Memory(all) => memory.clone_from(all),
                Entry::Created { .. } | Entry::Controller { .. } | Entry::Phase { .. } => {}
            }
        }
        memory
    }

    /// The fewest lines that say the same to those who need it.
    fn summary(&self) -> impl Iterator<Item = Line> {
        let created = self.lines.iter().find(|line| matches!(line.entry, Entry::Created { .. }));
        let controller = self.lines.iter().rfind(|line| matches!(line.entry, Entry::Controller { .. }));
        let memory = Line { at: self.ended(), entry: Entry::Memory(Box::new(self.memory())) };
        created.into_iter().chain(controller).cloned().chain([memory])
    }

    pub(super) fn uid(&self) -> Option<String> {
        self.lines.iter().find_map(|line| match &line.entry {
            Entry::Created { uid } => Some(uid.clone()),
            _ => None,
        })
    }

    /// When the job was submitted.
    pub(super) fn created(&self) -> u64 {
        self.lines.first().map_or(0, |line| line.at)
    }

    /// When it was last written.
    pub(super) fn ended(&self) -> u64 {
        self.lines.last().map_or(0, |line| line.at)
    }
}

#[cfg(test)]
mod tests;
