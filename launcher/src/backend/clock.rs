//! The clocks of the shells: everything behind them is told the time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub(super) fn unix_ms() -> u64 {
    u64::try_from(since_unix_epoch().as_millis()).unwrap_or(u64::MAX)
}

/// The calendar's time.
#[expect(clippy::disallowed_methods, reason = "a shell: it owns the clock")]
pub(super) fn since_unix_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A clock that never jumps back.
#[expect(clippy::disallowed_methods, reason = "a shell: it owns the clock")]
pub(crate) fn clock() -> Instant {
    Instant::now()
}
