//! A job's journal: one JSON line per thing that must be known later, only ever appended to.
//!
//! Each line carries a CRC-32C over its time and entry. A line that cannot be read (torn by a crash, or damaged) is
//! left out and counted; the others still count, because what a journal says only grows: the largest generation,
//! the furthest commit.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use datapath::integrity::crc32c;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use worker::units::Generation;

use super::folder::private_file;
use crate::backend::Phase;
use crate::rendezvous::group::{Memory, Record};

/// Bytes of a journal that are read: a job that commits every second for a year writes about 16 GiB less.
const JOURNAL_BYTES_MAX: u64 = 4 << 30;

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
    file: File,
}

impl Journal {
    /// Opens it for appending.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = private_file().read(true).append(true).create(true).open(path)?;
        // A torn last line must not swallow the next one.
        if file.seek(SeekFrom::End(0))? > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(Self { file })
    }

    /// Appends; returns when it is in the file, or if wanted on the disk.
    pub(super) fn append(&mut self, at: u64, entry: &Entry, durable: bool) -> io::Result<()> {
        self.file.write_all(&Line::encode(at, entry)?)?;
        if durable { self.file.sync_data() } else { Ok(()) }
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
            Ok(file) => file.take(JOURNAL_BYTES_MAX).read_to_end(&mut bytes)?,
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
        Memory::of(self.lines.iter().filter_map(|line| match &line.entry {
            Entry::Group(record) => Some(record.as_ref()),
            _ => None,
        }))
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
}

#[cfg(test)]
mod tests;
