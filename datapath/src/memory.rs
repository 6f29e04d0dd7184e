//! Memory that bytes are read into: uniquely held blocks, and regions shared with a trainer.
//!
//! A [`Block`] moves into a read and comes back from it, so that a read which nobody waits for any more can never
//! write into memory that is used again. Blocks of one [`BlockPool`] are recycled: fresh pages cost more than the
//! read that fills them (about 0.1 CPU-s/GB of page faults).

mod allocation;
pub mod host;
pub mod landing;
mod mapping;
pub mod pieces;
pub mod pool;
pub mod span;

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use self::allocation::Memory;
use self::span::Stable;

/// Bytes in a block are rounded up to this, so that a pool's blocks fit each other's chunks.
pub const BLOCK_ALIGN_BYTES: usize = 4096;

/// An owned, uniquely held byte buffer.
pub struct Block {
    // None only inside `drop`.
    memory: Option<Memory>,
    len: usize,
    pool: Option<Arc<PoolInner>>,
}

impl Block {
    /// A zeroed block of that many bytes, of no pool.
    #[must_use]
    pub fn with_len(len: usize) -> Self {
        Self { memory: Some(Memory::zeroed(len)), len, pool: None }
    }

    /// What belongs to the block's memory and stays with it when another block takes it over: a device's registration, which is
    /// made here of the memory's place if there is none. The place is given for reading only.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn attached<T: Any + Clone + Send + Sync, E>(
        &self,
        make: impl FnOnce(Arc<dyn Stable>) -> Result<T, E>,
    ) -> Option<Result<T, E>> {
        self.memory.as_ref().map(|memory| memory.attached(make))
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], |memory| memory.bytes(self.len))
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut().map_or(&mut [], |memory| memory.bytes_mut(self.len))
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
        if let (Some(pool), Some(memory)) = (&self.pool, self.memory.take()) {
            let mut free = pool.free.lock().unwrap_or_else(PoisonError::into_inner);
            if free.len() < pool.keep {
                free.push(memory);
                return;
            }
            drop(free);
            // Without the lock: what is attached may take its time to go.
            drop(memory);
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
        // A fresh zeroed allocation, instead of growing: the old content need not be copied.
        let fresh = || Memory::zeroed(len.max(self.inner.block_bytes).next_multiple_of(BLOCK_ALIGN_BYTES));
        let memory = returned.filter(|memory| memory.len() >= len).unwrap_or_else(fresh);
        Block { memory: Some(memory), len, pool: Some(Arc::clone(&self.inner)) }
    }
}

impl fmt::Debug for PoolInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolInner").field("keep", &self.keep).finish_non_exhaustive()
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
    fn what_is_attached_stays_with_the_memory_when_its_block_changes() {
        let pool = BlockPool::new(1, 100);
        let attach = |block: &Block, word| block.attached(|_| Ok::<_, ()>(word)).unwrap().unwrap();
        let one = pool.take(10);
        assert_eq!(attach(&one, "first"), "first");
        let two = pool.take(10);
        assert_eq!(attach(&two, "second"), "second");
        drop(one);
        drop(two);
        assert_eq!(attach(&pool.take(10), "third"), "first");
    }

    #[test]
    fn a_block_has_the_length_asked_for() {
        assert_eq!(Block::with_len(3).as_ref(), &[0, 0, 0]);
    }
}
