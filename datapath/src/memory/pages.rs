//! Private memory of this process in huge pages, where the kernel has some.
//!
//! A chunk's block is written once and read a few times, so what its pages cost counts: one fault and one TLB entry for
//! 2 MiB instead of 512 of each. The kernel is asked (madvise(2), MADV_HUGEPAGE) and may decline; nothing depends on it.

#![expect(unsafe_code, reason = "maps memory")]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::host::HUGE_PAGE_BYTES;

/// Zeroed memory that is mapped, not allocated: it begins at a huge page's border and goes back to the system when it is
/// dropped.
pub(super) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory that only its owner reaches.
unsafe impl Send for Mapping {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes; none when the kernel has no such room.
    pub(super) fn zeroed(len: usize) -> Option<Self> {
        // So much more that a border of a huge page lies in it: address space, never touched.
        let bytes = len.checked_add(HUGE_PAGE_BYTES)?;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory.
        let mapped =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, access, flags) }.ok()?;
        let base = NonNull::new(mapped.cast::<u8>())?;
        let skipped = base.align_offset(HUGE_PAGE_BYTES).min(HUGE_PAGE_BYTES);
        // SAFETY: less than the part of the mapping that is beyond `len`.
        let start = unsafe { base.add(skipped) };
        // Whole huge pages only: the rest of the last one would be memory that nobody has asked for.
        let whole = len - len % HUGE_PAGE_BYTES;
        if whole > 0 {
            // SAFETY: a part of the mapping; the advice changes no content. Declining it is the kernel's right.
            unsafe { rustix::mm::madvise(start.as_ptr().cast(), whole, Advice::LinuxHugepage) }.ok();
        }
        Some(Self { base, bytes, start, len })
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped, zeroed by the kernel, and as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Mapping {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `self` is held exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `zeroed` mapped; every slice of it borrowed `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of a whole mapping cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_a_border_and_holds_what_is_written() {
        for len in [1, HUGE_PAGE_BYTES, 2 * HUGE_PAGE_BYTES + 4096] {
            let mut mapping = Mapping::zeroed(len).unwrap();
            assert_eq!(mapping.as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
            assert_eq!(mapping.len(), len);
            assert!(mapping.iter().all(|&byte| byte == 0));
            mapping[len - 1] = 7;
            assert_eq!(mapping[len - 1], 7);
        }
        assert!(Mapping::zeroed(usize::MAX).is_none());
        assert!(Mapping::zeroed(1 << 60).is_none(), "more than an address space");
    }
}
