//! Shards of fixed-size records: `.bin` with a layout that the user names, `.npy` with a layout that its header names.
//!
//! The header of `.npy` is described in NumPy's `numpy.lib.format`: magic, version 1 to 3, length, a Python literal.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{DatasetFault, FaultCode, MAX_CHUNK_BYTES};

mod indexer;
mod npy;

pub(super) use indexer::RecordIndexer;
pub use npy::{MAX_NPY_HEADER_BYTES, NpyHeader, parse_npy};

/// Type of one item of a record, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it all")]
pub enum Dtype {
    Bool,
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
    F16,
    F32,
    F64,
}

/// Every type, its short name, NumPy's name, NumPy's type code, and its size in bytes. The index is the manifest's code.
const DTYPES: [(Dtype, &str, &str, &str, u32); 12] = [
    (Dtype::Bool, "bool", "bool", "b1", 1),
    (Dtype::U8, "u8", "uint8", "u1", 1),
    (Dtype::U16, "u16", "uint16", "u2", 2),
    (Dtype::U32, "u32", "uint32", "u4", 4),
    (Dtype::U64, "u64", "uint64", "u8", 8),
    (Dtype::I8, "i8", "int8", "i1", 1),
    (Dtype::I16, "i16", "int16", "i2", 2),
    (Dtype::I32, "i32", "int32", "i4", 4),
    (Dtype::I64, "i64", "int64", "i8", 8),
    (Dtype::F16, "f16", "float16", "f2", 2),
    (Dtype::F32, "f32", "float32", "f4", 4),
    (Dtype::F64, "f64", "float64", "f8", 8),
];

impl Dtype {
    /// Size of one item in bytes.
    pub fn bytes(self) -> u32 {
        DTYPES[usize::from(self.code())].4
    }

    /// NumPy's and torch's name: `uint16`.
    pub fn numpy_name(self) -> &'static str {
        DTYPES[usize::from(self.code())].2
    }

    /// The number that stands for it in a manifest.
    pub(crate) fn code(self) -> u8 {
        let at = DTYPES.iter().position(|row| row.0 == self);
        // Every type is in the table; a test counts them.
        at.and_then(|at| u8::try_from(at).ok()).unwrap_or(0)
    }

    /// The type that a manifest's number stands for.
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        DTYPES.get(usize::from(code)).map(|row| row.0)
    }

    /// The type that NumPy's code (without the byte order) stands for.
    fn from_numpy_code(code: &str) -> Option<Self> {
        DTYPES.iter().find(|row| row.3 == code).map(|row| row.0)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DTYPES[usize::from(self.code())].1)
    }
}

/// Not the name of a type.
#[derive(Debug, thiserror::Error)]
#[error("read the type {0:?}: known ones are bool, u8, u16, u32, u64, i8, i16, i32, i64, f16, f32, f64")]
pub struct DtypeError(String);

impl FromStr for Dtype {
    type Err = DtypeError;

    /// Takes the short name (`u16`) and NumPy's (`uint16`).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let row = DTYPES.iter().find(|row| row.1 == text || row.2 == text);
        row.map(|row| row.0).ok_or_else(|| DtypeError(text.into()))
    }
}

/// What one record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordLayout {
    /// Type of its items.
    pub dtype: Dtype,
    /// Items per record.
    pub items: u32,
    /// Bytes before the first record of each `.bin` shard; 0 for `.npy`, whose own header says it.
    #[serde(default)]
    pub header_bytes: u64,
}

impl RecordLayout {
    /// Size of a record in bytes.
    pub fn record_bytes(&self) -> u64 {
        u64::from(self.dtype.bytes()) * u64::from(self.items)
    }

    /// Refuses a record without items, and one larger than a chunk may be.
    pub fn check(&self) -> Result<(), DatasetFault> {
        if self.items == 0 {
            let message = "a record has no items";
            return Err(DatasetFault::new(
                FaultCode::RecordLayout,
                message,
                "say how many items a record has: 1 or more",
            ));
        }
        if self.record_bytes() > u64::from(MAX_CHUNK_BYTES) {
            let message = format!("a record has {} bytes, more than {MAX_CHUNK_BYTES}", self.record_bytes());
            return Err(DatasetFault::new(FaultCode::SampleTooLarge, message, "name fewer items per record"));
        }
        Ok(())
    }

    /// How many records a shard of that size holds after `data_offset`; a rest is a fault that names its first byte.
    pub fn records_in(&self, data_offset: u64, shard_bytes: u64) -> Result<u64, DatasetFault> {
        let Some(data) = shard_bytes.checked_sub(data_offset) else {
            let message = format!("the file has {shard_bytes} bytes, but its header {data_offset}");
            let hint = "copy the file again, or name the header's length";
            return Err(DatasetFault::new(FaultCode::Truncated, message, hint).at(shard_bytes));
        };
        let rest = data % self.record_bytes();
        if rest != 0 {
            let message = format!(
                "{rest} bytes are left over: {data} bytes are no multiple of a record of {} x {} ({} bytes)",
                self.items,
                self.dtype,
                self.record_bytes()
            );
            let hint = "name the right type, items per record and header length, or cut the rest off";
            return Err(DatasetFault::new(FaultCode::TrailingBytes, message, hint).at(shard_bytes - rest));
        }
        Ok(data / self.record_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_where_its_code_says() {
        for (at, row) in DTYPES.iter().enumerate() {
            assert_eq!(usize::from(row.0.code()), at);
            assert_eq!(Dtype::from_code(row.0.code()), Some(row.0));
            assert_eq!(row.1.parse::<Dtype>().unwrap(), row.0);
            assert_eq!(row.2.parse::<Dtype>().unwrap(), row.0);
            assert_eq!(row.0.to_string(), row.1);
            assert_eq!(serde_json::to_value(row.0).unwrap(), row.1);
        }
        assert!(Dtype::from_code(12).is_none());
        assert!("u128".parse::<Dtype>().unwrap_err().to_string().contains("f16"));
    }

    #[test]
    fn a_rest_is_named_with_its_first_byte() {
        let layout = RecordLayout { dtype: Dtype::U16, items: 3, header_bytes: 4 };
        assert_eq!(layout.records_in(4, 4 + 18).unwrap(), 3);
        let fault = layout.records_in(4, 4 + 20).unwrap_err();
        assert_eq!((fault.code, fault.offset), (FaultCode::TrailingBytes, Some(22)));
        let fault = layout.records_in(4, 3).unwrap_err();
        assert_eq!((fault.code, fault.offset), (FaultCode::Truncated, Some(3)));
    }

    #[test]
    fn impossible_records_are_refused() {
        let layout = |items| RecordLayout { dtype: Dtype::F64, items, header_bytes: 0 };
        assert_eq!(layout(0).check().unwrap_err().code, FaultCode::RecordLayout);
        assert_eq!(layout(u32::MAX).check().unwrap_err().code, FaultCode::SampleTooLarge);
        layout(MAX_CHUNK_BYTES / 8).check().unwrap();
    }
}
