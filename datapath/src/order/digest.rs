//! One number that says which samples were delivered where, however the work was split (pure).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::dataset::SampleId;

/// A sum over (epoch, step, position, sample), equal for any split of the same steps over consumers.
///
/// Padding counts: it is delivered at a position of its own, like any sample, and `data order --digest` computes the
/// same. (Counts of samples and bytes leave padding out.) A step that is delivered again adds again, so whoever sums up
/// keeps one digest per step.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct OrderDigest(pub u128);

impl OrderDigest {
    /// Takes one delivered sample in: the four numbers, each as 8 little-endian bytes, hashed by XXH3-128.
    pub fn add(&mut self, epoch: u64, step_in_epoch: u64, position: u32, sample: SampleId) {
        let numbers = [epoch, step_in_epoch, position.into(), sample.0];
        let mut bytes = [0; 32];
        for (eight, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            eight.copy_from_slice(&number.to_le_bytes());
        }
        self.0 = self.0.wrapping_add(xxh3_128(&bytes));
    }

    /// Takes another consumer's (or step's) contribution in.
    pub fn merge(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

impl fmt::Display for OrderDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for OrderDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrderDigest({self})")
    }
}

/// Not 32 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("read an order digest: it is 32 hexadecimal digits")]
pub struct OrderDigestError;

impl FromStr for OrderDigest {
    type Err = OrderDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A sign is no digit, though the integer parser takes one.
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(OrderDigestError);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| OrderDigestError)
    }
}

impl Serialize for OrderDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OrderDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_adding_is_of_no_account_and_every_number_is() {
        let mut whole = OrderDigest::default();
        whole.add(0, 1, 0, SampleId(7));
        whole.add(0, 1, 1, SampleId(8));
        let (mut one, mut other) = (OrderDigest::default(), OrderDigest::default());
        other.add(0, 1, 1, SampleId(8));
        one.add(0, 1, 0, SampleId(7));
        other.merge(one);
        assert_eq!(other, whole);
        for (epoch, step, position, sample) in [(1, 1, 0, 7), (0, 2, 0, 7), (0, 1, 2, 7), (0, 1, 0, 9)] {
            let mut different = OrderDigest::default();
            different.add(epoch, step, position, SampleId(sample));
            assert_ne!(different, one);
        }
    }

    /// The value is part of what a checkpoint keeps, so it must never change.
    #[test]
    fn the_value_is_fixed() {
        let mut digest = OrderDigest::default();
        digest.add(1, 2, 3, SampleId(4));
        assert_eq!(digest.to_string(), "93e085440feb4ed733491ce3a4ecfabd");
    }

    #[test]
    fn text_and_json() {
        let digest = OrderDigest(0xABC);
        assert_eq!(digest.to_string(), "00000000000000000000000000000abc");
        assert_eq!(digest.to_string().parse::<OrderDigest>().unwrap(), digest);
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<OrderDigest>(&json).unwrap(), digest);
        for wrong in ["", "abc", "+0000000000000000000000000000abc", "0000000000000000000000000000000g"] {
            assert!(wrong.parse::<OrderDigest>().is_err(), "{wrong}");
        }
    }
}
