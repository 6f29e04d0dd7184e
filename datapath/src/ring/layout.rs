//! What a slot looks like inside (pure): header, sample numbers, table of fields, payload. All little-endian.
//!
//! ```text
//! 0   u32 magic "PLWS"   u32 version 1    u64 slot generation   u64 step   u64 epoch
//! 32  u32 samples n      u32 real         u32 fields f          u32 first position
//! 48  u64 payload offset u64 payload bytes
//! 64  u64 sample number [n]
//!     (u64 offset from the slot's start, u64 length) [n * f]    length 2^64-1: this sample has no such field
//!     payload, 64-byte aligned; records lie without gaps, tar fields are 8-byte aligned
//! ```
//! `real` samples come first; the rest is padding of an epoch's last batch.

use std::num::NonZeroU32;

/// `PLWS` as a little-endian number.
pub const MAGIC: u32 = 0x5357_4c50;
/// The version of this layout.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: u64 = 64;
/// The payload starts at a multiple of this: a cache line, and what vector loads like.
pub const PAYLOAD_ALIGN: u64 = 64;
/// A field of a tar sample starts at a multiple of this: the largest number that a field may be an array of.
pub const FIELD_ALIGN: u64 = 8;
/// A slot's size is a multiple of this: a page, so that an unused slot's pages are never touched.
pub const SLOT_ALIGN: u64 = 4096;
/// A table entry's length for a field that the sample has not.
pub const ABSENT: u64 = u64::MAX;

/// The fixed part of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which use of the slot this is.
    pub slot_generation: u64,
    /// The step, over all epochs.
    pub step: u64,
    /// The epoch it lies in.
    pub epoch: u64,
    /// Samples in the slot.
    pub samples: u32,
    /// Those that are no padding.
    pub real: u32,
    /// Columns of the table.
    pub fields: u32,
    /// The first sample's position in the global batch.
    pub first_position: u32,
    /// Where the payload starts.
    pub payload_offset: u64,
    /// How long it is.
    pub payload_bytes: u64,
}

impl Header {
    /// Writes it to a slot's start.
    ///
    /// # Panics
    /// When the slot is shorter than a header.
    pub fn write(&self, slot: &mut [u8]) {
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            slot[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&VERSION.to_le_bytes());
        put(&self.slot_generation.to_le_bytes());
        put(&self.step.to_le_bytes());
        put(&self.epoch.to_le_bytes());
        put(&self.samples.to_le_bytes());
        put(&self.real.to_le_bytes());
        put(&self.fields.to_le_bytes());
        put(&self.first_position.to_le_bytes());
        put(&self.payload_offset.to_le_bytes());
        put(&self.payload_bytes.to_le_bytes());
    }

    /// Reads it back; none when the slot is no slot of this version.
    #[must_use]
    pub fn read(slot: &[u8]) -> Option<Self> {
        let four = |at: usize| Some(u32::from_le_bytes(slot.get(at..at + 4)?.try_into().ok()?));
        let eight = |at: usize| Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?));
        (four(0)? == MAGIC && four(4)? == VERSION).then_some(())?;
        Some(Self {
            slot_generation: eight(8)?,
            step: eight(16)?,
            epoch: eight(24)?,
            samples: four(32)?,
            real: four(36)?,
            fields: four(40)?,
            first_position: four(44)?,
            payload_offset: eight(48)?,
            payload_bytes: eight(56)?,
        })
    }
}

/// Where the table of a batch of `samples` starts.
#[must_use]
pub fn table_offset(samples: u64) -> u64 {
    HEADER_BYTES + 8 * samples
}

/// Where the payload of such a batch starts.
#[must_use]
pub fn payload_offset(samples: u64, fields: u64) -> u64 {
    (table_offset(samples) + 16 * samples * fields).next_multiple_of(PAYLOAD_ALIGN)
}

/// What decides how large a slot must be.
#[derive(Clone, Copy, Debug)]
pub struct SlotNeeds {
    /// Samples of one step over all consumers.
    pub global_batch: NonZeroU32,
    /// How many consumers share them.
    pub consumers: NonZeroU32,
    /// Columns of the table.
    pub fields: u32,
    /// Bytes of the largest sample.
    pub max_sample_bytes: u64,
}

/// Bytes of one slot: room for a batch of only largest samples. None when that is more than 2^64.
#[must_use]
pub fn slot_bytes(needs: SlotNeeds) -> Option<u64> {
    let samples = u64::from(needs.global_batch.get().div_ceil(needs.consumers.get()));
    let fields = u64::from(needs.fields);
    // Every field may start up to FIELD_ALIGN - 1 bytes after the last one's end.
    let sample = needs.max_sample_bytes.checked_add(fields.checked_mul(FIELD_ALIGN)?)?;
    payload_offset(samples, fields)
        .checked_add(samples.checked_mul(sample)?)?
        .checked_next_multiple_of(SLOT_ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_to_the_byte() {
        let header = Header {
            slot_generation: 0x0102_0304_0506_0708,
            step: 9,
            epoch: 10,
            samples: 11,
            real: 12,
            fields: 13,
            first_position: 14,
            payload_offset: 15,
            payload_bytes: 16,
        };
        let mut slot = [0xff; 72];
        header.write(&mut slot);
        let golden = [
            0x50, 0x4c, 0x57, 0x53, 1, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0,
            0, 0, 0, 0, 11, 0, 0, 0, 12, 0, 0, 0, 13, 0, 0, 0, 14, 0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 0, 16, 0,
            0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(&slot[..64], &golden);
        assert_eq!(&slot[64..], &[0xff; 8]);
        assert_eq!(Header::read(&slot), Some(header));
        slot[0] = 0;
        assert_eq!(Header::read(&slot), None);
        assert_eq!(Header::read(&golden[..63]), None);
    }

    #[test]
    fn a_slot_holds_the_largest_batch_in_whole_pages() {
        let needs = |global: u32, consumers: u32, fields, max_sample_bytes| SlotNeeds {
            global_batch: NonZeroU32::new(global).unwrap(),
            consumers: NonZeroU32::new(consumers).unwrap(),
            fields,
            max_sample_bytes,
        };
        assert_eq!(payload_offset(3, 1), 192);
        assert_eq!(slot_bytes(needs(10, 3, 1, 4096)), Some((192 + 4 * 4104_u64).next_multiple_of(4096)));
        assert_eq!(slot_bytes(needs(1, 1, 1, 0)), Some(4096));
        assert_eq!(slot_bytes(needs(u32::MAX, 1, 1, u64::MAX - 100)), None);
    }
}
