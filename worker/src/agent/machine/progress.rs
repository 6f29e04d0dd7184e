//! What the ranks did and the launcher does not know yet (pure).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{FeedNews, Now};
use crate::rendezvous::message::{ConsumedStep, RankProgress};
use crate::units::{Rank, Step};

/// Steps in one heartbeat at the most: about 130 bytes each, so half a megabyte.
pub(super) const HEARTBEAT_STEPS_MAX: usize = 4_096;
/// Steps that may wait for the next regular heartbeat; more of them send one early.
pub(super) const WAITING_STEPS_MAX: usize = 256;

/// Steps that are kept for a launcher that replaces ours, beyond the last lease: about 130 bytes each. With more than that
/// between two commits, a launcher that is replaced costs a restart.
const KEPT_STEPS_MAX: usize = 65_536;

/// All ranks of one generation.
#[derive(Debug, Default)]
pub(super) struct Progress {
    ranks: BTreeMap<Rank, RankWatch>,
    /// What was sent within the last lease: nobody acknowledges a heartbeat, but a connection on which one was
    /// lost does not live that long. Where launchers are replaced, also what was sent since the last commit but one: the
    /// next launcher knows the last that was written down, and needs all that came after it.
    sent: VecDeque<(Now, Vec<RankProgress>)>,
    keeps_uncommitted: bool,
}

#[derive(Debug, Default)]
struct RankWatch {
    consumed: Vec<ConsumedStep>,
    committed: Option<Step>,
    /// The last commit but one, and the last.
    commits: (Option<Step>, Option<Step>),
    reported: BTreeMap<String, f64>,
    end_is_news: bool,
    attached: bool,
    ended: bool,
    /// When it started, or its last step was acknowledged; none while it is not watched.
    moved: Option<Now>,
    /// The last step that was acknowledged.
    last: Option<Step>,
}

/// A rank that makes no steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) struct Stuck {
    pub(in crate::agent) rank: Rank,
    /// The last step that it acknowledged; none before its first.
    pub(in crate::agent) step: Option<Step>,
    pub(in crate::agent) quiet: Duration,
}

impl Progress {
    /// Of ranks whose launcher may be replaced while they run.
    pub(super) fn for_later_launchers(keeps_uncommitted: bool) -> Self {
        Self { keeps_uncommitted, ..Self::default() }
    }

    /// Takes in what a feed tells.
    pub(super) fn note(&mut self, rank: Rank, news: FeedNews, now: Now) {
        let watch = self.ranks.entry(rank).or_default();
        match news {
            FeedNews::Attached => watch.attached = true,
            FeedNews::Detached => watch.attached = false,
            FeedNews::Consumed(step) => {
                (watch.moved, watch.last) = (Some(now), Some(step.step));
                watch.consumed.push(step);
            }
            FeedNews::Committed(step) => {
                watch.committed = Some(step);
                watch.commits = (watch.commits.1, Some(step));
            }
            FeedNews::Reported(values) => watch.reported.extend(values),
            FeedNews::Ended => (watch.ended, watch.end_is_news) = (true, true),
        }
    }

    /// From now on every one of these ranks is expected to make steps: its start-up counts as the first one's time.
    pub(super) fn watch(&mut self, ranks: &[Rank], now: Now) {
        for rank in ranks {
            self.ranks.entry(*rank).or_default().moved.get_or_insert(now);
        }
    }

    /// Whether the rank's trainer still holds its feed, or has something in it that we have not seen.
    pub(super) fn is_attached(&self, rank: Rank) -> bool {
        self.ranks.get(&rank).is_some_and(|watch| watch.attached)
    }

    /// Whether a heartbeat should not wait for its time.
    pub(super) fn is_urgent(&self) -> bool {
        let waiting: usize = self.ranks.values().map(|watch| watch.consumed.len()).sum();
        waiting >= WAITING_STEPS_MAX || self.ranks.values().any(|watch| watch.committed.is_some())
    }

    /// Everything new, as the contents of one or more heartbeats, and remembers it as sent. Never empty: without
    /// news it is one empty heartbeat.
    pub(super) fn take(&mut self, now: Now, lease: Duration) -> Vec<Vec<RankProgress>> {
        let mut kept: usize = self.sent.iter().map(|(_, some)| steps(some)).sum();
        while let Some((at, some)) = self.sent.front()
            && *at + lease < now
            && (kept > KEPT_STEPS_MAX || !self.is_needed(some))
        {
            kept -= steps(some);
            self.sent.pop_front();
        }
        let mut heartbeats = vec![Vec::new()];
        let mut room = HEARTBEAT_STEPS_MAX;
        for (rank, watch) in &mut self.ranks {
            for piece in watch.take(*rank) {
                if piece.consumed.len() > room {
                    heartbeats.push(Vec::new());
                    room = HEARTBEAT_STEPS_MAX;
                }
                room -= piece.consumed.len();
                heartbeats.last_mut().expect("it starts with one").push(piece);
            }
        }
        self.sent.extend(heartbeats.iter().filter(|some| !some.is_empty()).map(|some| (now, some.clone())));
        heartbeats
    }

    /// Whether a launcher that knows only the last commit but one would miss it.
    fn is_needed(&self, progress: &[RankProgress]) -> bool {
        self.keeps_uncommitted
            && progress.iter().any(|some| {
                let covered = self.ranks.get(&some.rank).and_then(|watch| watch.commits.0);
                some.consumed.iter().any(|step| covered.is_none_or(|covered| step.step >= covered))
            })
    }

    /// What may have been lost with the last connection, oldest first.
    pub(super) fn unconfirmed(&self) -> impl Iterator<Item = &Vec<RankProgress>> {
        self.sent.iter().map(|(_, progress)| progress)
    }

    /// Of the ranks that have made no step for `limit`, the one that is furthest behind: first those without any.
    pub(super) fn stuck(&self, limit: Duration, now: Now, lives: impl Fn(Rank) -> bool) -> Option<Stuck> {
        let watched = self.watched(lives).filter(|(_, at, _)| *at + limit <= now);
        let (rank, at, step) = watched.min_by_key(|(rank, at, step)| (*step, *at, *rank))?;
        Some(Stuck { rank, step, quiet: now.saturating_sub(at) })
    }

    /// When [`Self::stuck`] could next find somebody.
    pub(super) fn stuck_deadline(&self, limit: Duration, lives: impl Fn(Rank) -> bool) -> Option<Now> {
        self.watched(lives).map(|(_, at, _)| at + limit).min()
    }

    fn watched(&self, lives: impl Fn(Rank) -> bool) -> impl Iterator<Item = (Rank, Now, Option<Step>)> {
        self.ranks
            .iter()
            .filter(move |(rank, watch)| !watch.ended && lives(**rank))
            .filter_map(|(rank, watch)| watch.moved.map(|at| (*rank, at, watch.last)))
    }
}

fn steps(progress: &[RankProgress]) -> usize {
    progress.iter().map(|some| some.consumed.len()).sum()
}

impl RankWatch {
    /// The news in pieces that fit a heartbeat; what follows from the steps is in the last.
    fn take(&mut self, rank: Rank) -> Vec<RankProgress> {
        let piece = |consumed| RankProgress {
            rank,
            consumed,
            committed: None,
            reported: BTreeMap::new(),
            ended: false,
        };
        let mut pieces: Vec<RankProgress> = Vec::new();
        let mut consumed = std::mem::take(&mut self.consumed);
        while consumed.len() > HEARTBEAT_STEPS_MAX {
            let rest = consumed.split_off(HEARTBEAT_STEPS_MAX);
            pieces.push(piece(std::mem::replace(&mut consumed, rest)));
        }
        let last = RankProgress {
            committed: self.committed.take(),
            reported: std::mem::take(&mut self.reported),
            ended: std::mem::take(&mut self.end_is_news),
            ..piece(consumed)
        };
        let says_something = !last.consumed.is_empty() || last.committed.is_some() || last.ended;
        if says_something || !last.reported.is_empty() {
            pieces.push(last);
        }
        pieces
    }
}
