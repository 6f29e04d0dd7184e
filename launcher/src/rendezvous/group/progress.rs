//! What the ranks of one generation have acknowledged and committed (pure).
//!
//! A step counts when all ranks have acknowledged it; the committed step is the minimum over the ranks. A new
//! generation starts from the committed step, so whatever lies behind it is forgotten and comes again.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use datapath::order::OrderDigest;
use serde::{Deserialize, Serialize};
use worker::rendezvous::message::{ConsumedStep, RankProgress};
use worker::units::{Rank, Step};

/// Steps that are kept one by one until a commit covers them: about 16 MiB. Older ones are kept as one sum, and a
/// commit that falls inside that sum is not taken.
const UNCOMMITTED_STEPS_MAX: usize = 1 << 18;
/// Steps that some ranks have acknowledged and others not: how far ranks may drift apart. About 8 MiB.
const OPEN_STEPS_MAX: usize = 1 << 17;
/// Names of reported values per rank: what fits a summary.
const REPORTED_NAMES_MAX: usize = 64;

/// Sums over steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Steps that all ranks acknowledged.
    pub steps: u64,
    /// Their samples, without padding.
    pub samples: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The order digest over them.
    pub digest: OrderDigest,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.samples = self.samples.saturating_add(other.samples);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.digest.merge(other.digest);
    }
}

/// What lies below the committed step, and so never comes again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Sums over all of it.
    pub totals: Totals,
    /// The order digest of each epoch; empty without data.
    pub epochs: BTreeMap<u64, OrderDigest>,
}

impl Settled {
    fn add(&mut self, epoch: Option<u64>, sums: &Totals) {
        self.totals.add(sums);
        if let Some(epoch) = epoch {
            self.epochs.entry(epoch).or_default().merge(sums.digest);
        }
    }

    fn add_all(&mut self, other: &Self) {
        self.totals.add(&other.totals);
        for (epoch, digest) in &other.epochs {
            self.epochs.entry(*epoch).or_default().merge(*digest);
        }
    }
}

/// What ranks have consumed, whether or not it had to be done again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Samples, without padding.
    pub samples: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One rank's position, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankPosition {
    /// The next step that it has not acknowledged.
    pub step: Step,
    /// Steps that it saved.
    pub committed: Step,
}

/// A rank that ended well too early: others went on with steps of which its share was never consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EarlyLeaver {
    /// The rank.
    pub(super) rank: Rank,
    /// The next step that it had not acknowledged.
    pub(super) left_at: Step,
    /// The next step that the furthest rank has not acknowledged.
    pub(super) others_at: Step,
}

/// Where a generation begins.
#[derive(Clone, Debug, Default)]
pub(super) struct Start {
    /// The first step.
    pub(super) committed: Step,
    /// What lies before it.
    pub(super) settled: Settled,
    /// What was consumed so far.
    pub(super) work: Work,
}

/// One generation's progress.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    ranks: Vec<RankState>,
    steps_per_epoch: Option<NonZeroU64>,
    /// An earlier launcher heard the beginning of it.
    is_adopted: bool,
    committed: Step,
    /// Steps below `committed`, of all generations.
    settled: Settled,
    work: Work,
    /// Complete steps, `committed..sealed_until`, as one sum.
    sealed: Settled,
    sealed_until: Step,
    /// Complete steps from `sealed_until` on.
    complete: BTreeMap<Step, Totals>,
    open: BTreeMap<Step, (u32, Totals)>,
}

#[derive(Clone, Debug)]
struct RankState {
    next: Step,
    committed: Step,
    reported: BTreeMap<String, f64>,
    ended: bool,
}

impl Progress {
    /// Of `world_size` ranks that begin at `start`. Without `steps_per_epoch` there are no epochs.
    #[must_use]
    pub(super) fn new(world_size: u32, steps_per_epoch: Option<NonZeroU64>, start: Start) -> Self {
        let committed = start.committed;
        let rank = RankState { next: committed, committed, reported: BTreeMap::new(), ended: false };
        Self {
            ranks: (0..world_size).map(|_| rank.clone()).collect(),
            steps_per_epoch,
            is_adopted: false,
            committed,
            settled: start.settled,
            work: start.work,
            sealed: Settled::default(),
            sealed_until: committed,
            complete: BTreeMap::new(),
            open: BTreeMap::new(),
        }
    }

    /// The same, of a generation whose beginning another launcher heard.
    #[must_use]
    pub(super) fn adopted(world_size: u32, steps_per_epoch: Option<NonZeroU64>, start: Start) -> Self {
        Self { is_adopted: true, ..Self::new(world_size, steps_per_epoch, start) }
    }

    /// Takes in what a rank says. What was said before changes nothing.
    pub(super) fn take(&mut self, progress: &RankProgress) {
        let Ok(index) = usize::try_from(progress.rank.0) else { return };
        for step in &progress.consumed {
            self.consumed(index, step);
        }
        let Some(rank) = self.ranks.get_mut(index) else { return };
        rank.ended |= progress.ended;
        for (name, value) in &progress.reported {
            if rank.reported.len() < REPORTED_NAMES_MAX || rank.reported.contains_key(name) {
                rank.reported.insert(name.clone(), *value);
            }
        }
        if let Some(step) = progress.committed {
            rank.committed = rank.committed.max(step);
            self.advance();
        }
    }

    /// Steps done and durable on every rank.
    #[must_use]
    pub(super) fn committed(&self) -> Step {
        self.committed
    }

    /// Sums below the committed step.
    #[must_use]
    pub(super) fn settled(&self) -> &Settled {
        &self.settled
    }

    /// What was consumed so far, in all generations.
    #[must_use]
    pub(super) fn work(&self) -> Work {
        self.work
    }

    /// Where the next generation begins.
    #[must_use]
    pub(super) fn restart(&self) -> Start {
        Start { committed: self.committed, settled: self.settled.clone(), work: self.work }
    }

    /// Sums over everything that all ranks acknowledged, committed or not.
    #[must_use]
    pub(super) fn totals(&self) -> Settled {
        let mut totals = self.settled.clone();
        totals.add_all(&self.sealed);
        for (step, sums) in &self.complete {
            totals.add(self.epoch(*step), sums);
        }
        totals
    }

    /// Where a rank is.
    #[must_use]
    pub(super) fn position(&self, rank: Rank) -> Option<RankPosition> {
        let rank = self.ranks.get(usize::try_from(rank.0).ok()?)?;
        Some(RankPosition { step: rank.next, committed: rank.committed })
    }

    /// The next step that not every rank has acknowledged.
    #[must_use]
    pub(super) fn step(&self) -> Step {
        self.ranks.iter().map(|rank| rank.next).min().unwrap_or(self.committed)
    }

    /// The first of the ranks that have `exited` well whose share of a step that others made is lost. That all of them
    /// stop before the end of the data is their own choice; and the last step that a rank was given may go
    /// unacknowledged when it leaves, so one step of difference proves nothing.
    pub(super) fn early_leaver(&self, exited: impl IntoIterator<Item = Rank>) -> Option<EarlyLeaver> {
        let others_at = self.ranks.iter().map(|rank| rank.next).max()?;
        exited.into_iter().find_map(|rank| {
            let state = self.ranks.get(usize::try_from(rank.0).ok()?)?;
            let is_behind = others_at.0 > state.next.0.saturating_add(1);
            (is_behind && !state.ended).then_some(EarlyLeaver { rank, left_at: state.next, others_at })
        })
    }

    /// The values that the trainers reported; of a name that several ranks use, the lowest rank's.
    #[must_use]
    pub(super) fn reported(&self) -> BTreeMap<String, f64> {
        let mut values = BTreeMap::new();
        for rank in &self.ranks {
            for (name, value) in &rank.reported {
                values.entry(name.clone()).or_insert(*value);
            }
        }
        values
    }

    fn epoch(&self, step: Step) -> Option<u64> {
        Some(step.0 / self.steps_per_epoch?.get())
    }

    fn consumed(&mut self, index: usize, consumed: &ConsumedStep) {
        let world_size = self.ranks.len();
        let Some(rank) = self.ranks.get_mut(index) else { return };
        if consumed.step < rank.next {
            return;
        }
        if !self.open.contains_key(&consumed.step) && self.open.len() >= OPEN_STEPS_MAX {
            return;
        }
        rank.next = Step(consumed.step.0.saturating_add(1));
        self.work.samples = self.work.samples.saturating_add(consumed.samples);
        self.work.bytes = self.work.bytes.saturating_add(consumed.bytes);
        let (seen, sums) = self.open.entry(consumed.step).or_default();
        *seen += 1;
        sums.add(&Totals {
            steps: 0,
            samples: consumed.samples,
            bytes: consumed.bytes,
            digest: consumed.digest,
        });
        if usize::try_from(*seen).is_ok_and(|seen| seen == world_size) {
            let mut sums = *sums;
            sums.steps = 1;
            self.open.remove(&consumed.step);
            self.complete.insert(consumed.step, sums);
            self.seal_oldest();
        }
    }

    fn seal_oldest(&mut self) {
        while self.complete.len() > UNCOMMITTED_STEPS_MAX {
            let Some((step, sums)) = self.complete.pop_first() else { return };
            self.sealed.add(self.epoch(step), &sums);
            self.sealed_until = Step(step.0 + 1);
        }
    }

    /// Whether a step below is not known to be complete. A launcher that took over a generation may have missed some; a
    /// commit beyond them would settle a wrong sum.
    fn misses_below(&self, committed: Step) -> bool {
        let known = self.complete.range(..committed).count();
        let from = self.sealed_until.max(self.committed);
        let is_whole = u64::try_from(known).is_ok_and(|known| known == committed.0.saturating_sub(from.0));
        self.is_adopted && !is_whole
    }

    fn advance(&mut self) {
        let committed = self.ranks.iter().map(|rank| rank.committed).min().unwrap_or_default();
        if committed <= self.committed || committed < self.sealed_until || self.misses_below(committed) {
            return;
        }
        self.settled.add_all(&std::mem::take(&mut self.sealed));
        let later = self.complete.split_off(&committed);
        for (step, sums) in std::mem::replace(&mut self.complete, later) {
            self.settled.add(self.epoch(step), &sums);
        }
        self.committed = committed;
        self.sealed_until = committed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumed(step: u64, digest: u128) -> ConsumedStep {
        ConsumedStep { step: Step(step), samples: 2, bytes: 10, digest: OrderDigest(digest) }
    }

    fn says(rank: u32, steps: &[(u64, u128)], committed: Option<u64>) -> RankProgress {
        RankProgress {
            rank: Rank(rank),
            consumed: steps.iter().map(|&(step, digest)| consumed(step, digest)).collect(),
            committed: committed.map(Step),
            reported: BTreeMap::new(),
            ended: false,
        }
    }

    #[test]
    fn a_step_counts_when_all_ranks_have_acknowledged_it() {
        let mut progress = Progress::new(2, NonZeroU64::new(2), Start::default());
        progress.take(&says(0, &[(0, 1), (1, 2), (2, 4)], None));
        assert_eq!(progress.totals(), Settled::default());
        progress.take(&says(1, &[(0, 8), (1, 16)], None));
        let expected = Totals { steps: 2, samples: 8, bytes: 40, digest: OrderDigest(27) };
        assert_eq!(progress.totals().totals, expected);
        assert_eq!(progress.totals().epochs, BTreeMap::from([(0, OrderDigest(27))]));
        progress.take(&says(1, &[(0, 8), (1, 16)], None));
        assert_eq!(progress.totals().totals, expected, "said twice, counted once");
        assert_eq!(progress.step(), Step(2));
        assert_eq!(progress.position(Rank(0)).map(|rank| rank.step), Some(Step(3)));
    }

    #[test]
    fn the_committed_step_is_the_minimum_and_only_grows() {
        let mut progress = Progress::new(2, NonZeroU64::new(2), Start::default());
        progress.take(&says(0, &[(0, 1), (1, 2)], None));
        progress.take(&says(1, &[(0, 4), (1, 8)], None));
        progress.take(&says(0, &[], Some(1)));
        assert_eq!(progress.committed(), Step(0));
        progress.take(&says(1, &[], Some(2)));
        assert_eq!(progress.committed(), Step(1));
        assert_eq!(progress.settled().totals.digest, OrderDigest(5));
        progress.take(&says(1, &[], Some(0)));
        assert_eq!(progress.committed(), Step(1));
        let next = Progress::new(3, NonZeroU64::new(2), progress.restart());
        assert_eq!(next.totals().totals.digest, OrderDigest(5), "step 1 is forgotten: it comes again");
        assert_eq!(next.step(), Step(1));
        assert_eq!(next.work().samples, 8, "what was done is counted, also when it must be done again");
    }

    #[test]
    fn a_rank_that_left_early_is_found_by_what_others_did_without_it() {
        let mut progress = Progress::new(2, None, Start::default());
        progress.take(&says(0, &[(0, 1), (1, 1)], None));
        progress.take(&says(1, &[(0, 1)], None));
        assert_eq!(progress.early_leaver([Rank(1)]), None, "its last step may not be acknowledged");
        progress.take(&says(0, &[(2, 1)], None));
        let expected = EarlyLeaver { rank: Rank(1), left_at: Step(1), others_at: Step(3) };
        assert_eq!(progress.early_leaver([Rank(1)]), Some(expected));
        assert_eq!(progress.early_leaver([Rank(0)]), None, "it is behind nobody");
        assert_eq!(progress.early_leaver([]), None, "who has not left may follow");
        progress.take(&RankProgress { ended: true, ..says(1, &[], None) });
        assert_eq!(progress.early_leaver([Rank(1)]), None);
    }

    #[test]
    fn unknown_ranks_and_endless_steps_change_nothing() {
        let mut progress = Progress::new(1, None, Start::default());
        progress.take(&says(7, &[(0, 1)], Some(9)));
        assert_eq!(progress.committed(), Step(0));
        progress.take(&says(0, &[(u64::MAX, 1)], None));
        assert_eq!(progress.totals().totals.steps, 1);
    }
}
