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
        Self { memory: Some(Memory::zeroed(len, len)), len, pool: None }
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
            free.push(memory);
            // The oldest goes: it was wanted for none of those that came since.
            let surplus = (free.len() > pool.keep).then(|| free.remove(0));
            drop(free);
            // Without the lock: what is attached may take its time to go.
            drop(surplus);
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
    /// A pool for blocks of about `block_bytes`, which keeps at most `keep` returned ones; the rest goes back to the system.
    #[must_use]
    pub fn new(keep: usize, block_bytes: usize) -> Self {
        Self { inner: Arc::new(PoolInner { free: Mutex::default(), keep, block_bytes }) }
    }

    /// A block of `len` bytes, whose content is what its last user left (or zeros).
    #[must_use]
    pub fn take(&self, len: usize) -> Block {
        let most = len.saturating_mul(2).max(BLOCK_ALIGN_BYTES);
        let mut free = self.inner.free.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was made for much more would be memory that its user's budget does not know of.
        let fitting = free.iter().rposition(|memory| (len..=most).contains(&memory.len()));
        let returned = fitting.map(|at| free.remove(at));
        drop(free);
        let fresh = || {
            // The usual size, so that it fits others too, unless it is far from that.
            let usual = self.inner.block_bytes;
            let whole = if usual <= most { len.max(usual) } else { len };
            Memory::zeroed(whole.next_multiple_of(BLOCK_ALIGN_BYTES), len)
        };
        let memory = returned.unwrap_or_else(fresh);
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
        drop(two);
        drop(one);
        let again = pool.take(8192);
        assert_eq!(again.as_ptr(), address, "the last to return is used again");
        assert_eq!(again[4999], 7);
        assert_ne!(pool.take(1).as_ptr(), address);
    }

    #[test]
    fn a_block_is_no_larger_than_twice_what_is_asked_for() {
        let pool = BlockPool::new(4, 100 << 10);
        let (usual, small, large) = (pool.take(60 << 10), pool.take(1000), pool.take(900 << 10));
        let size = |block: &Block| block.memory.as_ref().unwrap().len();
        assert_eq!([&usual, &small, &large].map(size), [100 << 10, 4096, 900 << 10]);
        let address = usual.as_ptr();
        drop((large, small, usual));
        assert_eq!(size(&pool.take(10)), 4096);
        let other = pool.take(100 << 10);
        assert_eq!(other.as_ptr(), address, "the usual size fits the usual chunks");
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
        assert_eq!(attach(&pool.take(10), "third"), "second");
    }

    #[test]
    fn a_block_has_the_length_asked_for() {
        assert_eq!(Block::with_len(3).as_ref(), &[0, 0, 0]);
    }
}
