//! Memory where devices of other hosts write whenever they like.
//!
//! A reference to bytes that change meanwhile would be undefined behaviour, so there is none: what is here is copied out, byte
//! by byte, by atomic reads. That is slow, and for what has to be fast there is [`super::span::Exclusive`].

#![expect(unsafe_code, reason = "memory that others write to")]

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use super::host::Region;
use super::span::{Exposed, Span, Stable};

/// Memory that may change at any moment.
pub struct Landing {
    region: Region,
}

impl Landing {
    /// Lets others at a region.
    #[must_use]
    pub fn new(region: Region) -> Self {
        Self { region }
    }

    /// Copies out what is there from the byte `at` on.
    ///
    /// # Panics
    /// When that is not all inside.
    pub fn copy_to(&self, at: usize, target: &mut [u8]) {
        let source = &self.bytes()[at..at + target.len()];
        for (target, source) in target.iter_mut().zip(source) {
            *target = source.load(Ordering::Relaxed);
        }
    }

    /// Writes one byte everywhere.
    pub fn fill(&self, byte: u8) {
        self.bytes().iter().for_each(|target| target.store(byte, Ordering::Relaxed));
    }

    fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: the region's whole mapping, which lives as long as `self`; an atomic byte is laid out as a byte, and as the
        // region is owned, nobody has a plain reference to it.
        unsafe { std::slice::from_raw_parts(self.region.base().cast::<AtomicU8>(), self.region.bytes()) }
    }
}

// SAFETY: the region's, which is owned.
unsafe impl Stable for Landing {
    fn span(&self) -> Span {
        self.region.span()
    }
}

// SAFETY: the region is private, and only reached by `bytes`, as atomics.
unsafe impl Exposed for Landing {}

impl fmt::Debug for Landing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Landing").field("bytes", &self.region.bytes()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_copied_out() {
        let landing = Landing::new(Region::create(4096).unwrap());
        landing.fill(9);
        let mut copy = [0; 3];
        landing.copy_to(4093, &mut copy);
        assert_eq!(copy, [9; 3]);
    }
}
