//! The bytes of PyTorch's TCPStore protocol (torch 2.4 to 2.15; libuv back end): decoder, answer buffer, and an encoder for
//! clients in tests and benches. Pure.
//!
//! A command is one type byte and its fields; all integers are little-endian; a key or a payload is a `u64` length
//! and that many bytes. There is no frame around a command and no version, so a command's end is only known by
//! walking its fields: [`Decoder`] does so incrementally, remembers how far it came, and says how many bytes it
//! needs before it is worth asking again. A decoded [`Request`] borrows from the buffer. Answers have no header:
//! their order is all that ties them to requests.
//!
//! Source: torch/csrc/distributed/c10d/store/TCPStoreBackend.hpp (types, magic) and TCPStoreLibUvBackend.cpp
//! (fields), checked against captured bytes (`golden` in the tests).

use thiserror::Error;

mod encode;

pub use encode::{Command, Reply};

/// What VALIDATE must carry (`ce f7 85 3c` on the wire).
pub const MAGIC: u32 = 0x3C85_F7CE;

/// How large one command may be; over is a [`Fault`] and ends the connection, as torch's server does.
#[derive(Clone, Copy, Debug)]
pub struct CommandLimits {
    /// Bytes of one key.
    pub key_bytes: u64,
    /// Bytes of one value.
    pub payload_bytes: u64,
    /// Keys of one command.
    pub keys: u64,
    /// Bytes of a whole command. Torch has no such limit, so a client could ask it to buffer
    /// `keys × payload_bytes` = 1 TiB.
    pub command_bytes: usize,
}

impl Default for CommandLimits {
    /// Torch's own limits, and 64 MiB for a command: 128 Ki keys with 500 bytes each.
    fn default() -> Self {
        Self { key_bytes: 8 << 10, payload_bytes: 8 << 20, keys: 128 << 10, command_bytes: 64 << 20 }
    }
}

/// The commands, by their type byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the protocol's; `Request` says what each does")]
pub enum Query {
    Validate = 0,
    Set,
    CompareSet,
    Get,
    Add,
    Check,
    Wait,
    CountKeys,
    Delete,
    Append,
    MultiGet,
    MultiSet,
    CancelWait,
    Ping,
    QueuePush,
    QueuePop,
    QueueLen,
    ListKeys,
    Barrier,
}

impl Query {
    /// All commands, at the index of their type byte.
    pub const ALL: [Self; 19] = [
        Self::Validate,
        Self::Set,
        Self::CompareSet,
        Self::Get,
        Self::Add,
        Self::Check,
        Self::Wait,
        Self::CountKeys,
        Self::Delete,
        Self::Append,
        Self::MultiGet,
        Self::MultiSet,
        Self::CancelWait,
        Self::Ping,
        Self::QueuePush,
        Self::QueuePop,
        Self::QueueLen,
        Self::ListKeys,
        Self::Barrier,
    ];

    /// The fields after the type byte.
    fn fields(self) -> &'static [Field] {
        match self {
            Self::Validate | Self::Ping => &[Field::Word],
            Self::Set | Self::Append | Self::QueuePush => &[Field::Key, Field::Payload],
            Self::CompareSet => &[Field::Key, Field::Payload, Field::Payload],
            Self::Get | Self::Delete | Self::QueuePop | Self::QueueLen => &[Field::Key],
            Self::Add | Self::Barrier => &[Field::Key, Field::Long],
            Self::Check | Self::Wait | Self::MultiGet => &[Field::Keys],
            Self::MultiSet => &[Field::Pairs],
            Self::CountKeys | Self::CancelWait | Self::ListKeys => &[],
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Word,
    Long,
    Key,
    Payload,
    Keys,
    Pairs,
}

/// A command, borrowed from the buffer that it was decoded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// First of all on a connection: the magic. No answer.
    Validate(u32),
    /// Store a value. No answer.
    Set(&'a [u8], &'a [u8]),
    /// Store `desired` if the value is `expected` (empty: also if there is none); answers the resulting value, and
    /// for a missing key that was not stored, `expected`.
    CompareSet {
        /// The key.
        key: &'a [u8],
        /// What must be stored now.
        expected: &'a [u8],
        /// What is stored then.
        desired: &'a [u8],
    },
    /// Answers the value, empty if there is none.
    Get(&'a [u8]),
    /// Add to a decimal number (none counts as 0); answers the sum.
    Add(&'a [u8], i64),
    /// Answers 0 if all keys exist, else 1.
    Check(Keys<'a>),
    /// Answers 0 as soon as all keys exist.
    Wait(Keys<'a>),
    /// Answers the number of values.
    CountKeys,
    /// Answers the number of values removed.
    Delete(&'a [u8]),
    /// Add to a value's end. No answer.
    Append(&'a [u8], &'a [u8]),
    /// Answers each value, empty where there is none.
    MultiGet(Keys<'a>),
    /// Store all pairs. No answer.
    MultiSet(Pairs<'a>),
    /// End a wait; always answers 1, also if the wait has ended by itself meanwhile.
    CancelWait,
    /// Answers the same number, which is the client's process id.
    Ping(u32),
    /// Add to a queue's end. No answer.
    QueuePush(&'a [u8], &'a [u8]),
    /// Answers the queue's length, and if it is not 0 the first value, which is removed.
    QueuePop(&'a [u8]),
    /// Answers the queue's length.
    QueueLen(&'a [u8]),
    /// Answers all keys of values.
    ListKeys,
    /// Arrive at a barrier of so many; answers 0 when all have.
    Barrier(&'a [u8], i64),
}

/// The keys of a command, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys<'a> {
    count: u64,
    bytes: &'a [u8],
}

impl<'a> Keys<'a> {
    /// How many are still to come.
    pub fn left(&self) -> u64 {
        self.count
    }

    /// As they stand on the wire: each with its length before it.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Keys that a former `Keys` was made of: its [`as_bytes`](Self::as_bytes) from some key on.
    pub(super) fn from_bytes(bytes: &'a [u8], count: u64) -> Self {
        Self { count, bytes }
    }
}

impl<'a> Iterator for Keys<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.count = self.count.checked_sub(1)?;
        Some(Fields(&mut self.bytes).bytes())
    }
}

/// The keys and values of a MULTI_SET, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pairs<'a> {
    count: u64,
    bytes: &'a [u8],
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.count = self.count.checked_sub(1)?;
        let mut fields = Fields(&mut self.bytes);
        Some((fields.bytes(), fields.bytes()))
    }
}

/// Why a client's bytes are no command. Each ends the connection: with no frame there is no way back into step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// No such type byte.
    #[error("understand command {0}; is the client's torch newer than 2.15, or older than 2.4?")]
    UnknownQuery(u8),
    /// A key's length is over the limit.
    #[error("accept a key of {0} bytes")]
    KeyTooLong(u64),
    /// A value's length is over the limit.
    #[error("accept a value of {0} bytes; put large data into a file and its path into the store")]
    PayloadTooLong(u64),
    /// A command names more keys than allowed.
    #[error("accept {0} keys in one command; split the command")]
    TooManyKeys(u64),
    /// A command's length is over the limit.
    #[error("accept a command of {0} bytes or more; split the command")]
    CommandTooLong(u64),
}

/// What the buffer begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A command, and how many bytes it took.
    Request(Request<'a>, usize),
    /// A part of a command, or nothing: call again with at least so many bytes.
    Need(usize),
}

/// Finds commands in a stream. It remembers how far it has walked an incomplete command, so that a command that comes
/// in many pieces is still walked once: the next call must begin with the same bytes.
#[derive(Debug)]
pub struct Decoder {
    limits: CommandLimits,
    need: usize,
    at: usize,
    field: usize,
    /// Elements of the list field at `field` still to walk; none before its count was read.
    left: Option<u64>,
}

enum Halt {
    Need(u64),
    Fault(Fault),
}

impl Decoder {
    /// A decoder at the begin of a stream.
    pub fn new(limits: CommandLimits) -> Self {
        Self { limits, need: 1, at: 1, field: 0, left: None }
    }

    /// The command that `bytes` begin with. After [`Step::Request`] the next call begins behind it.
    ///
    /// # Errors
    /// A [`Fault`] as soon as a length is known to be too much, before its bytes have come.
    pub fn decode<'a>(&mut self, bytes: &'a [u8]) -> Result<Step<'a>, Fault> {
        if bytes.len() < self.need {
            return Ok(Step::Need(self.need));
        }
        let query = Query::ALL.get(usize::from(bytes[0])).ok_or(Fault::UnknownQuery(bytes[0]))?;
        match self.walk(query.fields(), bytes) {
            Ok(()) => {
                let used = self.at;
                (self.need, self.at, self.field, self.left) = (1, 1, 0, None);
                Ok(Step::Request(Fields(&mut &bytes[1..used]).request(*query), used))
            }
            Err(Halt::Fault(fault)) => Err(fault),
            Err(Halt::Need(need)) => match usize::try_from(need) {
                Ok(need) if need <= self.limits.command_bytes => {
                    self.need = need;
                    Ok(Step::Need(need))
                }
                _ => Err(Fault::CommandTooLong(need)),
            },
        }
    }

    fn walk(&mut self, fields: &[Field], bytes: &[u8]) -> Result<(), Halt> {
        let limits = self.limits;
        while let Some(field) = fields.get(self.field) {
            self.at = match field {
                Field::Word => skip(bytes, self.at, 4)?,
                Field::Long => skip(bytes, self.at, 8)?,
                Field::Key => skip_key(bytes, self.at, &limits)?,
                Field::Payload => skip_payload(bytes, self.at, &limits)?,
                Field::Keys | Field::Pairs => {
                    let mut left = match self.left {
                        Some(left) => left,
                        None => self.read_count(bytes)?,
                    };
                    while left > 0 {
                        let mut at = skip_key(bytes, self.at, &limits)?;
                        if matches!(field, Field::Pairs) {
                            at = skip_payload(bytes, at, &limits)?;
                        }
                        self.at = at;
                        left -= 1;
                        self.left = Some(left);
                    }
                    self.left = None;
                    self.at
                }
            };
            self.field += 1;
        }
        Ok(())
    }

    fn read_count(&mut self, bytes: &[u8]) -> Result<u64, Halt> {
        let count = long(bytes, self.at)?;
        if count > self.limits.keys {
            return Err(Halt::Fault(Fault::TooManyKeys(count)));
        }
        self.at += 8;
        self.left = Some(count);
        Ok(count)
    }
}

fn skip_key(bytes: &[u8], at: usize, limits: &CommandLimits) -> Result<usize, Halt> {
    let length = long(bytes, at)?;
    if length > limits.key_bytes {
        return Err(Halt::Fault(Fault::KeyTooLong(length)));
    }
    skip(bytes, at + 8, length)
}

fn skip_payload(bytes: &[u8], at: usize, limits: &CommandLimits) -> Result<usize, Halt> {
    let length = long(bytes, at)?;
    if length > limits.payload_bytes {
        return Err(Halt::Fault(Fault::PayloadTooLong(length)));
    }
    skip(bytes, at + 8, length)
}

fn long(bytes: &[u8], at: usize) -> Result<u64, Halt> {
    let long = bytes.get(at..).and_then(|rest| rest.first_chunk());
    long.map(|long| u64::from_le_bytes(*long)).ok_or_else(|| Halt::Need(to_u64(at).saturating_add(8)))
}

fn skip(bytes: &[u8], at: usize, length: u64) -> Result<usize, Halt> {
    let end = to_u64(at).saturating_add(length);
    match usize::try_from(end) {
        Ok(end) if end <= bytes.len() => Ok(end),
        _ => Err(Halt::Need(end)),
    }
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Takes fields from bytes that were walked: what is missing all the same reads as zero or empty.
struct Fields<'s, 'a>(&'s mut &'a [u8]);

impl<'a> Fields<'_, 'a> {
    fn request(&mut self, query: Query) -> Request<'a> {
        match query {
            Query::Validate => Request::Validate(self.word()),
            Query::Set => Request::Set(self.bytes(), self.bytes()),
            Query::CompareSet => {
                Request::CompareSet { key: self.bytes(), expected: self.bytes(), desired: self.bytes() }
            }
            Query::Get => Request::Get(self.bytes()),
            Query::Add => Request::Add(self.bytes(), self.signed()),
            Query::Check => Request::Check(self.keys()),
            Query::Wait => Request::Wait(self.keys()),
            Query::CountKeys => Request::CountKeys,
            Query::Delete => Request::Delete(self.bytes()),
            Query::Append => Request::Append(self.bytes(), self.bytes()),
            Query::MultiGet => Request::MultiGet(self.keys()),
            Query::MultiSet => Request::MultiSet(Pairs { count: self.long(), bytes: self.0 }),
            Query::CancelWait => Request::CancelWait,
            Query::Ping => Request::Ping(self.word()),
            Query::QueuePush => Request::QueuePush(self.bytes(), self.bytes()),
            Query::QueuePop => Request::QueuePop(self.bytes()),
            Query::QueueLen => Request::QueueLen(self.bytes()),
            Query::ListKeys => Request::ListKeys,
            Query::Barrier => Request::Barrier(self.bytes(), self.signed()),
        }
    }

    fn keys(&mut self) -> Keys<'a> {
        Keys { count: self.long(), bytes: self.0 }
    }

    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::try_from(self.long()).unwrap_or(usize::MAX);
        let (bytes, rest) = self.0.split_at_checked(length).unwrap_or_default();
        *self.0 = rest;
        bytes
    }

    fn word(&mut self) -> u32 {
        let (word, rest) = self.0.split_first_chunk().unwrap_or((&[0; 4], &[]));
        *self.0 = rest;
        u32::from_le_bytes(*word)
    }

    fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.eight())
    }

    fn signed(&mut self) -> i64 {
        i64::from_le_bytes(self.eight())
    }

    fn eight(&mut self) -> [u8; 8] {
        let (eight, rest) = self.0.split_first_chunk().unwrap_or((&[0; 8], &[]));
        *self.0 = rest;
        *eight
    }
}

#[cfg(test)]
pub(super) mod tests;
