//! When a call about a pod that failed may be made again (pure): the watch that would say so may be the thing that is broken.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{RETRY_FIRST, RETRY_MAX};

/// Pods, by uid, for which a call has failed lately.
#[derive(Debug, Default)]
pub(super) struct Pauses(BTreeMap<String, Pause>);

#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Instant,
    wait: Duration,
}

impl Pauses {
    /// A call failed: the next one waits twice as long as the last one did.
    pub(super) fn failed(&mut self, uid: &str, now: Instant) {
        let before = self.0.get(uid).map(|pause| pause.wait * 2);
        let wait = before.unwrap_or(RETRY_FIRST).min(RETRY_MAX);
        self.0.insert(uid.to_owned(), Pause { until: now + wait, wait });
    }

    /// One was carried out.
    pub(super) fn succeeded(&mut self, uid: &str) {
        self.0.remove(uid);
    }

    /// Whether no call is to be made yet.
    pub(super) fn holds(&self, uid: &str, now: Instant) -> bool {
        self.0.get(uid).is_some_and(|pause| now < pause.until)
    }

    /// Forgets pods that nothing has been tried for in a long time: they are gone.
    pub(super) fn forget(&mut self, now: Instant) {
        self.0.retain(|_, pause| now < pause.until + 2 * RETRY_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::clock::clock;

    #[test]
    fn each_failure_waits_longer_until_one_is_carried_out() {
        let (mut pauses, mut now) = (Pauses::default(), clock());
        for wait in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000].map(Duration::from_millis) {
            assert!(!pauses.holds("a", now));
            pauses.failed("a", now);
            now += wait;
            assert!(pauses.holds("a", now - Duration::from_millis(1)) && !pauses.holds("b", now));
        }
        pauses.succeeded("a");
        pauses.failed("a", now);
        assert!(!pauses.holds("a", now + RETRY_FIRST));
        pauses.forget(now + RETRY_MAX);
        assert_eq!(pauses.0.len(), 1);
        pauses.forget(now + 3 * RETRY_MAX);
        assert!(pauses.0.is_empty());
    }
}
