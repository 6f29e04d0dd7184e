//! Leases that are kept for later requests: most chunks are wanted by one batch after the other, and each lease is a round trip.
//!
//! What is kept holds an owner's memory, so nothing is kept that no later step needs, nor for longer than a lease is believed in.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Leases of one queue pair at the most: of some windows of chunks. Each is a stream of the connection.
const KEPT_MAX: usize = 64;

/// Leases by their chunk.
pub(super) struct Leases<T> {
    kept: Mutex<BTreeMap<u32, Kept<T>>>,
}

struct Kept<T> {
    lease: T,
    /// The last step that needs the chunk.
    until: u64,
}

impl<T: Clone> Leases<T> {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<u32, Kept<T>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chunk's lease, if it may still be used.
    pub(super) fn get(&self, chunk: u32, may_be_used: impl Fn(&T) -> bool) -> Option<T> {
        let mut kept = self.kept();
        let found = kept.get(&chunk)?;
        if may_be_used(&found.lease) {
            return Some(found.lease.clone());
        }
        let old = kept.remove(&chunk);
        drop(kept);
        // Without the lock: it tells the owner.
        drop(old);
        None
    }

    /// Keeps a lease. When there are too many, the one goes that will be needed for the longest: it would be asked for anew anyway.
    pub(super) fn keep(&self, chunk: u32, until: u64, lease: T) {
        let mut kept = self.kept();
        let before = kept.insert(chunk, Kept { lease, until });
        let surplus = if kept.len() > KEPT_MAX {
            let last = kept.iter().max_by_key(|(chunk, kept)| (kept.until, **chunk)).map(|(chunk, _)| *chunk);
            last.and_then(|chunk| kept.remove(&chunk))
        } else {
            None
        };
        drop(kept);
        drop((before, surplus));
    }

    /// What lies there is not what it should be.
    pub(super) fn forget(&self, chunk: u32) {
        let gone = self.kept().remove(&chunk);
        drop(gone);
    }

    /// A request is for this step: what was needed only before that is given back.
    pub(super) fn pass(&self, step: u64) {
        let mut kept = self.kept();
        if kept.values().all(|kept| kept.until >= step) {
            return;
        }
        let needed = std::mem::take(&mut *kept).into_iter().partition(|(_, kept)| kept.until >= step);
        let gone: BTreeMap<_, _>;
        (*kept, gone) = needed;
        drop(kept);
        drop(gone);
    }
}

impl<T> Default for Leases<T> {
    fn default() -> Self {
        Self { kept: Mutex::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_serves_until_it_is_old_or_no_step_needs_its_chunk() {
        let leases = Leases::default();
        leases.keep(7, 20, "seven");
        leases.keep(8, 10, "eight");
        assert_eq!(leases.get(7, |_| true), Some("seven"));
        assert_eq!(leases.get(9, |_| true), None);
        leases.pass(10);
        assert_eq!(leases.get(8, |_| true), Some("eight"), "that step needs it");
        leases.pass(11);
        assert_eq!((leases.get(8, |_| true), leases.get(7, |_| true)), (None, Some("seven")));
        assert_eq!(leases.get(7, |_| false), None, "too old");
        assert_eq!(leases.get(7, |_| true), None, "and so it was given back");
        leases.keep(7, 20, "again");
        leases.forget(7);
        assert_eq!(leases.get(7, |_| true), None);
    }

    #[test]
    fn of_too_many_the_one_that_is_needed_for_the_longest_goes() {
        let leases = Leases::default();
        for chunk in 0..=u32::try_from(KEPT_MAX).unwrap() {
            leases.keep(chunk, u64::from(100 + chunk % 10), chunk);
        }
        let kept = (0..100).filter(|chunk| leases.get(*chunk, |_| true).is_some()).count();
        assert_eq!((kept, leases.get(59, |_| true)), (KEPT_MAX, None));
    }
}
