//! One region in equal pieces: registered with a device as a whole, once, and used piece by piece.

#![expect(unsafe_code, reason = "hands out disjoint parts of a region")]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::host::Region;
use super::span::{Exclusive, Span};

/// The only way to one part of a region. All of them were made with the region, so none is there twice.
pub struct Piece {
    region: Arc<Region>,
    at: usize,
    len: usize,
}

/// A region in pieces of `piece_bytes`, what is left at its end belonging to none; and the region, to be registered.
#[must_use]
pub fn pieces(region: Region, piece_bytes: usize) -> (Arc<Region>, Vec<Piece>) {
    let region = Arc::new(region);
    let count = region.bytes().checked_div(piece_bytes).unwrap_or(0);
    let piece = |index| Piece { region: Arc::clone(&region), at: index * piece_bytes, len: piece_bytes };
    let pieces = (0..count).map(piece).collect();
    (region, pieces)
}

impl Piece {
    /// Where it begins in its region.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: pieces are disjoint, this is the only one of its bytes, and it is borrowed for the result's life. The region,
        // which `pieces` took, gives its bytes out to nobody else.
        unsafe { self.region.slice(self.at, self.len) }
    }
}

impl DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for Deref, and borrowed uniquely.
        unsafe { self.region.slice_mut(self.at, self.len) }
    }
}

// SAFETY: a part of one mapping, which the piece keeps; all ways to its bytes borrow the piece.
unsafe impl Exclusive for Piece {
    fn span(&mut self) -> Span {
        Span { address: self.region.base().expose_provenance() + self.at, len: self.len }
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Piece").field("at", &self.at).field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::span::Stable;

    #[test]
    fn pieces_are_disjoint_parts_of_the_region() {
        let (region, mut pieces) = pieces(Region::create(3 << 12).unwrap(), 5000);
        assert_eq!(pieces.iter().map(Piece::at).collect::<Vec<_>>(), [0, 5000]);
        pieces[1].fill(7);
        assert!(pieces[0].iter().all(|&byte| byte == 0) && pieces[1].iter().all(|&byte| byte == 7));
        for piece in &mut pieces {
            let span = piece.span();
            assert!(region.span().contains(span));
        }
    }
}
