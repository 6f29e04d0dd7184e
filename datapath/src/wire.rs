//! What two data planes say to each other (pure): frames of a QUIC stream, all integers little-endian.
//!
//! ```text
//! frame    u32 length of what follows   u8 kind   body
//! control  stream 0 of the asking side:  HELLO -> WELCOME | NACK, then POSITION, PING at any time
//! request  one stream each:              WANT  -> HAVE and then its bytes | NACK
//! lane     one stream for a queue pair:  OFFER -> ACCEPT | DECLINE; the pair lives as long as the stream
//! lease    one stream each:              ASK   -> LEASE | NACK | DECLINE; the stream's end gives the chunk back
//! ```
//! After `HAVE` follows, for each group of the `WANT`, one byte: [`GROUP_FOLLOWS`] and then its ranges, joined in the
//! order in which they were asked for; or the code of a [`Refusal`], and nothing of this group.
//!
//! Lanes over verbs are spoken of here and need no version of their own: an owner that does not know their frames ends the
//! stream, which is an answer. What is leased is read by the asking side's device, past both kernels.

use std::time::Duration;

use crate::transport::rdma::endpoint::{Endpoint, PathMtu};
use crate::transport::rdma::gid::Gid;
use crate::transport::rdma::reason::Reason;

/// The version that both sides must share.
pub const VERSION: u16 = 1;
/// Bytes of one frame at the most: a `WANT` of [`RANGES_MAX`] ranges fits.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Ranges of one `WANT` at the most; a batch with more of them is asked for in several.
pub const RANGES_MAX: usize = 64 << 10;
/// Chunks of one `WANT` at the most: each has 16 bytes of its own in the frame.
pub const GROUPS_MAX: usize = 16 << 10;

/// How long an owner lends a chunk at the most. Whoever borrows knows when it asked, and trusts nothing that is older.
pub const LEASE_MAX: Duration = Duration::from_secs(10);

/// In front of a group's bytes.
pub const GROUP_FOLLOWS: u8 = 0;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First on a connection: who asks, for which data, in which membership.
    Hello {
        /// [`VERSION`] of the asking side.
        version: u16,
        /// The dataset's digest.
        dataset: [u8; 32],
        /// The membership's fence.
        fence: u64,
        /// The asking peer.
        peer: u32,
    },
    /// The connection may be used.
    Welcome {
        /// The owner's fence, the same.
        fence: u64,
    },
    /// A consumer has consumed everything before `step`.
    Position {
        /// The membership's fence.
        fence: u64,
        /// The consumer.
        consumer: u32,
        /// How many consumers there are.
        of: u32,
        /// The first step that it has not consumed.
        step: u64,
    },
    /// Nothing; shows that the control stream lives.
    Ping,
    /// Ranges of chunks.
    Want(Want),
    /// The wanted groups follow.
    Have {
        /// The request.
        request: u64,
        /// How many, if no group is refused; what is in front of each group is not counted.
        bytes: u64,
    },
    /// No.
    Nack {
        /// The request; 0 in answer to a hello.
        request: u64,
        /// Why.
        refusal: Refusal,
        /// Ask again after so many milliseconds; 0: never.
        retry_after_ms: u32,
    },
    /// A lane over verbs is wanted.
    Offer {
        /// The owner's rail that it is to end at; beyond the last they begin anew.
        rail: u8,
        /// The asking side's half of the queue pair.
        half: Endpoint,
    },
    /// The other half, connected.
    Accept(Endpoint),
    /// There is no such lane, or no lease by it, and why.
    Decline(Reason),
    /// A chunk is to be lent.
    Ask(Ask),
    /// It is, until the stream ends, or [`LEASE_MAX`] is over.
    Lease(Lease),
}

/// A request for ranges of chunks that one owner has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Its number, of the asking side's choice.
    pub request: u64,
    /// The membership's fence.
    pub fence: u64,
    /// The step it is for.
    pub step: u64,
    /// The last bytes were corrupt: check the cached chunks, and read them anew if they are bad.
    pub refresh: bool,
    /// The chunks, in the order of the answer.
    pub groups: Vec<Group>,
}

/// A request for one chunk, to be read where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The owner's rail that is to read it.
    pub rail: u8,
    /// The membership's fence.
    pub fence: u64,
    /// The chunk.
    pub chunk: u32,
    /// The last step that needs it.
    pub until: u64,
    /// As in a [`Want`].
    pub refresh: bool,
}

/// Where a chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its first byte, as the owner's device counts them.
    pub address: u64,
    /// What that device asks for.
    pub key: u32,
    /// Its bytes.
    pub len: u32,
}

/// The wanted ranges of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The chunk.
    pub chunk: u32,
    /// The last step that needs it: how long the owner should keep it.
    pub until: u64,
    /// Offset in the chunk and length, in the order of the answer.
    pub ranges: Vec<(u32, u32)>,
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $code:literal),* $(,)?) => {
        /// Why an owner does not deliver. The code is also a stream's or connection's error code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Refusal {
            $($(#[$doc])* $name,)*
        }

        impl Refusal {
            /// Its number on the wire.
            #[must_use]
            pub fn code(self) -> u16 {
                match self { $(Self::$name => $code,)* }
            }

            /// The refusal with that number.
            #[must_use]
            pub fn from_code(code: u64) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }
        }
    };
}

refusals! {
    /// The request's fence is not the owner's.
    Fenced = 1,
    /// It speaks another version, of another dataset, or is no peer of this membership.
    Stranger = 2,
    /// It asks for what no manifest has.
    Malformed = 3,
    /// The chunk's bytes in the store are not what the manifest says.
    Corrupt = 4,
    /// The shard is not in the store.
    NotFound = 5,
    /// The shard is too short.
    ShortRead = 6,
    /// The store failed otherwise.
    StoreFailed = 7,
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("accept a frame of {bytes} bytes (the limit is {FRAME_BYTES_MAX})")]
    TooLong {
        /// What was announced, or is to be sent.
        bytes: usize,
    },
    /// It ends too early, goes on after its end, or has a count beyond its bound.
    #[error("parse a frame of kind {kind}")]
    Malformed {
        /// The frame's kind.
        kind: u8,
    },
    /// No such kind.
    #[error("know frame kind {kind} (use the same release on all hosts)")]
    Unknown {
        /// What it says.
        kind: u8,
    },
    /// Nothing at all.
    #[error("parse an empty frame")]
    Empty,
}

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const POSITION: u8 = 3;
const PING: u8 = 4;
const WANT: u8 = 16;
const HAVE: u8 = 17;
const NACK: u8 = 18;
const OFFER: u8 = 32;
const ACCEPT: u8 = 33;
const DECLINE: u8 = 34;
const ASK: u8 = 35;
const LEASE: u8 = 36;
const KINDS: [u8; 12] =
    [HELLO, WELCOME, POSITION, PING, WANT, HAVE, NACK, OFFER, ACCEPT, DECLINE, ASK, LEASE];

/// How many bytes follow a frame's first four.
///
/// # Errors
/// When that is more than a frame may have.
pub fn body_length(prefix: [u8; 4]) -> Result<usize, WireError> {
    let bytes = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if bytes > FRAME_BYTES_MAX { Err(WireError::TooLong { bytes }) } else { Ok(bytes) }
}

/// A frame with its length in front.
///
/// # Errors
/// When it is longer than a frame may be.
pub fn encode(frame: &Frame) -> Result<Vec<u8>, WireError> {
    let mut out = vec![0; 4];
    match frame {
        Frame::Hello { version, dataset, fence, peer } => {
            out.push(HELLO);
            out.extend_from_slice(&version.to_le_bytes());
            out.extend_from_slice(dataset);
            out.extend_from_slice(&fence.to_le_bytes());
            out.extend_from_slice(&peer.to_le_bytes());
        }
        Frame::Welcome { fence } => {
            out.push(WELCOME);
            out.extend_from_slice(&fence.to_le_bytes());
        }
        Frame::Position { fence, consumer, of, step } => {
            out.push(POSITION);
            out.extend_from_slice(&fence.to_le_bytes());
            out.extend_from_slice(&consumer.to_le_bytes());
            out.extend_from_slice(&of.to_le_bytes());
            out.extend_from_slice(&step.to_le_bytes());
        }
        Frame::Ping => out.push(PING),
        Frame::Want(want) => encode_want(&mut out, want),
        Frame::Have { request, bytes } => {
            out.push(HAVE);
            out.extend_from_slice(&request.to_le_bytes());
            out.extend_from_slice(&bytes.to_le_bytes());
        }
        Frame::Nack { request, refusal, retry_after_ms } => {
            out.push(NACK);
            out.extend_from_slice(&request.to_le_bytes());
            out.extend_from_slice(&refusal.code().to_le_bytes());
            out.extend_from_slice(&retry_after_ms.to_le_bytes());
        }
        Frame::Offer { rail, half } => {
            encode_endpoint(&mut out, OFFER, half);
            out.push(*rail);
        }
        Frame::Accept(endpoint) => encode_endpoint(&mut out, ACCEPT, endpoint),
        Frame::Decline(reason) => {
            out.push(DECLINE);
            out.push(reason.code());
        }
        Frame::Ask(ask) => {
            out.push(ASK);
            out.push(ask.rail);
            out.extend_from_slice(&ask.fence.to_le_bytes());
            out.extend_from_slice(&ask.chunk.to_le_bytes());
            out.extend_from_slice(&ask.until.to_le_bytes());
            out.push(u8::from(ask.refresh));
        }
        Frame::Lease(lease) => {
            out.push(LEASE);
            out.extend_from_slice(&lease.address.to_le_bytes());
            out.extend_from_slice(&lease.key.to_le_bytes());
            out.extend_from_slice(&lease.len.to_le_bytes());
        }
    }
    let bytes = out.len() - 4;
    let length = u32::try_from(bytes).map_err(|_| WireError::TooLong { bytes })?;
    body_length(length.to_le_bytes())?;
    out[..4].copy_from_slice(&length.to_le_bytes());
    Ok(out)
}

fn encode_endpoint(out: &mut Vec<u8>, kind: u8, endpoint: &Endpoint) {
    out.push(kind);
    out.extend_from_slice(&endpoint.qpn.to_le_bytes());
    out.extend_from_slice(&endpoint.psn.to_le_bytes());
    out.extend_from_slice(&endpoint.gid.0);
    out.extend_from_slice(&endpoint.lid.to_le_bytes());
    out.extend_from_slice(&endpoint.mtu.bytes().to_le_bytes());
    out.push(endpoint.reads);
}

fn encode_want(out: &mut Vec<u8>, want: &Want) {
    out.push(WANT);
    out.extend_from_slice(&want.request.to_le_bytes());
    out.extend_from_slice(&want.fence.to_le_bytes());
    out.extend_from_slice(&want.step.to_le_bytes());
    out.push(u8::from(want.refresh));
    // Counts saturate: a frame with so many is refused for its length.
    out.extend_from_slice(&u32::try_from(want.groups.len()).unwrap_or(u32::MAX).to_le_bytes());
    for group in &want.groups {
        out.extend_from_slice(&group.chunk.to_le_bytes());
        out.extend_from_slice(&group.until.to_le_bytes());
        out.extend_from_slice(&u32::try_from(group.ranges.len()).unwrap_or(u32::MAX).to_le_bytes());
        for (offset, len) in &group.ranges {
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
        }
    }
}

/// The frame in a body (without its length). Allocates no more than about the body's own size.
///
/// # Errors
/// When the body is no frame of this version.
pub fn decode(body: &[u8]) -> Result<Frame, WireError> {
    let (&kind, rest) = body.split_first().ok_or(WireError::Empty)?;
    if !KINDS.contains(&kind) {
        return Err(WireError::Unknown { kind });
    }
    let mut reader = Reader { rest };
    let frame = reader.frame(kind).ok_or(WireError::Malformed { kind })?;
    if reader.rest.is_empty() { Ok(frame) } else { Err(WireError::Malformed { kind }) }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn frame(&mut self, kind: u8) -> Option<Frame> {
        Some(match kind {
            HELLO => Frame::Hello {
                version: u16::from_le_bytes(self.take()?),
                dataset: self.take()?,
                fence: self.u64()?,
                peer: self.u32()?,
            },
            WELCOME => Frame::Welcome { fence: self.u64()? },
            POSITION => Frame::Position {
                fence: self.u64()?,
                consumer: self.u32()?,
                of: self.u32()?,
                step: self.u64()?,
            },
            PING => Frame::Ping,
            WANT => Frame::Want(self.want()?),
            HAVE => Frame::Have { request: self.u64()?, bytes: self.u64()? },
            OFFER => Frame::Offer { half: self.endpoint()?, rail: self.take::<1>()?[0] },
            ACCEPT => Frame::Accept(self.endpoint()?),
            DECLINE => Frame::Decline(Reason::of_code(self.take::<1>()?[0])?),
            ASK => Frame::Ask(Ask {
                rail: self.take::<1>()?[0],
                fence: self.u64()?,
                chunk: self.u32()?,
                until: self.u64()?,
                refresh: self.bool()?,
            }),
            LEASE => Frame::Lease(Lease { address: self.u64()?, key: self.u32()?, len: self.u32()? }),
            _ => Frame::Nack {
                request: self.u64()?,
                refusal: Refusal::from_code(u16::from_le_bytes(self.take()?).into())?,
                retry_after_ms: self.u32()?,
            },
        })
    }

    fn want(&mut self) -> Option<Want> {
        let (request, fence, step) = (self.u64()?, self.u64()?, self.u64()?);
        let refresh = self.bool()?;
        let count = self.count(GROUPS_MAX, 16)?;
        let mut groups = Vec::with_capacity(count);
        let mut ranges_left = RANGES_MAX;
        for _ in 0..count {
            let (chunk, until) = (self.u32()?, self.u64()?);
            let count = self.count(ranges_left, 8)?;
            ranges_left -= count;
            let mut ranges = Vec::with_capacity(count);
            for _ in 0..count {
                ranges.push((self.u32()?, self.u32()?));
            }
            groups.push(Group { chunk, until, ranges });
        }
        Some(Want { request, fence, step, refresh, groups })
    }

    /// A count of items that are each at least so many bytes: never more than there are bytes for.
    fn count(&mut self, most: usize, item_bytes: usize) -> Option<usize> {
        let count = usize::try_from(self.u32()?).ok()?;
        (count <= most && count <= self.rest.len() / item_bytes).then_some(count)
    }

    fn endpoint(&mut self) -> Option<Endpoint> {
        Some(Endpoint {
            qpn: self.u32()?,
            psn: self.u32()?,
            gid: Gid(self.take()?),
            lid: u16::from_le_bytes(self.take()?),
            mtu: PathMtu::try_from(u16::from_le_bytes(self.take()?)).ok()?,
            reads: self.take::<1>()?[0],
        })
    }

    fn bool(&mut self) -> Option<bool> {
        match self.take::<1>()? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }
}

#[cfg(test)]
mod tests;
