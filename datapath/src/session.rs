//! One batch's transfer (pure): which chunk is asked for where, when again, and when to give up.
//!
//! ```text
//!          asks()                     done()
//!   Due ----------> Asked(owner) ----------------> Done
//!    ^                 |
//!    |                 | failed(Gone | Early | Corrupt | Store), bounds not reached: later, maybe elsewhere
//!    +-----------------+
//!                      | failed(Fenced): the transfer is over        -> Verdict::Fenced
//!                      | failed(Stranger | Lane), or (..) once too often -> Verdict::GaveUp
//! ```
//! The state lives here and in no transport, so failing over is asking again elsewhere. It knows no clock: `now`
//! counts from any fixed moment.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::dataset::ChunkId;
use crate::fault;
use crate::select::{Candidate, Health, PeerId, owner};
use crate::transport::rdma::reason::Reason;

/// How often one chunk is asked for, for whatever reasons, before the transfer gives up: with the back-off below
/// about 20 s, after which the fence has moved if a peer is really gone.
pub const ATTEMPTS_MAX: u32 = 16;
/// Corrupt answers for one chunk: the first may be a bad copy in an owner's memory and is asked for anew.
pub const CORRUPT_MAX: u32 = 2;
/// Failed reads of one chunk from the store, each by another owner where there is one.
pub const STORE_FAILURES_MAX: u32 = 3;
/// Answers that an owner is not there yet, for one chunk: with the back-off about 5 s. Then the next owner is asked, since one
/// that never enters must not use all attempts up.
pub const EARLY_MAX: u32 = 8;
/// Wait before the second attempt; doubles with each further one.
pub const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// Wait between two attempts at the most.
pub const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Why an answer did not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The owner cannot be reached, went away, or was silent for too long.
    Gone,
    /// The owner has not entered this membership yet.
    Early {
        /// When it suggests to ask again.
        retry_after: Duration,
    },
    /// The owner is in a newer membership.
    Fenced,
    /// The owner refuses this plane for good: it holds other data, runs another release, or does not know it.
    Stranger,
    /// The lane to the owner failed as no lane may.
    Lane {
        /// How.
        reason: Reason,
    },
    /// The bytes were not those of the manifest.
    Corrupt {
        /// The sample, if it was one.
        sample: Option<u64>,
    },
    /// The owner could not read the store.
    Store {
        /// One of the reasons of [`crate::fault`].
        reason: &'static str,
        /// What the store said.
        message: String,
    },
}

/// Chunks to be asked for together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Who is asked; may be this plane itself.
    pub owner: PeerId,
    /// Whether the owner's copies are under suspicion.
    pub refresh: bool,
    /// Indices of the parts, ascending.
    pub parts: Vec<usize>,
}

/// How a transfer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Something is still to come.
    Pending,
    /// All is there.
    Done,
    /// The membership is over.
    Fenced,
    /// One part cannot be had.
    GaveUp {
        /// Which.
        part: usize,
        /// What happened last.
        failure: Failure,
    },
}

/// A transfer of several chunks' ranges into one slot.
#[derive(Clone, Debug)]
pub struct Transfer {
    parts: Vec<Part>,
    open: usize,
    over: Option<Verdict>,
}

#[derive(Clone, Debug)]
struct Part {
    chunk: ChunkId,
    state: State,
    attempts: u32,
    corrupt: u32,
    store_failures: u32,
    early: u32,
    /// Owners whose store failed for this chunk, or that were early too often.
    avoid: Vec<PeerId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Due(Duration),
    Asked(PeerId),
    Done,
}

impl Transfer {
    /// A transfer of these parts, all due at once.
    pub fn new(chunks: impl IntoIterator<Item = ChunkId>) -> Self {
        let parts: Vec<_> = chunks
            .into_iter()
            .map(|chunk| Part {
                chunk,
                state: State::Due(Duration::ZERO),
                attempts: 0,
                corrupt: 0,
                store_failures: 0,
                early: 0,
                avoid: Vec::new(),
            })
            .collect();
        Self { open: parts.len(), parts, over: None }
    }

    /// What is to be asked now. `me` is always usable: any worker can read the store.
    pub fn asks(&mut self, me: PeerId, peers: &[Candidate], health: &Health, now: Duration) -> Vec<Ask> {
        let mut asks = BTreeMap::<(PeerId, bool), Vec<usize>>::new();
        if self.over.is_some() {
            return Vec::new();
        }
        for (index, part) in self.parts.iter_mut().enumerate() {
            let State::Due(at) = part.state else { continue };
            if at > now {
                continue;
            }
            let usable = |peer| (peer == me || health.usable(peer)) && !part.avoid.contains(&peer);
            let owner = owner(part.chunk, peers, usable).map_or(me, |owner| owner.id);
            part.state = State::Asked(owner);
            part.attempts += 1;
            asks.entry((owner, part.corrupt > 0)).or_default().push(index);
        }
        asks.into_iter().map(|((owner, refresh), parts)| Ask { owner, refresh, parts }).collect()
    }

    /// A part is in its place and verified.
    pub fn done(&mut self, part: usize) {
        debug_assert!(matches!(self.parts[part].state, State::Asked(_)), "only what was asked for can come");
        if self.parts[part].state != State::Done {
            self.parts[part].state = State::Done;
            self.open -= 1;
        }
    }

    /// A part did not come.
    pub fn failed(&mut self, part: usize, failure: Failure, health: &mut Health, now: Duration) {
        let state = &mut self.parts[part];
        let State::Asked(owner) = state.state else {
            debug_assert!(false, "only what was asked for can fail");
            return;
        };
        let mut wait = BACKOFF_MIN.saturating_mul(1 << (state.attempts - 1).min(16)).min(BACKOFF_MAX);
        let mut last = state.attempts >= ATTEMPTS_MAX;
        match &failure {
            Failure::Gone => {
                health.failed(owner, now);
                if state.attempts == 1 {
                    // The next owner knows nothing of the trouble: no reason to wait.
                    wait = Duration::ZERO;
                }
            }
            Failure::Early { retry_after } => {
                wait = wait.max((*retry_after).min(BACKOFF_MAX));
                state.early += 1;
                if state.early.is_multiple_of(EARLY_MAX) {
                    state.avoid.push(owner);
                }
            }
            Failure::Fenced => {
                self.over.get_or_insert(Verdict::Fenced);
                return;
            }
            Failure::Stranger | Failure::Lane { .. } => last = true,
            Failure::Corrupt { .. } => {
                state.corrupt += 1;
                last |= state.corrupt >= CORRUPT_MAX;
                wait = Duration::ZERO;
            }
            Failure::Store { .. } => {
                state.store_failures += 1;
                last |= state.store_failures >= STORE_FAILURES_MAX;
                state.avoid.push(owner);
            }
        }
        state.state = State::Due(now + wait);
        if last {
            self.over.get_or_insert(Verdict::GaveUp { part, failure });
        }
    }

    /// Who was asked for a part that is under way.
    #[must_use]
    pub fn owner(&self, part: usize) -> Option<PeerId> {
        match self.parts[part].state {
            State::Asked(owner) => Some(owner),
            State::Due(_) | State::Done => None,
        }
    }

    /// When something becomes due; none when nothing waits.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let due = |part: &Part| match part.state {
            State::Due(at) => Some(at),
            State::Asked(_) | State::Done => None,
        };
        self.parts.iter().filter_map(due).min()
    }

    /// How it stands.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match &self.over {
            Some(over) => over.clone(),
            None if self.open == 0 => Verdict::Done,
            None => Verdict::Pending,
        }
    }
}

impl Failure {
    /// The stable word for it, one of [`crate::fault`]'s.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Gone | Self::Early { .. } | Self::Fenced => fault::PEER_GONE,
            Self::Stranger => fault::PEER_REFUSED,
            Self::Lane { .. } => fault::LANE_BROKEN,
            Self::Corrupt { .. } => fault::CRC_MISMATCH,
            Self::Store { reason, .. } => reason,
        }
    }
}

#[cfg(test)]
mod tests;
