//! What can be wrong with a dataset: one fault names its place, a stable code, and what to do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most faults that are reported at once: past that, more of the same help nobody.
pub const MAX_FAULTS: usize = 1000;

/// One thing that is wrong with a dataset, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetFault {
    /// The shard, if it concerns one.
    pub shard: Option<String>,
    /// The first byte that it concerns, counted from the shard's first.
    pub offset: Option<u64>,
    /// What kind of fault: stable, for programs.
    pub code: FaultCode,
    /// What is wrong, for people.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// Kinds of faults. The names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultCode {
    /// There is no shard.
    Empty,
    /// There are shards, but no sample in them.
    NoSamples,
    /// Shards of different kinds lie together.
    MixedFormats,
    /// More shards, fields or samples than a manifest can hold.
    TooMany,
    /// A name that no manifest can hold.
    BadName,
    /// The store could not list or read.
    Unreadable,
    /// The store could not write.
    Unwritable,
    /// A data set is to be copied onto itself.
    SamePlace,
    /// A shard ends before what it announces.
    Truncated,
    /// Bytes after the end of what a shard announces.
    TrailingBytes,
    /// A tar header whose checksum or numbers are wrong.
    TarHeader,
    /// A tar entry that is no plain file (link, device, sparse file).
    TarEntryKind,
    /// A file in a tar whose name has no extension, so no field.
    NoField,
    /// The same field twice in one sample.
    DuplicateField,
    /// A sample's files do not lie next to each other.
    SampleSplit,
    /// A sample that is larger than a chunk may be.
    SampleTooLarge,
    /// A `.npy` header that cannot be read, or an array of a kind that cannot be served.
    Npy,
    /// How long a record is was not said, or shards disagree about it.
    RecordLayout,
    /// The manifest itself is damaged.
    ManifestCorrupt,
    /// The manifest describes other shards than there are.
    ManifestStale,
    /// A shard of the manifest is not in the store.
    ShardMissing,
    /// A chunk's bytes are not those that were indexed.
    ChunkCrc,
    /// A sample's bytes are not those that were indexed.
    SampleCrc,
}

impl FaultCode {
    /// The stable name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NoSamples => "no_samples",
            Self::MixedFormats => "mixed_formats",
            Self::TooMany => "too_many",
            Self::BadName => "bad_name",
            Self::Unreadable => "unreadable",
            Self::Unwritable => "unwritable",
            Self::SamePlace => "same_place",
            Self::Truncated => "truncated",
            Self::TrailingBytes => "trailing_bytes",
            Self::TarHeader => "tar_header",
            Self::TarEntryKind => "tar_entry_kind",
            Self::NoField => "no_field",
            Self::DuplicateField => "duplicate_field",
            Self::SampleSplit => "sample_split",
            Self::SampleTooLarge => "sample_too_large",
            Self::Npy => "npy",
            Self::RecordLayout => "record_layout",
            Self::ManifestCorrupt => "manifest_corrupt",
            Self::ManifestStale => "manifest_stale",
            Self::ShardMissing => "shard_missing",
            Self::ChunkCrc => "chunk_crc",
            Self::SampleCrc => "sample_crc",
        }
    }
}

impl fmt::Display for FaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl DatasetFault {
    /// A fault that concerns no single shard.
    pub fn new(code: FaultCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { shard: None, offset: None, code, message: message.into(), hint: hint.into() }
    }

    /// The same fault, in that shard.
    #[must_use]
    pub fn in_shard(mut self, shard: impl Into<String>) -> Self {
        self.shard = Some(shard.into());
        self
    }

    /// The same fault, at that byte.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }
}

impl fmt::Display for DatasetFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(shard) = &self.shard {
            write!(f, "{shard}")?;
            if let Some(offset) = self.offset {
                write!(f, " at byte {offset}")?;
            }
            write!(f, ": ")?;
        }
        write!(f, "{} ({}); {}", self.message, self.code, self.hint)
    }
}

impl std::error::Error for DatasetFault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_its_place_its_code_and_a_way_out() {
        let fault = DatasetFault::new(FaultCode::Truncated, "the file ends early", "copy it again")
            .in_shard("a.tar")
            .at(512);
        assert_eq!(fault.to_string(), "a.tar at byte 512: the file ends early (truncated); copy it again");
        assert_eq!(serde_json::to_value(&fault).unwrap()["code"], "truncated");
    }

    #[test]
    fn the_name_of_a_code_is_the_same_everywhere() {
        for code in [FaultCode::Empty, FaultCode::NoSamples, FaultCode::TarEntryKind, FaultCode::SampleCrc] {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
