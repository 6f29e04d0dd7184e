//! Encoding: answers (ours), and commands (a client's, for tests and benches).

use bytes::Bytes;

use super::{Query, to_u64};

/// Values up to this length are copied into the answer; longer ones are shared. A copy of 16 KiB costs less than a
/// second element in the write and a reference count that other cores may hold.
const INLINE_BYTES: usize = 16 << 10;

/// Memory that an answer buffer keeps for the next answer.
const KEPT_BYTES: usize = 1 << 20;

/// Answers of one connection, in order. Short values are copied, long ones shared.
#[derive(Debug)]
pub struct Reply {
    limit: usize,
    copied: Vec<u8>,
    /// A shared value and where in `copied` it belongs.
    shared: Vec<(usize, Bytes)>,
    shared_bytes: usize,
}

impl Default for Reply {
    fn default() -> Self {
        Self::with_limit(usize::MAX)
    }
}

impl Reply {
    /// One that takes no more values once it has more than `limit` bytes. Such an answer is not whole: whoever
    /// sends it must look at its length first. It bounds what one MULTI_GET of the same key can make us copy.
    pub fn with_limit(limit: usize) -> Self {
        Self { limit, copied: Vec::new(), shared: Vec::new(), shared_bytes: 0 }
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.copied.len() + self.shared_bytes
    }

    /// Nothing to send?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forget everything, keep a little memory.
    pub fn clear(&mut self) {
        self.copied.clear();
        self.copied.shrink_to(KEPT_BYTES);
        self.shared.clear();
        self.shared_bytes = 0;
    }

    /// All bytes, if they lie in one piece.
    pub fn as_slice(&self) -> Option<&[u8]> {
        self.shared.is_empty().then_some(self.copied.as_slice())
    }

    /// All pieces, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Bytes> + '_ {
        let starts = std::iter::once(0).chain(self.shared.iter().map(|(at, _)| *at));
        let ends = self.shared.iter().map(|(at, _)| *at).chain(std::iter::once(self.copied.len()));
        let values = self.shared.iter().map(|(_, value)| value.clone()).chain(std::iter::once(Bytes::new()));
        let copied = starts.zip(ends).map(|(start, end)| Bytes::copy_from_slice(&self.copied[start..end]));
        copied.zip(values).flat_map(|(copied, value)| [copied, value]).filter(|piece| !piece.is_empty())
    }

    pub(in super::super) fn byte(&mut self, byte: u8) {
        self.copied.push(byte);
    }

    pub(in super::super) fn word(&mut self, word: u32) {
        self.copied.extend_from_slice(&word.to_le_bytes());
    }

    pub(in super::super) fn signed(&mut self, number: i64) {
        self.copied.extend_from_slice(&number.to_le_bytes());
    }

    pub(in super::super) fn bytes(&mut self, bytes: &[u8]) {
        if self.len() > self.limit {
            return;
        }
        self.copied.extend_from_slice(&to_u64(bytes.len()).to_le_bytes());
        self.copied.extend_from_slice(bytes);
    }

    pub(in super::super) fn value(&mut self, value: &Bytes) {
        if value.len() <= INLINE_BYTES {
            return self.bytes(value);
        }
        if self.len() > self.limit {
            return;
        }
        self.copied.extend_from_slice(&to_u64(value.len()).to_le_bytes());
        self.shared.push((self.copied.len(), value.clone()));
        self.shared_bytes += value.len();
    }
}

/// A client's side: builds a command's bytes. Fields are given in the protocol's order; nothing is checked.
#[derive(Clone, Debug)]
pub struct Command(Vec<u8>);

impl Command {
    /// A command without its fields.
    pub fn new(query: Query) -> Self {
        Self(vec![query as u8])
    }

    /// A 32-bit field.
    #[must_use]
    pub fn word(mut self, word: u32) -> Self {
        self.0.extend_from_slice(&word.to_le_bytes());
        self
    }

    /// A 64-bit field.
    #[must_use]
    pub fn signed(mut self, number: i64) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// A key or a value.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&to_u64(bytes.len()).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// A count and so many keys.
    #[must_use]
    pub fn keys<K: AsRef<[u8]>>(mut self, keys: &[K]) -> Self {
        self.0.extend_from_slice(&to_u64(keys.len()).to_le_bytes());
        keys.iter().fold(self, |command, key| command.bytes(key.as_ref()))
    }

    /// What goes over the wire.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}
