//! How many reads from the store are under way at once (pure).
//!
//! As many as it takes to have each chunk here before it is asked for, which is rate × latency (Little's law); and no more,
//! since each costs a chunk's memory and, beyond what a store can deliver, only time. Neither is known before, so it is
//! looked at in rounds of reads:
//!
//! ```text
//!            some were waited for               it became faster, or none was waited for
//!   steady ─────────────────► trying twice as many ─────────────────► steady, with these
//!     ▲                              │ no faster: the store is at its limit
//!     └──── after a pause ◄──────────┘ back to as many as before; the next trial is later each time
//!
//!   none was waited for in several rounds: down to twice rate × latency
//! ```

use std::time::Duration;

/// Reads under way at the start: they hide a latency of 5 ms at 6 GB/s with chunks of 4 MiB.
pub(super) const READS_START: usize = 8;
/// At the least: one that is being copied, one on its way, and as many again.
pub(super) const READS_MIN: usize = 4;
/// And at the most: 256 MiB of such chunks, 2.6 GB/s out of a store that answers after 100 ms.
pub const READS_MAX: usize = 64;

/// Reads of a round, if that is more than those under way.
const ROUND_READS: u32 = 16;
/// Waiting that is too much: this part of a round. (Waiting counts and not how many were waited for: where reads come in
/// bursts, only the first of each is.)
const WAIT_PART: u32 = 16;
/// More reads have to make it faster by this part of what it was, or they are not worth their memory.
const GAIN_PART: u64 = 8;
/// Rounds without such waiting before there may be fewer.
const CALM_ROUNDS: u32 = 4;
/// Rounds between two trials that brought nothing: at first, and at the most.
const PAUSE_ROUNDS: (u32, u32) = (32, 512);
/// Reads beyond rate × latency: room for a latency that varies.
const MARGIN: u64 = 2;

/// A read that has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) bytes: u64,
    pub(super) took: Duration,
    /// For so long somebody had waited for it.
    pub(super) waited: Duration,
}

/// Another number of reads, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) reads: usize,
    pub(super) reason: &'static str,
}

/// How many reads may be under way now.
#[derive(Clone, Debug)]
pub(super) struct Depth {
    reads: usize,
    round: Round,
    /// Reads of the last number that are still to end: what they say is not of this one.
    settling: usize,
    trial: Option<Trial>,
    calm: u32,
    /// Rounds until the next trial, and how many they were last time.
    pause: u32,
    last_pause: u32,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    before: usize,
    rate: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Round {
    begun: Option<Duration>,
    reads: u32,
    waited: Duration,
    bytes: u64,
    took: Duration,
}

impl Depth {
    pub(super) fn new() -> Self {
        Self {
            reads: READS_START,
            round: Round::default(),
            settling: 0,
            trial: None,
            calm: 0,
            pause: 0,
            last_pause: 0,
        }
    }

    /// Reads that may be under way.
    pub(super) fn reads(&self) -> usize {
        self.reads
    }

    /// Takes in a read that has ended at `now`, counted from any fixed moment.
    pub(super) fn done(&mut self, done: Done, now: Duration) -> Option<Change> {
        if self.settling > 0 {
            self.settling -= 1;
            self.round = Round { begun: Some(now), ..Round::default() };
            return None;
        }
        let round = &mut self.round;
        let begun = *round.begun.get_or_insert_with(|| now.saturating_sub(done.took));
        round.reads += 1;
        round.waited += done.waited;
        round.bytes += done.bytes;
        round.took += done.took;
        if round.reads < ROUND_READS.max(u32::try_from(self.reads).unwrap_or(u32::MAX)) {
            return None;
        }
        let round = std::mem::replace(round, Round { begun: Some(now), ..Round::default() });
        let change = self.judge(&round, now.saturating_sub(begun))?;
        self.settling = self.reads;
        self.reads = change.reads;
        Some(change)
    }

    fn judge(&mut self, round: &Round, lasted: Duration) -> Option<Change> {
        let rate = per_second(round.bytes, lasted);
        let is_late = round.waited * WAIT_PART > lasted;
        if let Some(trial) = self.trial.take()
            && is_late
            && rate < trial.rate + trial.rate / GAIN_PART
        {
            let (first, most) = PAUSE_ROUNDS;
            self.last_pause = (self.last_pause * 2).clamp(first, most);
            self.pause = self.last_pause;
            return Some(Change { reads: trial.before, reason: "more reads at once are no faster" });
        }
        if is_late {
            self.calm = 0;
            self.pause = self.pause.saturating_sub(1);
            if self.pause > 0 || self.reads == READS_MAX {
                return None;
            }
            self.trial = Some(Trial { before: self.reads, rate });
            let reads = (2 * self.reads).min(READS_MAX);
            return Some(Change { reads, reason: "chunks came after they were asked for" });
        }
        self.calm += 1;
        (self.pause, self.last_pause) = (0, 0);
        if self.calm < CALM_ROUNDS {
            return None;
        }
        self.calm = 0;
        let reads = enough(rate, round).max(READS_MIN);
        (reads < self.reads).then_some(Change { reads, reason: "fewer reads at once are enough" })
    }
}

/// Reads that deliver `rate` bytes a second with the latency of that round, and some more.
fn enough(rate: u64, round: &Round) -> usize {
    // rate × (took / reads) / (bytes / reads), in which the number of reads drops out.
    let under_way =
        u128::from(rate) * round.took.as_nanos() / (u128::from(round.bytes.max(1)) * 1_000_000_000);
    usize::try_from(under_way).unwrap_or(READS_MAX).saturating_add(1).saturating_mul(index(MARGIN))
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn per_second(bytes: u64, lasted: Duration) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / lasted.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
