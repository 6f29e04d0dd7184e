//! Which samples form step s, for consumer i of n: a pure function.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How samples are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case")]
pub enum Shuffle {
    /// In the order in which they are stored.
    None,
    /// Chunks are permuted; samples are permuted inside windows of that many consecutive permuted chunks.
    Window {
        /// Chunks per window.
        chunks: NonZeroU32,
    },
}

/// What happens with the samples of an epoch that do not fill a global batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remainder {
    /// They are left out of this epoch (another epoch's order leaves out others).
    Drop,
    /// The last batch is filled from the epoch's beginning; the filling is marked.
    Pad,
}

/// What an order depends on, besides the dataset's digest and the epoch. The number of consumers is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderSpec {
    /// The job's seed.
    pub seed: u64,
    /// Samples of one step, over all consumers.
    pub global_batch: NonZeroU32,
    /// How samples are mixed.
    pub shuffle: Shuffle,
    /// What happens at an epoch's end.
    pub remainder: Remainder,
}

/// A sum over (epoch, step, position, sample), equal for any split of the same steps over consumers.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct OrderDigest(pub u128);

impl OrderDigest {
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
        if text.len() != 32 {
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
