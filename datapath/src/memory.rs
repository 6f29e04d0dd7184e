//! Memory that bytes are read into: uniquely held blocks, and regions shared with a trainer.
//!
//! A [`Block`] moves into a read and comes back from it, so that a read which nobody waits for any more can never
//! write into memory that is used again. Blocks of one [`BlockPool`] are recycled: fresh pages cost more than the
//! read that fills them (about 0.1 CPU-s/GB of page faults).

pub mod host;
pub mod landing;
mod mapping;
pub mod pieces;
pub mod span;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use self::mapping::Mapping;

/// Bytes in a block are rounded up to this, so that a pool's blocks fit each other's chunks.
pub const BLOCK_ALIGN_BYTES: usize = 4096;

/// An owned, uniquely held byte buffer.
pub struct Block {
    bytes: Memory,
    len: usize,
    pool: Option<Arc<PoolInner>>,
}

impl Block {
    /// A zeroed block of that many bytes, of no pool.
    #[must_use]
    pub fn with_len(len: usize) -> Self {
        Self { bytes: Memory::Heap(vec![0; len]), len, pool: None }
    }
}

/// From this size on a block is mapped: a smaller one's pages are few, and an allocator has them at hand.
const MAPPED_BYTES_MIN: usize = 1 << 20;

/// Where a block's bytes lie.
enum Memory {
    Heap(Vec<u8>),
    Mapped(Mapping),
}

impl Memory {
    /// Zeroed.
    fn with_len(len: usize) -> Self {
        let mapped = (len >= MAPPED_BYTES_MIN).then(|| Mapping::zeroed(len)).flatten();
        mapped.map_or_else(|| Self::Heap(vec![0; len]), Self::Mapped)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Mapped(bytes) => bytes,
        }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Mapped(bytes) => bytes,
        }
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            let mut free = pool.free.lock().unwrap_or_else(PoisonError::into_inner);
            if free.len() < pool.keep {
                free.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

/// Blocks that come back to be used again. How many are out at once, its user bounds.
#[derive(Clone, Debug)]
pub struct BlockPool {
    inner: Arc<PoolInner>,
}

struct PoolInner {
    free: Mutex<Vec<Memory>>,
    keep: usize,
    block_bytes: usize,
}

impl BlockPool {
    /// A pool whose blocks hold at least `block_bytes`, and which keeps at most `keep` returned ones; the rest goes
    /// back to the allocator.
    #[must_use]
    pub fn new(keep: usize, block_bytes: usize) -> Self {
        Self { inner: Arc::new(PoolInner { free: Mutex::default(), keep, block_bytes }) }
    }

    /// A block of `len` bytes, whose content is what its last user left (or zeros).
    #[must_use]
    pub fn take(&self, len: usize) -> Block {
        let returned = self.inner.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut bytes = returned.unwrap_or_default();
        if bytes.len() < len {
            // A fresh zeroed allocation, instead of growing: the old content need not be copied.
            let whole = len.max(self.inner.block_bytes).next_multiple_of(BLOCK_ALIGN_BYTES);
            bytes = Memory::with_len(whole);
        }
        Block { bytes, len, pool: Some(Arc::clone(&self.inner)) }
    }
}

impl fmt::Debug for PoolInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolInner")
            .field("keep", &self.keep)
            .field("block_bytes", &self.block_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_recycles_up_to_its_bound() {
        let pool = BlockPool::new(1, 100);
        let (mut one, two) = (pool.take(5000), pool.take(10));
        assert_eq!((one.len(), two.len()), (5000, 10));
        one[4999] = 7;
        let address = one.as_ptr();
        drop(one);
        drop(two);
        let again = pool.take(8192);
        assert_eq!(again.as_ptr(), address, "the first to return is used again");
        assert_eq!(again[4999], 7);
        assert_ne!(pool.take(1).as_ptr(), address);
    }

    #[test]
    fn a_block_has_the_length_asked_for() {
        assert_eq!(Block::with_len(3).as_ref(), &[0, 0, 0]);
    }
}
