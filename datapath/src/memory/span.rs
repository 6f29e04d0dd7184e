//! What memory promises before a device may touch it: a device neither borrows nor knows of lifetimes.
//!
//! Three promises, each stronger in its way. [`Stable`] memory stays where it is, which is enough to be read from. [`Exclusive`]
//! memory besides is used by nobody else while its owner exists: whoever moves the owner into a request has let go of the bytes
//! until it comes back. [`Exposed`] memory is one that anybody may write at any moment, so nothing here has a reference to it.

#![expect(unsafe_code, reason = "promises about memory that a device touches")]

use super::Block;
use super::host::Region;

/// Bytes by address, for a device. Holds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first byte's address.
    pub address: usize,
    /// How many.
    pub len: usize,
}

impl Span {
    /// Those `len` bytes from the byte `at` on, if all of them are in here.
    #[must_use]
    pub fn part(self, at: usize, len: usize) -> Option<Self> {
        let is_inside = at <= self.len && len <= self.len - at;
        is_inside.then(|| Self { address: self.address + at, len })
    }

    /// Whether all of the other is in here.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        other.address.checked_sub(self.address).is_some_and(|at| self.part(at, other.len).is_some())
    }
}

/// Memory that a device may be told of.
///
/// # Safety
/// While the value lives, and wherever it is moved to, its span is the same and is mapped for reading and writing.
pub unsafe trait Stable: Send + Sync + 'static {
    /// Its bytes.
    fn span(&self) -> Span;
}

/// The owner of memory that a device may write to.
///
/// # Safety
/// While the value lives, and wherever it is moved to, its span is the same, is mapped for writing, and is reached by nobody
/// in this process but through this value.
pub unsafe trait Exclusive: Send + 'static {
    /// Its bytes.
    fn span(&mut self) -> Span;
}

/// Memory that devices of other hosts may write to whenever they like.
///
/// # Safety
/// There is never a Rust reference to plain bytes of its span: what is read or written here, is by atomic operations.
pub unsafe trait Exposed: Stable {}

// SAFETY: a block's bytes are one allocation, which is never changed for another one, and is freed (or given to another block)
// not before the block's `drop`. A shared block hands out shared references only.
unsafe impl Stable for Block {
    fn span(&self) -> Span {
        Span { address: self.as_ptr().expose_provenance(), len: self.len() }
    }
}

// SAFETY: as for Stable; a block is held uniquely and is the only way to its bytes: what is attached knows their place only.
unsafe impl Exclusive for Block {
    fn span(&mut self) -> Span {
        Span { address: self.as_mut_ptr().expose_provenance(), len: self.len() }
    }
}

// SAFETY: a region is one mapping, from its making to its `drop`, readable and writable in this process.
unsafe impl Stable for Region {
    fn span(&self) -> Span {
        Span { address: self.base().expose_provenance(), len: self.bytes() }
    }
}

// SAFETY: the first one's, which is kept as long.
unsafe impl<K: Exclusive, T: Send + 'static> Exclusive for (K, T) {
    fn span(&mut self) -> Span {
        self.0.span()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_inside() {
        let span = Span { address: 1000, len: 10 };
        assert_eq!(span.part(3, 7), Some(Span { address: 1003, len: 7 }));
        assert_eq!(span.part(10, 0), Some(Span { address: 1010, len: 0 }));
        assert_eq!(span.part(3, 8), None);
        assert_eq!(span.part(11, 0), None);
        assert_eq!(span.part(1, usize::MAX), None);
        assert!(span.contains(Span { address: 1000, len: 10 }));
        for (address, len) in [(999, 2), (1005, 6), (1011, 0), (0, usize::MAX)] {
            assert!(!span.contains(Span { address, len }), "{address}+{len}");
        }
    }

    #[test]
    fn a_block_keeps_its_place_when_it_is_moved() {
        let mut block = Block::with_len(5000);
        let before = Exclusive::span(&mut block);
        let boxed = Box::new(block);
        assert_eq!(Stable::span(&*boxed), before);
        assert_eq!(before.len, 5000);
    }
}
