//! One block that several operations fill at once, each its own part. Whichever ends last hands it back.

#![expect(unsafe_code, reason = "memory that librados writes to")]

use std::cell::UnsafeCell;
use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::{Extent, ReadFailure, check};
use crate::memory::Block;

/// One block that several operations fill.
pub(super) struct Transfer {
    /// Taken out by whoever ends the last part.
    block: UnsafeCell<Option<Block>>,
    base: *mut u8,
    len: usize,
    /// Parts that have not ended, the starting of them being one.
    open: AtomicUsize,
    outcome: Mutex<Outcome>,
}

struct Outcome {
    failure: Option<ReadFailure>,
    done: Option<oneshot::Sender<(Block, Result<(), ReadFailure>)>>,
}

// SAFETY: the block is only reached by `place`, whose ranges are disjoint, and by the one part that ends last; `open` orders
// the two.
unsafe impl Send for Transfer {}
// SAFETY: as for Send.
unsafe impl Sync for Transfer {}

pub(super) type Answer = oneshot::Receiver<(Block, Result<(), ReadFailure>)>;

impl Transfer {
    pub(super) fn new(mut block: Block, parts: usize) -> (Arc<Self>, Answer) {
        let (sender, answer) = oneshot::channel();
        let (base, len) = (block.as_mut_ptr(), block.len());
        let transfer = Self {
            block: UnsafeCell::new(Some(block)),
            base,
            len,
            open: AtomicUsize::new(parts + 1),
            outcome: Mutex::new(Outcome { failure: None, done: Some(sender) }),
        };
        (Arc::new(transfer), answer)
    }

    /// The start of a range of the block.
    pub(super) fn place(&self, at: usize, len: usize) -> *mut c_char {
        assert!(at <= self.len && len <= self.len - at, "an extent lies inside its block");
        // SAFETY: the assertion keeps it inside the allocation.
        unsafe { self.base.add(at) }.cast()
    }

    pub(super) fn part_done(&self, failure: Option<ReadFailure>) {
        if let Some(failure) = failure {
            let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
            // The first in the shard's order, whichever came first: the same failure gives the same message.
            let is_first = outcome.failure.as_ref().is_none_or(|known| failure.index() < known.index());
            if is_first {
                outcome.failure = Some(failure);
            }
        }
        // Release: what this part wrote is seen by whoever takes the block. Acquire: by this thread, if it does.
        if self.open.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: all other parts have ended, so nobody else reaches the block.
        let block = unsafe { &mut *self.block.get() }.take();
        if let (Some(done), Some(block)) = (outcome.done.take(), block) {
            let result = outcome.failure.take().map_or(Ok(()), Err);
            // The future may be gone: then the block is freed (or goes back to its pool) here, now that it may.
            drop(done.send((block, result)));
        }
    }
}

impl ReadFailure {
    fn index(&self) -> usize {
        match self {
            Self::Object(index, _) | Self::Short(index, _) => *index,
        }
    }
}

/// Where librados says how an extent went.
pub(super) struct ExtentResult {
    pub(super) extent: Extent,
    pub(super) read: usize,
    pub(super) value: c_int,
}

pub(super) struct Results(pub(super) Box<[ExtentResult]>);
// SAFETY: plain numbers; librados writes them before it calls back, which orders the two.
unsafe impl Send for Results {}

pub(super) fn failure(index: usize, value: c_int, results: &[ExtentResult]) -> Option<ReadFailure> {
    if let Err(error) = check(value) {
        return Some(ReadFailure::Object(index, error));
    }
    results.iter().find_map(|result| match check(result.value) {
        Err(error) => Some(ReadFailure::Object(index, error)),
        Ok(()) if result.read < result.extent.len => {
            let end = result.extent.offset + u64::try_from(result.read).unwrap_or(0);
            Some(ReadFailure::Short(index, end))
        }
        Ok(()) => None,
    })
}
