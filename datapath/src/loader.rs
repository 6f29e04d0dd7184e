//! Keeps a ring full: order → plan → parts → lanes → slot, for as many steps ahead as there are free slots.
//!
//! Slots are the credit: nothing is asked for without one, so behind a trainer that stands still nothing grows. Chunks
//! are read ahead of that as far as the cache has room that nothing needs.

pub(crate) mod feed;
pub(crate) mod fill;
pub mod plan;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::dataset::ChunkId;
use crate::fault::DataFault;
use crate::order::{Consumer, EpochOrder, Order};
use crate::ring::{Ring, Slot};
use crate::select::owner;
use fill::{FillError, Source, fill};
use plan::{Plan, StepPlace};

/// Steps planned ahead of the one that is filled next, at the most: a plan is some tens of bytes a sample.
const PLANS_MAX: usize = 64;
/// Bytes of batches planned ahead, at the most; at least one step beyond the slots is.
const READ_AHEAD_BYTES: u64 = 256 << 20;

/// One consumer's batches, from some step on.
pub(crate) struct Loader {
    source: Source,
    order: Order,
    consumer: Consumer,
    ring: Ring,
    end: u64,
    /// The first step that has no plan yet, and the plans of the steps before it that are not being filled.
    next_plan: u64,
    plans: VecDeque<Arc<Plan>>,
    /// Chunks of those steps that this worker owns and has not begun to read.
    reads: VecDeque<Read>,
    epoch: Option<(u64, EpochOrder)>,
    fills: JoinSet<(Batch, Result<(), FillError>)>,
    ready: BTreeMap<u64, Batch>,
    fault: Option<(u64, DataFault)>,
    fenced: bool,
    /// Since when there has been no free slot.
    waiting: Option<Duration>,
}

/// A chunk that will be needed.
struct Read {
    step: u64,
    chunk: ChunkId,
    until: u64,
}

/// A slot and what is (or will be) in it.
pub(crate) struct Batch {
    pub(crate) slot: Slot,
    pub(crate) plan: Arc<Plan>,
}

impl Loader {
    pub(crate) fn new(
        source: Source,
        order: Order,
        consumer: Consumer,
        ring: Ring,
        start: u64,
        end: u64,
    ) -> Self {
        Self {
            source,
            order,
            consumer,
            ring,
            end,
            next_plan: start,
            plans: VecDeque::new(),
            reads: VecDeque::new(),
            epoch: None,
            fills: JoinSet::new(),
            ready: BTreeMap::new(),
            fault: None,
            fenced: false,
            waiting: None,
        }
    }

    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Starts to fill every free slot, and to read ahead.
    pub(crate) fn pump(&mut self) {
        if self.fault.is_some() || self.fenced {
            return;
        }
        loop {
            self.plan_ahead();
            self.read_ahead();
            if self.plans.is_empty() {
                return;
            }
            let Some(slot) = self.ring.try_take() else {
                self.waiting.get_or_insert_with(|| self.source.now());
                return;
            };
            if let Some(since) = self.waiting.take() {
                let waited = self.source.now().saturating_sub(since).as_nanos();
                self.source.counters.slot_wait_ns.add(waited);
            }
            if let Some(plan) = self.plans.pop_front() {
                let source = self.source.clone();
                self.fills.spawn(async move {
                    let mut batch = Batch { slot, plan };
                    let result = fill(&source, &batch.plan, &mut batch.slot).await;
                    (batch, result)
                });
            }
        }
    }

    /// Plans the next steps.
    fn plan_ahead(&mut self) {
        while self.next_plan < self.end {
            let planned: u64 = self.plans.iter().map(|plan| plan.slot_bytes()).sum();
            if self.plans.len() >= PLANS_MAX || (!self.plans.is_empty() && planned >= READ_AHEAD_BYTES) {
                return;
            }
            let place = StepPlace::of(self.next_plan, self.order.steps_per_epoch());
            if self.epoch.as_ref().is_none_or(|(epoch, _)| *epoch != place.epoch) {
                self.epoch = Some((place.epoch, self.order.epoch(place.epoch)));
            }
            let Some((_, order)) = &self.epoch else { return };
            let plan = Plan::new(&self.source.manifest, order, place, self.consumer);
            let member = &self.source.member;
            let roster = member.roster();
            let mine =
                |chunk| owner(chunk, &roster.candidates, |_| true).is_some_and(|owner| owner.id == member.me);
            let parts = plan.parts().iter().filter(|part| mine(part.chunk));
            self.reads.extend(parts.map(|part| Read {
                step: place.step,
                chunk: part.chunk,
                until: part.until,
            }));
            self.plans.push_back(Arc::new(plan));
            self.next_plan += 1;
        }
    }

    /// Reads ahead in the order of the steps, and stops at the first chunk that finds no room: one that is needed later must
    /// not take the room of one that is needed before, which would push it out again unused.
    fn read_ahead(&mut self) {
        let next_fill = self.plans.front().map_or(self.next_plan, |plan| plan.place().step);
        while let Some(read) = self.reads.front() {
            // What is being filled has asked for its chunks itself.
            if read.step >= next_fill && !self.source.cache.prefetch(read.chunk, read.until) {
                return;
            }
            self.reads.pop_front();
        }
    }

    /// Waits until one more fill has ended; pending while there is none. Returns a new fault.
    pub(crate) async fn advance(&mut self) -> Option<DataFault> {
        let Some(ended) = self.fills.join_next().await else { return std::future::pending().await };
        match ended {
            Ok((batch, Ok(()))) => {
                self.ready.insert(batch.plan.place().step, batch);
                None
            }
            Ok((batch, Err(FillError::Fault(fault)))) => {
                let step = batch.plan.place().step;
                if self.fault.as_ref().is_none_or(|(earlier, _)| step < *earlier) {
                    self.fault = Some((step, (*fault).clone()));
                }
                Some(*fault)
            }
            // Aborted ones, and those of a membership that is over: it will be ended from outside.
            Ok((_, Err(FillError::Fenced))) => {
                self.fenced = true;
                None
            }
            Err(_) => None,
        }
    }

    /// The batch of this step, if it is complete.
    pub(crate) fn take(&mut self, step: u64) -> Option<Batch> {
        self.source.counters.batches.add(u64::from(self.ready.contains_key(&step)));
        self.ready.remove(&step)
    }

    /// Why this step will never come.
    pub(crate) fn fault_at(&self, step: u64) -> Option<&DataFault> {
        self.fault.as_ref().filter(|(at, _)| *at == step).map(|(_, fault)| fault)
    }

    /// Forgets what is filled and being filled, and goes on at `step`.
    pub(crate) async fn seek(&mut self, step: u64) {
        self.fills.shutdown().await;
        self.ready.clear();
        self.plans.clear();
        self.reads.clear();
        self.next_plan = step;
        self.fault = None;
    }
}
