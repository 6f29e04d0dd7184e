//! How often a job may be restarted: so many times in a window that slides, with a growing pause (pure).

use std::collections::VecDeque;
use std::time::Duration;

use crate::job::BACKOFF_MAX;

/// What the job allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Restarts within a window.
    pub max: u32,
    /// The window's length.
    pub window: Duration,
    /// Pause before the first restart of a window; it doubles with each, up to [`BACKOFF_MAX`].
    pub backoff: Duration,
}

/// What is left of it. Times are the controller's own, so that a resumed job has its whole budget again.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    policy: RestartPolicy,
    spent: VecDeque<Duration>,
}

impl Budget {
    /// All of `policy`.
    #[must_use]
    pub(super) fn new(policy: RestartPolicy) -> Self {
        Self { policy, spent: VecDeque::new() }
    }

    /// Whether a restart could be taken.
    pub(super) fn has_room(&self, now: Duration) -> bool {
        let used = self.spent.iter().filter(|&&at| now.saturating_sub(at) <= self.policy.window).count();
        u32::try_from(used).is_ok_and(|used| used < self.policy.max)
    }

    /// Takes one restart: how long to wait before it, or none when the window's are used up.
    pub(super) fn spend(&mut self, now: Duration) -> Option<Duration> {
        while self.spent.front().is_some_and(|&at| now.saturating_sub(at) > self.policy.window) {
            self.spent.pop_front();
        }
        let used = u32::try_from(self.spent.len()).unwrap_or(u32::MAX);
        if used >= self.policy.max {
            return None;
        }
        self.spent.push_back(now);
        Some(self.policy.backoff.saturating_mul(1 << used.min(16)).min(BACKOFF_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_slides_and_the_pause_grows() {
        let second = Duration::from_secs(1);
        let mut budget = Budget::new(RestartPolicy { max: 3, window: 10 * second, backoff: second });
        assert_eq!(budget.spend(Duration::ZERO), Some(second));
        assert_eq!(budget.spend(second), Some(2 * second));
        assert_eq!(budget.spend(2 * second), Some(4 * second));
        assert_eq!(budget.spend(3 * second), None);
        assert!(!budget.has_room(10 * second) && budget.has_room(11 * second));
        assert_eq!(budget.spend(11 * second), Some(4 * second), "the first has left the window");
        assert_eq!(budget.spend(11 * second), None);
        assert_eq!(budget.spend(100 * second), Some(second));
        let mut none = Budget::new(RestartPolicy { max: 0, window: second, backoff: second });
        assert_eq!(none.spend(Duration::ZERO), None);
    }
}
