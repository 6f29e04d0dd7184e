//! The chunks that this worker has read: each read once, however many ask for it at the same time.
//!
//! A chunk is needed until the last step that uses it in its epoch; once all consumers have passed that step it is
//! released: still there for the next epoch, but the first to go when room is needed, the last one that was used before all
//! others: the next epoch needs it the latest, and its memory is warm. When there is nothing released, the least recently
//! used chunk goes (counted as an eviction). When such a chunk is asked for again, the cache is too small for the order's
//! window: every reread is counted, and the first one warned of, with what would be enough ([`need`]). A chunk in use is never dropped; a load waits for room, and nothing holds a chunk while it
//! waits for another, so the wait ends.
//!
//! Bytes are not verified here on the way in: every sample is, in the slot, where the trainer will read it. The
//! chunk's own CRC decides, once a sample was bad, whether to blame this copy, the store, or the way between.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::counters::Counting;
use crate::dataset::{ChunkId, Manifest};
use crate::fault;
use crate::integrity::crc32c;
use crate::memory::{Block, BlockPool};
use crate::order::Shuffle;
use crate::store::Store;
use crate::tier::{self, Tier};

mod depth;
mod reads;

pub use self::depth::READS_MAX;
use self::reads::Reads;

/// Reads under way that every cache has room for besides its window: 64 MiB of chunks of 4 MiB. More are possible where a
/// window or a cluster's budget leaves more.
const READS_ROOM: usize = 16;
/// The smallest cache, in chunks: one being read while another is used.
const LEAST_CHUNKS: usize = 2;
/// Blocks of dropped chunks that are kept for those that took their room and wait for their turn to be read: as many as may
/// be read ahead of a window. They count for these, so they are no memory beyond the budget (but for what one is larger than its chunk).
const SPARE_BLOCKS: usize = 2 * READS_MAX;

/// Why a chunk is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read chunk {chunk}: {message}")]
pub struct LoadError {
    /// The chunk.
    pub chunk: u32,
    /// One of the reasons of [`crate::fault`].
    pub reason: &'static str,
    /// What the store said.
    pub message: String,
}

/// What a worker's cache must hold, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// To read every chunk once per epoch: its share of one shuffle window.
    pub once: u64,
    /// To read the next window besides, while the last one is still in use; and to keep 16 reads under way, without which a
    /// store's latency shows.
    pub ahead: u64,
}

/// What each of `workers` owners must hold so that nothing is read twice (pure).
///
/// Owners are chosen by hash, so the share of a window varies: three standard deviations above the mean are taken,
/// of the largest chunks. Without a shuffle a window is one chunk.
#[must_use]
pub fn need(manifest: &Manifest, shuffle: Shuffle, workers: NonZeroU32) -> Need {
    let mut lens: Vec<u64> = manifest.chunks().iter().map(|chunk| chunk.len.into()).collect();
    lens.sort_unstable_by(|one, other| other.cmp(one));
    let all = u64::try_from(lens.len()).unwrap_or(u64::MAX);
    let window = match shuffle {
        Shuffle::None => 1,
        Shuffle::Window { chunks } => all.min(chunks.get().into()),
    };
    let bytes_of = |chunks: u64| {
        let mean = chunks.div_ceil(workers.get().into());
        let spread = if workers.get() == 1 { 0 } else { 3 * (mean.isqrt() + 1) };
        let share = usize::try_from((mean + spread).min(chunks)).unwrap_or(usize::MAX);
        lens.iter().take(share.max(LEAST_CHUNKS)).sum()
    };
    let under_way: u64 = lens.iter().take(READS_ROOM).sum();
    let once: u64 = bytes_of(window);
    let ahead = bytes_of(all.min(2 * window)).max((once + under_way).min(lens.iter().sum()));
    Need { once, ahead }
}

/// A cache that can hold less than this part of what its worker owns keeps nothing for the next epoch: it would be found
/// there too seldom for the memory that it takes.
const KEPT_PART: u64 = 4;

/// Chunks that are read ahead where none is needed at once: those on their way, and a quarter as many that have come. More
/// would only be colder when they are used: with half as many a loader from a near Ceph took a tenth more CPU.
fn ahead(reads: usize) -> usize {
    reads + reads / 4
}

/// The chunks of one data plane. Clones share them.
#[derive(Clone)]
pub struct Cache {
    shared: Arc<Shared>,
}

struct Shared {
    manifest: Arc<Manifest>,
    store: Store,
    /// Asked before the store.
    tier: Option<Tier>,
    /// What comes from the store is kept there: chunks that are being written leave room for those that are used.
    keeps: bool,
    budget: u64,
    /// Bytes of the largest chunk, and of all.
    largest: u64,
    stored: u64,
    pool: BlockPool,
    reads: Reads,
    /// Chunks of a shuffle window: they are all asked for at once, so as many may be here before the first of them is.
    window: usize,
    state: Mutex<State>,
    /// Told when a chunk is no longer in use, or a load failed and gave its room back.
    room: Notify,
    counters: Arc<Counting>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<ChunkId, Entry>,
    /// Of all entries, loading ones included.
    bytes: u64,
    /// Counts uses, for the order of eviction.
    uses: u64,
    /// The first step that some consumer has not consumed yet.
    floor: u64,
    /// Chunks that were dropped while needed, and the last step that needs each: asked for again, they are rereads.
    evicted: BTreeMap<ChunkId, u64>,
    /// Chunks that were read ahead and that nobody has asked for yet.
    unasked: usize,
    /// How many workers share the chunks.
    owners: u64,
    /// The first reread has been warned of.
    warned: bool,
}

struct Entry {
    content: Content,
    /// The last step that needs it.
    until: u64,
    used: u64,
    /// When somebody asked for it first, and did not only foresee that.
    asked: Option<Instant>,
}

enum Content {
    Loading(watch::Receiver<Option<Result<Arc<Block>, LoadError>>>),
    Loaded(Arc<Block>),
}

/// A chunk's bytes; while it exists they stay.
pub struct Held {
    // None only inside `drop`.
    block: Option<Arc<Block>>,
    shared: Arc<Shared>,
}

impl Cache {
    /// A cache of at most `budget` bytes, but never less than the two largest chunks: one being read while
    /// another is used.
    pub(crate) fn new(
        manifest: Arc<Manifest>,
        store: Store,
        tier: Option<Tier>,
        shuffle: Shuffle,
        budget: u64,
        counters: Arc<Counting>,
    ) -> Self {
        let largest = manifest.chunks().iter().map(|chunk| chunk.len).max().unwrap_or(0);
        let least = u64::try_from(LEAST_CHUNKS + tier::WRITES_MAX).unwrap_or(u64::MAX);
        let pool = BlockPool::new(SPARE_BLOCKS, usize::try_from(largest).unwrap_or(0));
        Self {
            shared: Arc::new(Shared {
                store,
                tier,
                keeps: budget >= least.saturating_mul(largest.into()),
                budget: budget.max(2 * u64::from(largest)),
                largest: largest.into(),
                stored: manifest.chunks().iter().map(|chunk| u64::from(chunk.len)).sum(),
                pool,
                reads: Reads::new(),
                window: match shuffle {
                    Shuffle::None => 1,
                    Shuffle::Window { chunks } => usize::try_from(chunks.get()).unwrap_or(usize::MAX),
                },
                state: Mutex::default(),
                room: Notify::new(),
                counters,
                manifest,
            }),
        }
    }

    /// A chunk that is needed until step `until` (over all epochs).
    ///
    /// # Errors
    /// When the store cannot deliver it. The next call tries again.
    pub async fn get(&self, chunk: ChunkId, until: u64) -> Result<Held, LoadError> {
        loop {
            let room = self.shared.room.notified();
            let loading = match self.shared.look(chunk, until, Pressure::EvictNeeded) {
                Look::Here(block) => return Ok(self.hold(block)),
                Look::Loading(loading) => loading,
                Look::NoRoom => {
                    room.await;
                    continue;
                }
            };
            // Dropped after `loading`, also when the wait is given up: whoever waits for room looks again then.
            let mut held = Held { block: None, shared: Arc::clone(&self.shared) };
            let mut loading = loading;
            match loading.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Ok(block))) => {
                    held.block = Some(Arc::clone(block));
                    return Ok(held);
                }
                Ok(Some(Err(error))) => return Err(error.clone()),
                // The load's task was stopped with the runtime.
                Ok(None) | Err(_) => {
                    return Err(LoadError::new(chunk, fault::STORE_FAILED, "the read was stopped"));
                }
            }
        }
    }

    /// As [`Cache::get`], but compares the chunk's own CRC, and reads it anew when the copy is bad.
    ///
    /// # Errors
    /// Also when the store's bytes are not those of the manifest.
    pub async fn get_verified(&self, chunk: ChunkId, until: u64) -> Result<Held, LoadError> {
        let expected = self.shared.manifest.chunk(chunk).crc32c;
        let first = self.get(chunk, until).await?;
        if crc32c(&first) == expected {
            return Ok(first);
        }
        self.shared.forget(chunk, &first);
        drop(first);
        let second = self.get(chunk, until).await?;
        if crc32c(&second) == expected {
            return Ok(second);
        }
        self.shared.forget(chunk, &second);
        Err(LoadError::new(chunk, fault::CRC_MISMATCH, "its bytes are not those that were indexed"))
    }

    /// Starts to read a chunk that will be needed, if there is room that nothing needs; in a cache that keeps nothing for the
    /// next epoch, also not more than a window and the store's latency take. Says whether it was started (or the chunk is here).
    pub fn prefetch(&self, chunk: ChunkId, until: u64) -> bool {
        !matches!(self.shared.look(chunk, until, Pressure::EvictReleased), Look::NoRoom)
    }

    /// All consumers have consumed every step before `floor`.
    pub fn advance(&self, floor: u64) {
        let mut state = self.shared.lock();
        state.floor = state.floor.max(floor);
        let floor = state.floor;
        state.evicted.retain(|_, until| *until >= floor);
        state.give_up(|entry| entry.until < floor);
    }

    /// A new membership of so many owners starts at this step, which may be an earlier one.
    pub fn restart(&self, floor: u64, owners: usize) {
        let mut state = self.shared.lock();
        state.floor = floor;
        state.owners = u64::try_from(owners).unwrap_or(u64::MAX);
        // Whatever is read from here on, another membership has not read before.
        state.evicted.clear();
        state.give_up(|_| true);
    }

    /// Bytes of the chunks here and on their way.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.lock().bytes
    }

    fn hold(&self, block: Arc<Block>) -> Held {
        Held { block: Some(block), shared: Arc::clone(&self.shared) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pressure {
    /// May drop what someone will still need.
    EvictNeeded,
    /// Only what nobody needs in this epoch.
    EvictReleased,
}

enum Look {
    Here(Arc<Block>),
    Loading(watch::Receiver<Option<Result<Arc<Block>, LoadError>>>),
    NoRoom,
}

impl Shared {
    /// Finds the chunk, or starts to load it if room can be made.
    fn look(self: &Arc<Self>, chunk: ChunkId, until: u64, pressure: Pressure) -> Look {
        let mut state = self.lock();
        state.uses += 1;
        let uses = state.uses;
        let is_asked = pressure == Pressure::EvictNeeded;
        if let Some(entry) = state.entries.get_mut(&chunk) {
            entry.until = entry.until.max(until);
            entry.used = uses;
            let look = match &entry.content {
                Content::Loaded(block) => Look::Here(Arc::clone(block)),
                Content::Loading(loading) => Look::Loading(loading.clone()),
            };
            if is_asked && entry.asked.is_none() {
                entry.asked = Some(Instant::now());
                state.unasked -= 1;
            }
            self.counters.cache_hits.add(1_u64);
            return look;
        }
        let len = u64::from(self.manifest.chunk(chunk).len);
        let room = self.room(&state);
        let is_far = room < self.budget && state.unasked >= self.window.max(ahead(self.reads.at_once()));
        if !is_asked && is_far {
            return Look::NoRoom;
        }
        while state.bytes + len > room && self.evict(&mut state, Pressure::EvictReleased) {}
        while state.bytes + len > self.budget {
            if !self.evict(&mut state, pressure) {
                return Look::NoRoom;
            }
        }
        let (loaded, loading) = watch::channel(None);
        let content = Content::Loading(loading.clone());
        state.entries.insert(chunk, Entry { content, until, used: uses, asked: is_asked.then(Instant::now) });
        state.bytes += len;
        state.unasked += usize::from(!is_asked);
        self.note_reread(&mut state, chunk);
        drop(state);
        tokio::spawn(load(Arc::clone(self), chunk, loaded));
        Look::Loading(loading)
    }

    /// Bytes beyond which released chunks are dropped: the whole budget where they are worth it, else two windows and what is
    /// read ahead besides.
    fn room(&self, state: &State) -> u64 {
        if self.budget.saturating_mul(KEPT_PART) >= self.stored / state.owners.max(1) {
            return self.budget;
        }
        let chunks = self.window.saturating_mul(2).saturating_add(ahead(self.reads.at_once()));
        self.largest.saturating_mul(u64::try_from(chunks).unwrap_or(u64::MAX)).min(self.budget)
    }

    /// Drops one chunk that is not in use; says whether there was one.
    fn evict(&self, state: &mut State, pressure: Pressure) -> bool {
        let floor = state.floor;
        let victim = state
            .entries
            .iter()
            .filter(|(_, entry)| match &entry.content {
                Content::Loaded(block) => Arc::strong_count(block) == 1,
                Content::Loading(_) => false,
            })
            .map(|(chunk, entry)| {
                let is_needed = entry.until >= floor;
                let rank = if is_needed { entry.used } else { u64::MAX - entry.used };
                (is_needed, rank, *chunk)
            })
            .min();
        match victim {
            Some((needed, _, chunk)) if !needed || pressure == Pressure::EvictNeeded => {
                let until = state.entries.get(&chunk).map_or(0, |entry| entry.until);
                state.remove(chunk, &self.manifest);
                if needed {
                    self.counters.cache_evictions.add(1_u64);
                    state.evicted.insert(chunk, until);
                }
                true
            }
            _ => false,
        }
    }

    /// Counts a chunk that was here, was needed, and had to go: reading it again is what the cache is there to avoid.
    fn note_reread(&self, state: &mut State, chunk: ChunkId) {
        if state.evicted.remove(&chunk).is_none() {
            return;
        }
        self.counters.cache_rereads.add(1_u64);
        if !std::mem::replace(&mut state.warned, true) {
            tracing::warn!(
                reason = fault::CACHE_SMALL,
                cache_bytes = self.budget,
                chunk = chunk.0,
                "chunks are read more than once: the cache holds less than this worker's share of a shuffle window \
                 (use a smaller window, or more workers)"
            );
        }
    }

    /// Drops this copy of a chunk, unless another has taken its place already.
    fn forget(&self, chunk: ChunkId, copy: &Held) {
        let mut state = self.lock();
        if let MapEntry::Occupied(entry) = state.entries.entry(chunk)
            && let (Content::Loaded(block), Some(copy)) = (&entry.get().content, &copy.block)
            && Arc::ptr_eq(block, copy)
        {
            state.remove(chunk, &self.manifest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What was read ahead for somebody who will not ask any more counts no longer.
    fn give_up(&mut self, is_over: impl Fn(&Entry) -> bool) {
        for entry in self.entries.values_mut().filter(|entry| entry.asked.is_none() && is_over(entry)) {
            entry.asked = Some(Instant::now());
            self.unasked -= 1;
        }
    }

    fn remove(&mut self, chunk: ChunkId, manifest: &Manifest) {
        if let Some(entry) = self.entries.remove(&chunk) {
            self.bytes -= u64::from(manifest.chunk(chunk).len);
            self.unasked -= usize::from(entry.asked.is_none());
        }
    }
}

/// Reads a chunk and tells all who wait for it. Runs by itself: whoever asked may stop waiting.
async fn load(
    shared: Arc<Shared>,
    chunk: ChunkId,
    loaded: watch::Sender<Option<Result<Arc<Block>, LoadError>>>,
) {
    let result = read(&shared, chunk).await.map(Arc::new);
    // Held before anybody is told: what is being kept is in use.
    let kept = match (&shared.tier, &result) {
        (Some(tier), Ok(block)) if shared.keeps => {
            Some((tier.clone(), Held { block: Some(Arc::clone(block)), shared: Arc::clone(&shared) }))
        }
        _ => None,
    };
    let mut state = shared.lock();
    match (&result, state.entries.get_mut(&chunk)) {
        (Ok(block), Some(entry)) => entry.content = Content::Loaded(Arc::clone(block)),
        (Err(_), _) => state.remove(chunk, &shared.manifest),
        (Ok(_), None) => {}
    }
    drop(state);
    loaded.send_replace(Some(result));
    // First let go, then tell: whoever waits looks at the count.
    drop(loaded);
    shared.room.notify_waiters();
    if let Some((tier, bytes)) = kept {
        tier.keep(chunk, bytes);
    }
}

async fn read(shared: &Shared, chunk: ChunkId) -> Result<Block, LoadError> {
    let permit = shared.reads.begin().await;
    let place = shared.manifest.chunk(chunk);
    let name = &shared.manifest.shard(place.shard).name;
    let mut block = shared.pool.take(usize::try_from(place.len).unwrap_or(0));
    if let Some(tier) = &shared.tier {
        block = match tier.read(chunk, block).await {
            Ok(block) => {
                shared.counters.tier_bytes.add(u64::from(place.len));
                return Ok(block);
            }
            Err(block) => block,
        };
    }
    shared.counters.store_reads.add(1_u64);
    let begun = Instant::now();
    let (block, result) = shared.store.read(name, place.offset, block).await;
    let asked = shared.lock().entries.get(&chunk).and_then(|entry| entry.asked);
    shared.reads.end(permit, place.len.into(), begun, asked);
    match result {
        Ok(()) => {
            shared.counters.store_bytes.add(u64::from(place.len));
            Ok(block)
        }
        Err(error) => {
            let reason = match error.code() {
                "not_found" => fault::NOT_FOUND,
                "short_read" => fault::SHORT_READ,
                _ => fault::STORE_FAILED,
            };
            let source = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            Err(LoadError::new(chunk, reason, &format!("{error}{}", source.unwrap_or_default())))
        }
    }
}

impl LoadError {
    fn new(chunk: ChunkId, reason: &'static str, message: &str) -> Self {
        Self { chunk: chunk.0, reason, message: message.to_owned() }
    }
}

impl Held {
    /// The memory that the bytes lie in; while this exists nothing else is read into it.
    #[must_use]
    pub fn block(&self) -> Option<&Block> {
        self.block.as_deref()
    }

    /// The bytes as a handle that can be cut and sent without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl std::ops::Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.block.as_deref().map_or(&[], |block| block)
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // First let go, then tell: whoever waits looks at the count.
        drop(self.block.take());
        self.shared.room.notify_waiters();
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("bytes", &self.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("budget", &self.shared.budget).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
