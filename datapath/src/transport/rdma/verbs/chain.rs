//! Work for a queue pair: requests that are handed over with one doorbell, and the owner of what they touch.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::MemoryRegion;
use super::queue::{INLINE_BYTES, Local, Verb};
use crate::memory::span::Exclusive;

/// A place in a peer's memory, with the key to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// The first byte, as the peer's device counts them.
    pub address: u64,
    /// What the peer's device asks for.
    pub key: u32,
}

impl Remote {
    /// The place that many bytes further.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Self { address: self.address.wrapping_add(bytes), key: self.key }
    }
}

/// Why a request does not belong into a chain: a mistake of whoever made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not all of the bytes are in the owner's memory, and that in the registration.
    #[error("a request reaches beyond its memory")]
    OutOfRange,
    /// The memory was registered for other things.
    #[error("a request wants to write to memory that was registered for reading")]
    ReadOnly,
    /// More than fits into a request itself.
    #[error("more than {INLINE_BYTES} bytes inline")]
    TooLong,
}

/// Requests in their order, and the owner of what they touch: it comes back when the last of them has ended.
///
/// A chain that is dropped has done nothing. `K` is what must not be used, or let go of, meanwhile: for reads the memory itself,
/// for writes whatever keeps the bytes as they are.
pub struct Chain<K> {
    pub(super) memory: Option<MemoryRegion>,
    pub(super) owner: K,
    pub(super) requests: Vec<Planned>,
}

/// One request of a chain.
pub(super) struct Planned {
    pub(super) verb: Verb,
    pub(super) bytes: Bytes,
}

pub(super) enum Bytes {
    Registered { address: u64, len: u32, key: u32 },
    Inline(Box<[u8]>),
}

impl Planned {
    pub(super) fn local(&self) -> Local<'_> {
        match &self.bytes {
            Bytes::Registered { address, len, key } => {
                Local::Registered { address: *address, len: *len, lkey: *key }
            }
            Bytes::Inline(bytes) => Local::Inline(bytes),
        }
    }
}

impl<K> Chain<K> {
    /// No request yet, on this memory.
    #[must_use]
    pub fn new(memory: &MemoryRegion, owner: K) -> Self {
        Self { memory: Some(memory.clone()), owner, requests: Vec::new() }
    }

    /// Sends bytes that need no memory, as they travel in the request itself, to a receive of the peer's.
    ///
    /// # Errors
    /// When there are more than [`INLINE_BYTES`].
    pub fn message(bytes: &[u8], owner: K) -> Result<Self, ChainError> {
        if bytes.len() > INLINE_BYTES {
            return Err(ChainError::TooLong);
        }
        let request = Planned { verb: Verb::Send, bytes: Bytes::Inline(bytes.into()) };
        Ok(Self { memory: None, owner, requests: vec![request] })
    }

    /// Writes the registered memory's bytes `at..at + len` to the peer.
    ///
    /// # Errors
    /// When they are not all there.
    pub fn write(&mut self, at: usize, len: usize, to: Remote) -> Result<(), ChainError> {
        self.push_write(at, len, to, None)
    }

    /// As [`Chain::write`], and then takes a receive of the peer's, which gets this number.
    ///
    /// # Errors
    /// As for [`Chain::write`].
    pub fn write_and_tell(
        &mut self,
        at: usize,
        len: usize,
        to: Remote,
        number: u32,
    ) -> Result<(), ChainError> {
        self.push_write(at, len, to, Some(number))
    }

    fn push_write(
        &mut self,
        at: usize,
        len: usize,
        to: Remote,
        immediate: Option<u32>,
    ) -> Result<(), ChainError> {
        let memory = self.memory.as_ref().ok_or(ChainError::OutOfRange)?;
        let part = memory.span().part(at, len).ok_or(ChainError::OutOfRange)?;
        let bytes = registered(memory, part.address, len)?;
        self.requests
            .push(Planned { verb: Verb::Write { address: to.address, rkey: to.key, immediate }, bytes });
        Ok(())
    }

    /// How many requests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// The owner, and nothing is done.
    #[must_use]
    pub fn into_owner(self) -> K {
        self.owner
    }
}

impl<K: Exclusive> Chain<K> {
    /// Reads from the peer into the owner's bytes `at..at + len`.
    ///
    /// # Errors
    /// When they are not all there, or registered without [`local_write`](super::Access::local_write).
    pub fn read(&mut self, at: usize, len: usize, from: Remote) -> Result<(), ChainError> {
        let owned = self.owner.span();
        let memory = self.memory.as_ref().ok_or(ChainError::OutOfRange)?;
        let bytes = place(memory, owned.part(at, len).ok_or(ChainError::OutOfRange)?)?;
        self.requests.push(Planned { verb: Verb::Read { address: from.address, rkey: from.key }, bytes });
        Ok(())
    }
}

/// A place that the device may write to.
pub(super) fn place(memory: &MemoryRegion, part: crate::memory::span::Span) -> Result<Bytes, ChainError> {
    if !memory.span().contains(part) {
        return Err(ChainError::OutOfRange);
    }
    if !memory.access.local_write {
        return Err(ChainError::ReadOnly);
    }
    registered(memory, part.address, part.len)
}

fn registered(memory: &MemoryRegion, address: usize, len: usize) -> Result<Bytes, ChainError> {
    let address = u64::try_from(address).map_err(|_| ChainError::OutOfRange)?;
    let len = u32::try_from(len).map_err(|_| ChainError::OutOfRange)?;
    Ok(Bytes::Registered { address, len, key: memory.local_key })
}

impl<K> fmt::Debug for Chain<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("requests", &self.requests.len()).finish_non_exhaustive()
    }
}
