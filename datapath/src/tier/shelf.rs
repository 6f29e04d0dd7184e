//! What a tier holds, what it takes, and what goes for it (pure).
//!
//! A chunk of the dataset in use stays once it is here. Every epoch passes all chunks, so whatever were dropped for the
//! newest would be asked for again before the newest is: replacing by age drops just what is needed next. Two things do
//! go: what other datasets left, the oldest first; and chunks that nobody asked for while this worker loaded twice as many
//! as the dataset has, because another worker owns them now.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use crate::dataset::ChunkId;

/// How often chunks of other workers are looked for in vain while a chunk becomes one.
const LOOKS: u64 = 8;

/// What one tier holds.
#[derive(Debug)]
pub(super) struct Shelf {
    budget: u64,
    /// Of everything below, what is being written included.
    bytes: u64,
    here: BTreeMap<ChunkId, Item>,
    /// Files of other datasets, the oldest first.
    old: VecDeque<(PathBuf, u64)>,
    /// Of those.
    old_bytes: u64,
    /// Counts the loads, found here or not.
    loads: u64,
    /// Loads after which an unused chunk is another worker's.
    stale_after: u64,
    /// No load before this one looks for such chunks: looking takes as long as the tier is large.
    looks_at: u64,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    bytes: u64,
    /// The load that asked for it last.
    used: u64,
    /// It can be read; otherwise it is being written.
    whole: bool,
}

/// What has to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    /// A chunk of this dataset.
    Chunk(ChunkId),
    /// A file of another.
    Old(PathBuf),
}

/// Why a chunk is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is here, or on its way.
    Here,
    /// Everything that is here is worth as much.
    Full,
}

impl Shelf {
    /// An empty one, for a dataset of so many chunks.
    pub(super) fn new(budget: u64, chunks: u64) -> Self {
        let stale_after = chunks.saturating_mul(2);
        Self {
            budget,
            bytes: 0,
            here: BTreeMap::new(),
            old: VecDeque::new(),
            old_bytes: 0,
            loads: 0,
            stale_after,
            looks_at: stale_after,
        }
    }

    /// A chunk that was here at the start.
    pub(super) fn found(&mut self, chunk: ChunkId, bytes: u64) {
        self.bytes += bytes;
        self.here.insert(chunk, Item { bytes, used: 0, whole: true });
    }

    /// A file of another dataset; told from the oldest on.
    pub(super) fn found_old(&mut self, path: PathBuf, bytes: u64) {
        self.bytes += bytes;
        self.old_bytes += bytes;
        self.old.push_back((path, bytes));
    }

    /// What must go because there is more than the budget, which may have been smaller the last time.
    pub(super) fn trim(&mut self) -> Vec<Victim> {
        let mut victims = Vec::new();
        while self.bytes > self.budget {
            let last = self.here.keys().next_back().copied();
            let oldest = self.take_oldest();
            let Some(victim) = oldest.or_else(|| self.take(last?)) else { break };
            victims.push(victim);
        }
        victims
    }

    /// A chunk is asked for: whether it can be read here.
    pub(super) fn look(&mut self, chunk: ChunkId) -> bool {
        self.loads += 1;
        self.here.get_mut(&chunk).is_some_and(|item| {
            item.used = self.loads;
            item.whole
        })
    }

    /// Takes a chunk, whose bytes count from now on, and says what goes for it.
    ///
    /// # Errors
    /// When it is not taken; nothing goes then.
    pub(super) fn admit(&mut self, chunk: ChunkId, bytes: u64) -> Result<Vec<Victim>, Refusal> {
        if self.here.contains_key(&chunk) {
            return Err(Refusal::Here);
        }
        // Whether the room can be made is known before anything goes for it.
        let lacking = self.bytes.saturating_add(bytes).saturating_sub(self.budget);
        let stale = self.stale(lacking.saturating_sub(self.old_bytes)).ok_or(Refusal::Full)?;
        let mut victims = Vec::new();
        while self.bytes + bytes > self.budget
            && let Some(victim) = self.take_oldest()
        {
            victims.push(victim);
        }
        victims.extend(stale.into_iter().filter_map(|chunk| self.take(chunk)));
        self.bytes += bytes;
        self.here.insert(chunk, Item { bytes, used: self.loads, whole: false });
        Ok(victims)
    }

    /// A chunk that was taken has been written.
    pub(super) fn written(&mut self, chunk: ChunkId) {
        if let Some(item) = self.here.get_mut(&chunk) {
            item.whole = true;
        }
    }

    /// A chunk is not here any more, or was not written.
    pub(super) fn forget(&mut self, chunk: ChunkId) {
        self.take(chunk);
    }

    /// Takes nothing beyond what is here: the disk has no more room.
    pub(super) fn freeze(&mut self) {
        self.budget = self.budget.min(self.bytes);
    }

    /// Forgets everything and takes nothing more: the disk is not to be trusted.
    pub(super) fn close(&mut self) {
        (self.budget, self.bytes, self.old_bytes) = (0, 0, 0);
        self.here.clear();
        self.old.clear();
    }

    /// Chunks of this dataset that can be read.
    pub(super) fn chunks(&self) -> usize {
        self.here.values().filter(|item| item.whole).count()
    }

    /// Chunks of other workers, the longest unused first, that make so much room; none when there are too few.
    fn stale(&mut self, bytes: u64) -> Option<Vec<ChunkId>> {
        if bytes == 0 {
            return Some(Vec::new());
        }
        if self.loads < self.looks_at {
            return None;
        }
        let is_stale = |item: &Item| item.whole && self.loads - item.used > self.stale_after;
        let stale = self.here.iter().filter(|(_, item)| is_stale(item));
        let mut stale: Vec<_> = stale.map(|(chunk, item)| (item.used, *chunk, item.bytes)).collect();
        stale.sort_unstable();
        let mut room = 0;
        let last = stale.iter().position(|(_, _, one)| {
            room += one;
            room >= bytes
        });
        let Some(last) = last else {
            self.looks_at = self.loads + (self.stale_after / LOOKS).max(1);
            return None;
        };
        Some(stale[..=last].iter().map(|(_, chunk, _)| *chunk).collect())
    }

    fn take_oldest(&mut self) -> Option<Victim> {
        let (path, bytes) = self.old.pop_front()?;
        self.bytes -= bytes;
        self.old_bytes -= bytes;
        Some(Victim::Old(path))
    }

    fn take(&mut self, chunk: ChunkId) -> Option<Victim> {
        self.bytes -= self.here.remove(&chunk)?.bytes;
        Some(Victim::Chunk(chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full_of(chunks: u32) -> Shelf {
        let mut shelf = Shelf::new(u64::from(chunks) * 10, 4);
        for chunk in (0..chunks).map(ChunkId) {
            assert_eq!(shelf.admit(chunk, 10), Ok(Vec::new()));
            shelf.written(chunk);
        }
        shelf
    }

    #[test]
    fn what_is_here_stays() {
        let mut shelf = full_of(3);
        assert_eq!(shelf.admit(ChunkId(3), 10), Err(Refusal::Full));
        assert_eq!(shelf.admit(ChunkId(1), 10), Err(Refusal::Here));
        assert!((0..3).all(|chunk| shelf.look(ChunkId(chunk))) && !shelf.look(ChunkId(3)));
        shelf.forget(ChunkId(1));
        assert_eq!(shelf.admit(ChunkId(3), 10), Ok(Vec::new()), "the room of one that is gone");
        assert!(!shelf.look(ChunkId(3)), "it is being written");
        shelf.written(ChunkId(3));
        assert!(shelf.look(ChunkId(3)));
    }

    #[test]
    fn other_datasets_go_first_and_only_as_far_as_needed() {
        let mut shelf = Shelf::new(40, 4);
        shelf.found(ChunkId(0), 10);
        for (name, bytes) in [("first", 10), ("second", 10), ("third", 10)] {
            shelf.found_old(name.into(), bytes);
        }
        let gone = ["first", "second"].map(|name| Victim::Old(name.into())).to_vec();
        assert_eq!(shelf.admit(ChunkId(1), 20), Ok(gone));
        assert_eq!(shelf.admit(ChunkId(2), 21), Err(Refusal::Full));
        assert_eq!(shelf.admit(ChunkId(2), 10), Ok(vec![Victim::Old("third".into())]), "it was kept so far");
    }

    #[test]
    fn chunks_of_which_another_worker_is_the_owner_now_go() {
        let mut shelf = full_of(2);
        // Four chunks: after more than eight loads without it, chunk 0 is another's.
        for _ in 0..9 {
            shelf.look(ChunkId(1));
        }
        assert_eq!(shelf.admit(ChunkId(2), 10), Ok(vec![Victim::Chunk(ChunkId(0))]));
        assert_eq!(shelf.admit(ChunkId(3), 10), Err(Refusal::Full));
    }

    #[test]
    fn a_smaller_budget_a_full_disk_and_a_bad_one() {
        let mut shelf = Shelf::new(15, 4);
        shelf.found(ChunkId(0), 10);
        shelf.found(ChunkId(1), 10);
        shelf.found_old("old".into(), 10);
        assert_eq!(shelf.trim(), [Victim::Old("old".into()), Victim::Chunk(ChunkId(1))]);
        assert_eq!(shelf.trim(), []);
        let mut shelf = Shelf::new(100, 4);
        shelf.found(ChunkId(0), 10);
        shelf.freeze();
        assert_eq!(shelf.admit(ChunkId(1), 1), Err(Refusal::Full));
        assert!(shelf.look(ChunkId(0)));
        shelf.close();
        assert!(!shelf.look(ChunkId(0)));
        assert_eq!((shelf.chunks(), shelf.admit(ChunkId(1), 1)), (0, Err(Refusal::Full)));
    }
}
