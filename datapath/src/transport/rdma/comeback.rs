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
        /// From then on they are forgotten.
        proven: Duration,
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
        Self::Usable { failures: 0, proven: Duration::ZERO }
    }
}

/// Whether a request may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Use,
    /// Another lane must do.
    Other,
    /// Another lane must do, and whoever asked begins a probe.
    Probe,
    /// It must not be hidden that this one is broken.
    Broken(Reason),
}

impl Comeback {
    /// Whether a request may use it now.
    pub fn admit(&mut self, now: Duration) -> Admission {
        match *self {
            Self::Usable { .. } => Admission::Use,
            Self::Broken(reason) => Admission::Broken(reason),
            Self::Resting { until, .. } | Self::Probing { until, .. } if now < until => Admission::Other,
            Self::Resting { failures, .. } | Self::Probing { failures, .. } => {
                *self = Self::Probing { until: now + rest(failures).max(PROBE_MAX), failures };
                Admission::Probe
            }
        }
    }

    /// A probe went well. Says whether it may be used again by that.
    pub fn succeeded(&mut self, now: Duration) -> bool {
        match *self {
            Self::Probing { failures, .. } => {
                *self = Self::Usable { failures, proven: now + PROOF };
                true
            }
            Self::Usable { .. } | Self::Resting { .. } | Self::Broken(_) => false,
        }
    }

    /// It failed, or its probe did. Says whether that is news: several requests fail together, and probes fail again and again.
    pub fn failed(&mut self, reason: Reason, now: Duration) -> bool {
        if reason.class() == Class::Fatal {
            return !matches!(std::mem::replace(self, Self::Broken(reason)), Self::Broken(_));
        }
        let (failures, is_news) = match *self {
            Self::Usable { failures, proven } => {
                (if now < proven { failures.saturating_add(1) } else { 1 }, true)
            }
            Self::Probing { failures, .. } => (failures.saturating_add(1), false),
            Self::Resting { .. } | Self::Broken(_) => return false,
        };
        *self = Self::Resting { until: now + rest(failures), failures };
        is_news
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
        assert!(lane.failed(Reason::PortDown, now), "the first failure is news");
        assert!(!lane.failed(Reason::Flushed, now), "what failed with it is not");
        for rest in [1, 2, 4, 8, 16, 30, 30].map(Duration::from_secs) {
            assert_eq!(lane.admit(now + rest - JUST_BEFORE), Admission::Other);
            assert!(!lane.succeeded(now), "what was under way says nothing");
            now += rest;
            assert_eq!(lane.admit(now), Admission::Probe);
            assert_eq!(lane.admit(now), Admission::Other, "one at a time");
            assert!(!lane.failed(Reason::PeerDead, now), "it goes on resting");
        }
        now += REST_MAX;
        assert_eq!(lane.admit(now), Admission::Probe);
        assert!(lane.succeeded(now), "it is back");
        assert_eq!((lane.admit(now), lane.admit(now)), (Admission::Use, Admission::Use));
        now += PROOF;
        assert!(lane.failed(Reason::PeerDead, now), "news again");
        assert_eq!(lane.admit(now + REST_MIN), Admission::Probe, "and the rests begin anew");
    }

    #[test]
    fn one_that_flaps_rests_longer_each_time() {
        let mut lane = Comeback::default();
        let mut now = Duration::ZERO;
        for rest in [1, 2, 4, 8].map(Duration::from_secs) {
            assert!(lane.failed(Reason::PortDown, now));
            assert_eq!(lane.admit(now + rest - JUST_BEFORE), Admission::Other);
            now += rest;
            assert_eq!(lane.admit(now), Admission::Probe);
            assert!(lane.succeeded(now));
            now += PROOF - JUST_BEFORE;
        }
    }

    #[test]
    fn a_probe_that_never_ends_is_not_the_last() {
        let mut lane = Comeback::default();
        lane.failed(Reason::PeerDead, Duration::ZERO);
        assert_eq!(lane.admit(REST_MIN), Admission::Probe);
        assert_eq!(lane.admit(REST_MIN + PROBE_MAX - JUST_BEFORE), Admission::Other);
        assert_eq!(lane.admit(REST_MIN + PROBE_MAX), Admission::Probe);
    }

    #[test]
    fn a_mistake_of_the_program_is_never_hidden() {
        let mut lane = Comeback::default();
        assert!(lane.failed(Reason::RemoteAccess, Duration::ZERO));
        assert!(!lane.failed(Reason::PeerDead, Duration::ZERO));
        assert!(!lane.succeeded(Duration::ZERO));
        assert_eq!(lane.admit(Duration::from_secs(1000)), Admission::Broken(Reason::RemoteAccess));
    }
}
