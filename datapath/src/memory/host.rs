//! Memory of this host that another process maps read-only: a sealed memfd.
//!
//! It has no name in any file system, so nothing is left of it when its last holder ends. Seals (memfd_create(2),
//! fcntl(2) F_ADD_SEALS): its size can never change under a reader, and nobody but this process's own mapping can
//! write to it. Pages are only allocated when they are first touched, except huge ones, which the kernel reserves
//! at once; so huge pages are used when there are enough of them, else normal ones, and the log says which.

#![expect(unsafe_code, reason = "maps shared memory")]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// The size of a huge page, in bytes (x86-64 and aarch64 with 4 KiB base pages).
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Which pages back a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Those of 4 KiB.
    Normal,
    /// Those of 2 MiB.
    Huge,
}

/// Why a region cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The kernel gave no file, or not of this size.
    #[error("create a shared memory region of {bytes} bytes")]
    Create {
        /// What was asked for.
        bytes: usize,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It could not be mapped here.
    #[error("map a shared memory region of {bytes} bytes (is the address space limited? see `ulimit -v`)")]
    Map {
        /// What was asked for.
        bytes: usize,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It could not be sealed.
    #[error("seal a shared memory region (needs Linux 5.1)")]
    Seal(#[source] io::Error),
}

/// A memfd, mapped for writing here and sealed against everyone else.
pub struct Region {
    fd: OwnedFd,
    base: NonNull<u8>,
    bytes: usize,
    pages: Pages,
}

// SAFETY: the mapping is plain memory without thread affinity; all access goes through `slice_mut`, whose contract
// forbids two users of one byte.
unsafe impl Send for Region {}
// SAFETY: as for Send; a shared reference alone gives no access to the memory without `slice_mut`'s contract.
unsafe impl Sync for Region {}

impl Region {
    /// A zeroed region of `bytes` (a multiple of 4096; huge pages are tried when it is one of 2 MiB).
    ///
    /// # Errors
    /// When the kernel refuses; see [`RegionError`].
    pub fn create(bytes: usize) -> Result<Self, RegionError> {
        if bytes.is_multiple_of(HUGE_PAGE_BYTES)
            && let Ok(region) = Self::with_pages(bytes, Pages::Huge)
        {
            return Ok(region);
        }
        Self::with_pages(bytes, Pages::Normal)
    }

    fn with_pages(bytes: usize, pages: Pages) -> Result<Self, RegionError> {
        let create = |source: rustix::io::Errno| RegionError::Create { bytes, source: source.into() };
        let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        if pages == Pages::Huge {
            flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        }
        let fd = rustix::fs::memfd_create("slipway-ring", flags).map_err(create)?;
        rustix::fs::ftruncate(&fd, u64::try_from(bytes).unwrap_or(u64::MAX)).map_err(create)?;
        // Huge pages are reserved by mapping them: unreserved, a missing one would be a SIGBUS at its first touch.
        let reserve = if pages == Pages::Huge { MapFlags::empty() } else { MapFlags::NORESERVE };
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory.
        let mapped = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | reserve,
                &fd,
                0,
            )
        }
        .map_err(|source| RegionError::Map { bytes, source: source.into() })?;
        let Some(base) = NonNull::new(mapped.cast()) else {
            return Err(RegionError::Map { bytes, source: io::ErrorKind::OutOfMemory.into() });
        };
        let region = Self { fd, base, bytes, pages };
        if pages == Pages::Huge {
            // A cgroup may forbid to touch what could be reserved, which would kill this process: so all are asked for now.
            // SAFETY: the whole mapping, whose content stays what it is.
            unsafe { rustix::mm::madvise(mapped, bytes, rustix::mm::Advice::LinuxPopulateWrite) }
                .map_err(|source| RegionError::Map { bytes, source: source.into() })?;
        }
        // FUTURE_WRITE only after our own writable mapping stands; SEAL last, so that no seal is added or lifted.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&region.fd, seals).map_err(|source| RegionError::Seal(source.into()))?;
        Ok(region)
    }

    /// The file, for another process to map.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Which pages back it.
    #[must_use]
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// Its first byte. No right to touch it comes with that.
    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The bytes `offset..offset + len`, for reading.
    ///
    /// # Safety
    /// For the life of the result nobody writes to any of these bytes.
    ///
    /// # Panics
    /// When the range does not lie inside the region.
    pub(super) unsafe fn slice(&self, offset: usize, len: usize) -> &[u8] {
        assert!(offset <= self.bytes && len <= self.bytes - offset, "a piece lies inside its region");
        // SAFETY: the assertion keeps the offset inside the mapping.
        let start = unsafe { self.base.add(offset) };
        // SAFETY: mapped, initialised and alive as in `slice_mut`; the caller guarantees that nobody writes.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), len) }
    }

    /// The bytes `offset..offset + len`, for writing.
    ///
    /// # Safety
    /// For the life of the result no other reference to any of these bytes may exist in this process.
    ///
    /// # Panics
    /// When the range does not lie inside the region.
    #[expect(clippy::mut_from_ref, reason = "the caller guarantees that ranges in use are disjoint")]
    pub(crate) unsafe fn slice_mut(&self, offset: usize, len: usize) -> &mut [u8] {
        assert!(offset <= self.bytes && len <= self.bytes - offset, "a slot lies inside its ring");
        // SAFETY: the assertion keeps the offset inside the mapping.
        let start = unsafe { self.base.add(offset) };
        // SAFETY: `start..start + len` is mapped, initialised (zero pages) and lives as long as `self`; the caller
        // guarantees exclusiveness, and the seals keep every other process from writing.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `create` mapped, and every slice of it borrowed `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of a whole mapping cannot fail");
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("bytes", &self.bytes)
            .field("pages", &self.pages)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_can_write_or_resize() {
        let region = Region::create(8192).unwrap();
        assert_eq!((region.bytes(), region.pages()), (8192, Pages::Normal));
        assert!(rustix::fs::ftruncate(region.fd(), 0).is_err());
        assert!(rustix::fs::ftruncate(region.fd(), 1 << 20).is_err());
        assert!(rustix::io::pwrite(region.fd(), b"x", 0).is_err());
        assert!(rustix::fs::fcntl_add_seals(region.fd(), SealFlags::WRITE).is_err());
        // SAFETY: a fresh mapping that is never touched; it must not even come to be.
        let writable = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                4096,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                region.fd(),
                0,
            )
        };
        assert!(writable.is_err());
    }

    #[test]
    fn what_is_written_here_is_read_through_the_file() {
        let region = Region::create(4096).unwrap();
        // SAFETY: the only slice of this region.
        unsafe { region.slice_mut(100, 3) }.copy_from_slice(b"abc");
        let mut read = [0; 3];
        assert_eq!(rustix::io::pread(region.fd(), &mut read, 100), Ok(3));
        assert_eq!(&read, b"abc");
    }
}
