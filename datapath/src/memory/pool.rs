//! Pieces that come back when nobody can write to them any more.
//!
//! A piece moves into a device's request and comes back from it. When the request is in doubt (its waiter gave up, or its lane
//! failed), the piece stays with the request until the device is done with it, and is only then free again: that is all there is to
//! quarantine. One that the system cannot take from the device never comes back.

#![expect(unsafe_code, reason = "passes a piece's promise on")]

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::pieces::Piece;
use super::span::{Exclusive, Span};

/// Pieces of one region.
pub struct PiecePool {
    free: Mutex<Vec<Piece>>,
    /// As many as there are free ones.
    count: Semaphore,
}

impl PiecePool {
    /// A pool of these.
    #[must_use]
    pub fn new(pieces: Vec<Piece>) -> Arc<Self> {
        Arc::new(Self { count: Semaphore::new(pieces.len()), free: Mutex::new(pieces) })
    }

    /// The next one that is free.
    pub async fn take(self: &Arc<Self>) -> Pooled {
        loop {
            // It is never closed.
            if let Ok(permit) = self.count.acquire().await {
                permit.forget();
            }
            if let Some(piece) = self.pop() {
                return piece;
            }
        }
    }

    /// One that is free now.
    pub fn try_take(self: &Arc<Self>) -> Option<Pooled> {
        self.count.try_acquire().ok()?.forget();
        self.pop()
    }

    /// How many are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.count.available_permits()
    }

    fn pop(self: &Arc<Self>) -> Option<Pooled> {
        let piece = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Pooled { piece: Some(piece), pool: Arc::clone(self) })
    }
}

/// A piece of a pool, to which it goes back when it is dropped.
pub struct Pooled {
    // None only inside `drop`.
    piece: Option<Piece>,
    pool: Arc<PiecePool>,
}

impl Deref for Pooled {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.piece.as_deref().unwrap_or_default()
    }
}

// SAFETY: the piece's, which is kept as long and given to nobody else.
unsafe impl Exclusive for Pooled {
    fn span(&mut self) -> Span {
        self.piece.as_mut().map_or(Span { address: 0, len: 0 }, Exclusive::span)
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        // First let go, then tell.
        if let Some(piece) = self.piece.take() {
            self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(piece);
            self.pool.count.add_permits(1);
        }
    }
}

impl fmt::Debug for PiecePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PiecePool").field("free", &self.free()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").field("bytes", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::host::Region;
    use crate::memory::pieces::pieces;

    #[tokio::test]
    async fn a_piece_in_doubt_is_given_to_nobody_until_it_is_let_go_of() {
        let (_region, pieces) = pieces(Region::create(2 << 12).unwrap(), 4096);
        let pool = PiecePool::new(pieces);
        let (mut one, two) = (pool.take().await, pool.try_take().unwrap());
        assert_ne!(one.span(), { two }.span());
        let again = pool.try_take().unwrap();
        assert!(pool.try_take().is_none(), "both are out");
        let waiting = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.take().await.span() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let span = one.span();
        drop(one);
        assert_eq!(waiting.await.unwrap(), span, "what came back is used again");
        drop(again);
        assert_eq!(pool.free(), 2);
    }
}
