//! When a lane over verbs that has failed is used again (pure): not before a rest, which grows, and then by one at a time.
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

/// How a lane stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Comeback {
    /// It may be used by all.
    #[default]
    Usable,
    /// It may not be used yet.
    Resting {
        /// Until then.
        until: Duration,
        /// Failures in a row.
        failures: u32,
    },
    /// One request finds out whether it is back; the others do not wait for that.
    Probing {
        /// When the next may try, should that one never say how it ended.
        until: Duration,
        /// Failures in a row.
        failures: u32,
    },
    /// What a wrong program has caused does not heal.
    Broken(Reason),
}

/// Whether a request may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Use,
    /// Another lane must do.
    Other,
    /// It must not be hidden that this one is broken.
    Broken(Reason),
}

impl Comeback {
    /// Whether a request may use it now.
    pub fn admit(&mut self, now: Duration) -> Admission {
        match *self {
            Self::Usable => Admission::Use,
            Self::Broken(reason) => Admission::Broken(reason),
            Self::Resting { until, .. } | Self::Probing { until, .. } if now < until => Admission::Other,
            Self::Resting { failures, .. } | Self::Probing { failures, .. } => {
                *self = Self::Probing { until: now + rest(failures), failures };
                Admission::Use
            }
        }
    }

    /// Bytes came by it. Says whether that is news.
    pub fn succeeded(&mut self) -> bool {
        match self {
            // What was under way before it failed says nothing of how it is now.
            Self::Probing { .. } => {
                *self = Self::Usable;
                true
            }
            Self::Usable | Self::Resting { .. } | Self::Broken(_) => false,
        }
    }

    /// It failed. Says whether that is news: several requests fail together.
    pub fn failed(&mut self, reason: Reason, now: Duration) -> bool {
        if reason.class() == Class::Fatal {
            return !matches!(std::mem::replace(self, Self::Broken(reason)), Self::Broken(_));
        }
        let failures = match *self {
            Self::Usable => 1,
            Self::Probing { failures, .. } => failures.saturating_add(1),
            Self::Resting { .. } | Self::Broken(_) => return false,
        };
        *self = Self::Resting { until: now + rest(failures), failures };
        failures == 1
    }
}

fn rest(failures: u32) -> Duration {
    REST_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_one_probes_and_success_ends_them() {
        let mut lane = Comeback::default();
        let mut now = Duration::from_secs(100);
        assert_eq!(lane.admit(now), Admission::Use);
        assert!(lane.failed(Reason::PortDown, now), "the first failure is news");
        assert!(!lane.failed(Reason::Flushed, now), "what failed with it is not");
        for rest in [1, 2, 4, 8, 16, 30, 30].map(Duration::from_secs) {
            assert_eq!(lane.admit(now + rest - Duration::from_millis(1)), Admission::Other);
            assert!(!lane.succeeded(), "what was under way says nothing");
            now += rest;
            assert_eq!(lane.admit(now), Admission::Use);
            assert_eq!(lane.admit(now), Admission::Other, "one at a time");
            assert!(!lane.failed(Reason::PeerDead, now), "it goes on resting");
        }
        now += REST_MAX;
        assert_eq!(lane.admit(now), Admission::Use);
        assert!(lane.succeeded(), "it is back");
        assert_eq!((lane.admit(now), lane.admit(now)), (Admission::Use, Admission::Use));
        assert!(lane.failed(Reason::PeerDead, now), "news again");
        assert_eq!(lane.admit(now + REST_MIN), Admission::Use, "and the rests begin anew");
    }

    #[test]
    fn a_probe_that_never_ends_is_not_the_last() {
        let mut lane = Comeback::default();
        lane.failed(Reason::PeerDead, Duration::ZERO);
        assert_eq!(lane.admit(REST_MIN), Admission::Use);
        assert_eq!(lane.admit(2 * REST_MIN), Admission::Use);
    }

    #[test]
    fn a_mistake_of_the_program_is_never_hidden() {
        let mut lane = Comeback::default();
        assert!(lane.failed(Reason::RemoteAccess, Duration::ZERO));
        assert!(!lane.failed(Reason::PeerDead, Duration::ZERO));
        assert!(!lane.succeeded());
        assert_eq!(lane.admit(Duration::from_secs(1000)), Admission::Broken(Reason::RemoteAccess));
    }
}
