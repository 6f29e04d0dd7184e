//! When a lane over verbs that has failed is used again (pure): not before a rest, and a probe that went well. Rests grow, also for
//! one that fails again soon after its return.
//!
//! ```text
//! Usable --failed--> Resting --rest over--> Probing --succeeded--> Usable
//!                       ^                      |
//!                       +-------failed---------+   (twice the rest)
//! ```
//! Times count from any fixed moment.

use std::time::Duration;

use super::reason::{Class, Reason};

/// The first rest: longer than a link flaps, short enough that a healed one is soon used again.
pub const REST_MIN: Duration = Duration::from_secs(1);
/// Rests at the most: a healed lane is found again within half a minute.
pub const REST_MAX: Duration = Duration::from_secs(30);
/// A lane that fails again within this time of its return has not healed: its rests go on growing.
pub const PROOF: Duration = Duration::from_secs(10);
/// A probe that has not said how it ended by then is not waited for: some attempts to connect, and to read.
pub const PROBE_MAX: Duration = Duration::from_secs(10);

/// How a lane stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comeback {
    /// It may be used.
    Usable {
        /// Failures in a row before its return; 0 when it never failed.
        failures: u32,
        /// When it returned.
        since: Duration,
    },
    /// It may not be used yet.
    Resting {
        /// Until then.
        until: Duration,
        /// Failures in a row.
        failures: u32,
    },
    /// One probe finds out whether it is back.
    Probing {
        /// When the next may begin, should that one never say how it ended.
        until: Duration,
        /// Failures in a row.
        failures: u32,
    },
    /// What a wrong program has caused does not heal.
    Broken(Reason),
}

impl Default for Comeback {
    fn default() -> Self {
        Self::Usable { failures: 0, since: Duration::ZERO }
    }
}

/// Whether a request may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Use,
    /// Another lane must do.
    Other,
    /// Another lane must do, and a probe is due.
    Probe,
    /// It must not be hidden that this one is broken.
    Broken(Reason),
}

impl Comeback {
    /// Whether a request may use it now.
    #[must_use]
    pub fn admit(&self, now: Duration) -> Admission {
        match *self {
            Self::Usable { .. } => Admission::Use,
            Self::Broken(reason) => Admission::Broken(reason),
            Self::Resting { until, .. } | Self::Probing { until, .. } if now < until => Admission::Other,
            Self::Resting { .. } | Self::Probing { .. } => Admission::Probe,
        }
    }

    /// Whether whoever asks may begin a probe now: one does.
    pub fn probe(&mut self, now: Duration) -> bool {
        let is_due = self.admit(now) == Admission::Probe;
        if let (true, Self::Resting { failures, .. } | Self::Probing { failures, .. }) = (is_due, *self) {
            *self = Self::Probing { until: now + PROBE_MAX, failures };
        }
        is_due
    }

    /// A probe has ended: well, badly, or without finding anything out. Says whether the lane may be used again by that.
    pub fn probed(&mut self, result: Option<bool>, now: Duration) -> bool {
        let Self::Probing { failures, .. } = *self else { return false };
        *self = match result {
            Some(true) => Self::Usable { failures, since: now },
            Some(false) => {
                let failures = failures.saturating_add(1);
                Self::Resting { until: now + rest(failures), failures }
            }
            None => Self::Resting { until: now + REST_MIN, failures },
        };
        result == Some(true)
    }

    /// A request failed that has used it since `begun`. Says whether that is news: several fail together, and what was begun before
    /// the lane's return says nothing of how it is now.
    pub fn failed(&mut self, reason: Reason, begun: Duration, now: Duration) -> bool {
        if reason.class() == Class::Fatal {
            return !matches!(std::mem::replace(self, Self::Broken(reason)), Self::Broken(_));
        }
        match *self {
            Self::Usable { failures, since } if begun >= since => {
                let failures = if now < since + PROOF { failures.saturating_add(1) } else { 1 };
                *self = Self::Resting { until: now + rest(failures), failures };
                true
            }
            Self::Usable { .. } | Self::Resting { .. } | Self::Probing { .. } | Self::Broken(_) => false,
        }
    }
}

fn rest(failures: u32) -> Duration {
    REST_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUST_BEFORE: Duration = Duration::from_millis(1);

    #[test]
    fn rests_grow_one_probes_and_success_ends_them() {
        let mut lane = Comeback::default();
        let mut now = Duration::from_secs(100);
        assert_eq!(lane.admit(now), Admission::Use);
        assert!(!lane.probe(now), "there is nothing to find out");
        assert!(lane.failed(Reason::PortDown, now, now), "the first failure is news");
        assert!(!lane.failed(Reason::Flushed, now, now), "what failed with it is not");
        for rest in [1, 2, 4, 8, 16, 30, 30].map(Duration::from_secs) {
            assert_eq!(lane.admit(now + rest - JUST_BEFORE), Admission::Other);
            assert!(!lane.probe(now + rest - JUST_BEFORE));
            now += rest;
            assert_eq!(lane.admit(now), Admission::Probe);
            assert_eq!(lane.admit(now), Admission::Probe, "it is due until somebody begins it");
            assert!(lane.probe(now));
            assert!(!lane.probe(now), "one at a time");
            assert_eq!(lane.admit(now), Admission::Other);
            assert!(!lane.failed(Reason::PeerDead, now, now), "what was under way says nothing");
            assert!(!lane.probed(Some(false), now), "it goes on resting");
        }
        now += REST_MAX;
        assert!(lane.probe(now));
        assert!(lane.probed(Some(true), now), "it is back");
        assert_eq!((lane.admit(now), lane.admit(now)), (Admission::Use, Admission::Use));
        assert!(!lane.failed(Reason::PeerDead, now - JUST_BEFORE, now), "that was the lane before");
        now += PROOF;
        assert!(lane.failed(Reason::PeerDead, now, now), "news again");
        assert_eq!(lane.admit(now + REST_MIN), Admission::Probe, "and the rests begin anew");
    }

    #[test]
    fn one_that_flaps_rests_longer_each_time() {
        let mut lane = Comeback::default();
        let mut now = PROOF;
        for rest in [1, 2, 4, 8].map(Duration::from_secs) {
            assert!(lane.failed(Reason::PortDown, now, now));
            assert_eq!(lane.admit(now + rest - JUST_BEFORE), Admission::Other);
            now += rest;
            assert!(lane.probe(now));
            assert!(lane.probed(Some(true), now));
            now += PROOF - JUST_BEFORE;
        }
    }

    #[test]
    fn a_probe_that_never_ends_is_not_the_last_and_one_that_finds_nothing_out_costs_a_short_rest() {
        let mut lane = Comeback::default();
        lane.failed(Reason::PeerDead, PROOF, PROOF);
        let mut now = PROOF + REST_MIN;
        assert!(lane.probe(now));
        assert!(!lane.probe(now + PROBE_MAX - JUST_BEFORE));
        now += PROBE_MAX;
        assert!(lane.probe(now));
        assert!(!lane.probed(None, now));
        assert_eq!(lane.admit(now + REST_MIN - JUST_BEFORE), Admission::Other);
        assert_eq!(lane.admit(now + REST_MIN), Admission::Probe);
        assert!(!lane.probed(Some(true), now), "that one is over already");
    }

    #[test]
    fn a_mistake_of_the_program_is_never_hidden() {
        let mut lane = Comeback::default();
        let now = Duration::ZERO;
        assert!(lane.failed(Reason::RemoteAccess, now, now));
        assert!(!lane.failed(Reason::PeerDead, now, now));
        assert!(!lane.probed(Some(true), now));
        assert_eq!(lane.admit(Duration::from_secs(1000)), Admission::Broken(Reason::RemoteAccess));
    }
}
