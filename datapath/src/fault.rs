//! What is wrong with data, said so that a user can act on it (pure).

use serde::{Deserialize, Serialize};

/// A sample's or chunk's bytes are not what the manifest says.
pub const CRC_MISMATCH: &str = "crc_mismatch";
/// A shard ends before the manifest says.
pub const SHORT_READ: &str = "short_read";
/// A shard is not there.
pub const NOT_FOUND: &str = "not_found";
/// The store could not be read for another reason.
pub const STORE_FAILED: &str = "store_failed";
/// The cache holds less than this worker's share of a shuffle window: chunks are read more than once. A warning.
pub const CACHE_SMALL: &str = "cache_small";
/// The node-local tier takes no more: its budget is used, or its disk is full. A note, or a warning.
pub const TIER_FULL: &str = "tier_full";
/// A chunk of the node-local tier is not what was indexed. A warning.
pub const TIER_CORRUPT: &str = "tier_corrupt";
/// The node-local tier's disk refused a read or a write. A warning.
pub const TIER_FAILED: &str = "tier_failed";
/// No data server can be reached: workers read the store themselves. A warning.
pub const SERVERS_GONE: &str = "servers_gone";
/// No worker could deliver the chunk.
pub const PEER_GONE: &str = "peer_gone";
/// Another worker refused this one for good: they hold different data, or run different releases.
pub const PEER_REFUSED: &str = "peer_refused";
/// A lane over RDMA failed as only a mistake of this program makes it fail; another lane would hide that.
pub const LANE_BROKEN: &str = "lane_broken";

/// An error with all that is under it, in one line: some say only by their source what happened.
#[must_use]
pub fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        // Some texts have their cause's in them already.
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = source.source();
    }
    text
}

/// One thing that keeps a feed from going on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFault {
    /// The shard's name.
    pub shard: String,
    /// The chunk's number.
    pub chunk: u32,
    /// The sample's number, when it is about one.
    pub sample: Option<u64>,
    /// A stable word: one of this module's constants.
    pub reason: String,
    /// What is wrong, for people.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}
