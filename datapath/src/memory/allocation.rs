//! Memory whose place a device may know for longer than any one user of its bytes.
//!
//! A registration costs more than the read that it serves, so it is made once and kept with the memory; who uses the memory
//! changes meanwhile. So the memory is held by all who know its place, and its bytes are reached by the one [`Block`](super::Block)
//! that holds it.

#![expect(unsafe_code, reason = "keeps memory apart from the right to its bytes")]

use std::any::Any;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use super::mapping::Mapping;
use super::span::{Span, Stable};

/// From this size on memory is mapped: a smaller one's pages are few, and an allocator has them at hand.
const MAPPED_BYTES_MIN: usize = 1 << 20;
/// Bytes whose pages are asked for at once at the most: a millisecond or two, for which other tasks of the thread wait.
const POPULATED_BYTES_MAX: usize = 8 << 20;

/// Zeroed bytes, freed with their last holder. No right to touch them comes with it.
pub(super) struct Allocation {
    base: NonNull<u8>,
    len: usize,
    /// What it is a part of; none when it was allocated.
    mapping: Option<Mapping>,
}

// SAFETY: plain memory without thread affinity; all access goes through `slice` and `slice_mut`, whose contracts forbid races.
unsafe impl Send for Allocation {}
// SAFETY: as for Send; a shared reference alone gives no access to the bytes.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// That many, of which the first `used` will be written.
    fn zeroed(len: usize, used: usize) -> Arc<Self> {
        let populated = used.min(len).min(POPULATED_BYTES_MAX);
        let mapping = (len >= MAPPED_BYTES_MIN).then(|| Mapping::zeroed(len, populated)).flatten();
        let base = match &mapping {
            Some(mapping) => mapping.start(),
            None => NonNull::from(Box::leak(vec![0_u8; len].into_boxed_slice())).cast(),
        };
        Arc::new(Self { base, len, mapping })
    }

    /// The first `len` bytes.
    ///
    /// # Safety
    /// For the life of the result nobody in this process writes to them.
    unsafe fn slice(&self, len: usize) -> &[u8] {
        // SAFETY: one initialised allocation of at least so many bytes, which lives as long as `self`; the caller promises the rest.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), len.min(self.len)) }
    }

    /// The first `len` bytes, for writing.
    ///
    /// # Safety
    /// For the life of the result no other reference to them exists.
    #[expect(clippy::mut_from_ref, reason = "the caller guarantees that it is the only one")]
    unsafe fn slice_mut(&self, len: usize) -> &mut [u8] {
        // SAFETY: as in `slice`.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), len.min(self.len)) }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // A mapping ends by itself, after this.
        if self.mapping.is_some() {
            return;
        }
        let bytes = NonNull::slice_from_raw_parts(self.base, self.len);
        // SAFETY: what `zeroed` leaked, given back once: nobody holds it any more, and slices borrowed from holders.
        drop(unsafe { Box::from_raw(bytes.as_ptr()) });
    }
}

// SAFETY: one allocation, from its making to its `drop`, readable and writable in this process. Whoever may know it reads it: it
// is only ever handed out as `Stable`.
unsafe impl Stable for Allocation {
    fn span(&self) -> Span {
        Span { address: self.base.as_ptr().expose_provenance(), len: self.len }
    }
}

/// The only way to an allocation's bytes, with what was attached to it, which stays when its user changes.
pub(super) struct Memory {
    allocation: Arc<Allocation>,
    attached: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Memory {
    /// That many, of which the first `used` will be written at once.
    pub(super) fn zeroed(len: usize, used: usize) -> Self {
        Self { allocation: Allocation::zeroed(len, used), attached: OnceLock::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.allocation.len
    }

    pub(super) fn bytes(&self, len: usize) -> &[u8] {
        // SAFETY: the allocation was made with this value, which is its only way to its bytes, and is borrowed for the result's life.
        // Devices that know the place read it only.
        unsafe { self.allocation.slice(len) }
    }

    pub(super) fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed uniquely.
        unsafe { self.allocation.slice_mut(len) }
    }

    /// What is attached, made of the allocation's place if nothing is.
    pub(super) fn attached<T: Any + Clone + Send + Sync, E>(
        &self,
        make: impl FnOnce(Arc<dyn Stable>) -> Result<T, E>,
    ) -> Result<T, E> {
        if let Some(attached) = self.attached.get().and_then(|attached| attached.downcast_ref::<T>()) {
            return Ok(attached.clone());
        }
        let made = make(Arc::<Allocation>::clone(&self.allocation))?;
        // When somebody was faster, this one serves its caller and goes.
        drop(self.attached.set(Box::new(made.clone())));
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_attached_is_made_once_and_keeps_the_memory() {
        let mut memory = Memory::zeroed(5000, 5000);
        memory.bytes_mut(5000)[4999] = 7;
        let place = memory.attached(Ok::<_, ()>).unwrap();
        assert_eq!(place.span().len, 5000);
        let again = memory.attached(|_| -> Result<Arc<dyn Stable>, ()> { panic!("made twice") }).unwrap();
        assert_eq!(again.span(), place.span());
        assert_eq!(memory.bytes(5000)[4999], 7);
        let count = Arc::downgrade(&memory.allocation);
        drop(memory);
        drop(again);
        assert!(count.upgrade().is_some(), "a place that is known is not freed");
        drop(place);
        assert!(count.upgrade().is_none());
    }

    #[test]
    fn large_and_small_ones_are_zeroed_and_hold_what_is_written() {
        for len in [0, 1, 4096, MAPPED_BYTES_MIN, (4 << 20) + 5] {
            let mut memory = Memory::zeroed(len, len / 2);
            assert_eq!(memory.allocation.mapping.is_some(), len >= MAPPED_BYTES_MIN);
            assert!(memory.bytes(len).len() == len && memory.bytes(len).iter().all(|&byte| byte == 0));
            memory.bytes_mut(len).fill(7);
            assert!(memory.bytes(len).iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn a_failure_attaches_nothing() {
        let memory = Memory::zeroed(1, 1);
        assert_eq!(memory.attached(|_| Err::<u8, _>("no")), Err("no"));
        assert_eq!(memory.attached(|_| Ok::<_, ()>(5_u8)), Ok(5));
        assert_eq!(memory.attached(|_| Ok::<_, ()>("another type")), Ok("another type"));
    }
}
