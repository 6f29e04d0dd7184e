//! Reading ahead for consumers of other planes: a server has none of its own whose steps it could follow.
//!
//! The order of samples is known to every plane, and the consumers tell their positions. So a server goes through the steps in
//! front of the slowest consumer, in the order of need, and reads the chunks that it owns as far as its cache has room that
//! nothing needs. Without this every chunk's first batch would wait for the store.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::timeout;

use super::{Plane, PlaneError};
use crate::dataset::ChunkId;
use crate::loader::fill::Source;
use crate::loader::plan::{Plan, StepPlace};
use crate::order::{Consumer, EpochOrder, Order};
use crate::select::owner;

/// Steps in front of the slowest consumer that are looked at, at the most: as many as a consumer plans for itself. What is
/// read is bounded by the cache.
const AHEAD_STEPS_MAX: u64 = 64;
/// How long a read that found no room waits for some, when nothing else happens.
const ROOM_RETRY: Duration = Duration::from_millis(20);
/// The whole of every batch.
const ALL: Consumer = Consumer { index: 0, of: std::num::NonZeroU32::MIN };

impl Plane {
    /// Reads ahead for the consumers of the membership of `fence`, which go from `start` to `end` (steps over all epochs), for
    /// as long as that lasts.
    ///
    /// # Errors
    /// When the membership is another.
    #[expect(clippy::unused_async, reason = "needs the runtime that an async caller has")]
    pub async fn read_ahead(&self, fence: u64, start: u64, end: u64) -> Result<(), PlaneError> {
        let member = self.member.borrow().clone();
        let current = member.as_ref().map(|member| member.fence);
        let fenced = PlaneError::Fenced { asked: fence, current };
        let Some(member) = member.filter(|member| member.fence == fence) else { return Err(fenced) };
        let ahead = Ahead::new(self.source(&member), self.order.clone(), start, end);
        member.spawn(ahead.run()).map(drop).ok_or(fenced)
    }
}

struct Ahead {
    source: Source,
    order: Order,
    start: u64,
    end: u64,
    /// The first step that was not looked at.
    next: u64,
    /// Chunks of the steps before it that have found no room yet, with the last step that needs each.
    reads: VecDeque<(ChunkId, u64)>,
    /// The peers by which owners were told.
    roster: u64,
    /// Chunks that were looked at, and until when they are needed: each is read once.
    seen: BTreeMap<ChunkId, u64>,
    epoch: Option<(u64, EpochOrder)>,
}

impl Ahead {
    fn new(source: Source, order: Order, start: u64, end: u64) -> Self {
        let (reads, seen) = (VecDeque::new(), BTreeMap::new());
        let roster = source.member.roster().number();
        Self { source, order, start, end, next: start, reads, roster, seen, epoch: None }
    }

    async fn run(mut self) {
        loop {
            let floor = self.source.member.floor().unwrap_or_default().max(self.start);
            if floor >= self.end {
                return;
            }
            self.forget_before(floor);
            self.look_again(floor);
            self.pump(floor);
            if self.reads.is_empty() {
                self.source.member.moved().await;
            } else {
                // Room comes back with what is asked for, of which nobody tells.
                drop(timeout(ROOM_RETRY, self.source.member.moved()).await);
            }
        }
    }

    /// What is needed no more is not read.
    fn forget_before(&mut self, floor: u64) {
        self.next = self.next.max(floor);
        self.reads.retain(|(_, until)| *until >= floor);
        self.seen.retain(|_, until| *until >= floor);
    }

    /// Among other peers other chunks are this server's.
    fn look_again(&mut self, floor: u64) {
        let roster = self.source.member.roster().number();
        if std::mem::replace(&mut self.roster, roster) != roster {
            self.next = floor;
            self.reads.clear();
            self.seen.clear();
        }
    }

    /// Begins as many reads as there is room for.
    fn pump(&mut self, floor: u64) {
        loop {
            while let Some((chunk, until)) = self.reads.front().copied() {
                // One that is needed later must not take the room of one that is needed before.
                if !self.source.cache.prefetch(chunk, until) {
                    return;
                }
                self.reads.pop_front();
            }
            if self.next >= self.end.min(floor.saturating_add(AHEAD_STEPS_MAX)) {
                return;
            }
            self.look_at_next();
        }
    }

    fn look_at_next(&mut self) {
        let place = StepPlace::of(self.next, self.order.steps_per_epoch());
        if self.epoch.as_ref().is_none_or(|(epoch, _)| *epoch != place.epoch) {
            self.epoch = Some((place.epoch, self.order.epoch(place.epoch)));
        }
        self.next += 1;
        let Some((_, order)) = &self.epoch else { return };
        let plan = Plan::new(&self.source.manifest, order, place, ALL);
        let member = &self.source.member;
        let roster = member.roster();
        for part in plan.parts() {
            let owner = owner(part.chunk, &roster.candidates, |_| true);
            let is_seen = self.seen.get(&part.chunk).is_some_and(|until| *until >= part.until);
            if owner.is_some_and(|owner| owner.id == member.me) && !is_seen {
                self.seen.insert(part.chunk, part.until);
                self.reads.push_back((part.chunk, part.until));
            }
        }
    }
}
