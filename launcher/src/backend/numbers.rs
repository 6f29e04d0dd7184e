//! A membership's numbers as every backend shows them (pure).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::rendezvous::group::{self, Group, GroupSummary, ServerState, ServerView};

use super::{Cause, Paths, ServerPhase, ServerStatus, Summary};

/// Rates are over this long.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// Rates of the last few seconds.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    /// (when, samples, bytes)
    window: VecDeque<(Duration, u64, u64)>,
}

impl Meter {
    /// Samples a second and bytes a second at the moment `elapsed`, which never jumps back.
    pub fn rates(&mut self, group: &Group, elapsed: Duration) -> (f64, f64) {
        let work = group.work();
        self.window.push_back((elapsed, work.samples, work.bytes));
        while self.window.front().is_some_and(|(at, ..)| elapsed.saturating_sub(*at) > RATE_WINDOW) {
            self.window.pop_front();
        }
        let (since, samples, bytes) = self.window.front().copied().unwrap_or_default();
        let seconds = elapsed.saturating_sub(since).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate is shown to three digits")]
        let rate = |now: u64, then: u64| {
            if seconds > 0.0 { now.saturating_sub(then) as f64 / seconds } else { 0.0 }
        };
        (rate(work.samples, samples), rate(work.bytes, bytes))
    }
}

/// A cause as it is shown.
#[must_use]
pub fn shown(cause: &group::Cause) -> Cause {
    Cause {
        code: cause.code,
        rank: cause.rank,
        worker: cause.worker,
        host: None,
        generation: cause.generation,
        exit: cause.exit,
        message: cause.message.clone(),
        hint: cause.hint.clone(),
        log_tail: cause.log_tail.clone(),
        seen_unix_ms: cause.seen_unix_ns / 1_000_000,
    }
}

/// The data servers as they are shown.
#[must_use]
pub fn servers(group: &Group) -> Vec<ServerStatus> {
    let is_over = group.phase().is_over();
    let at_the_end = |phase: ServerPhase| if is_over { phase.at_the_end() } else { phase };
    let shown = |server: ServerView| ServerStatus {
        server: server.number,
        worker: server.worker,
        host: server.host,
        pid: server.pid,
        phase: at_the_end(match server.state {
            ServerState::Serving => ServerPhase::Serving,
            ServerState::Starting => ServerPhase::Starting,
            ServerState::Lost => ServerPhase::Lost,
        }),
        message: server.why,
    };
    group.servers().into_iter().map(shown).collect()
}

/// A job in numbers, over `seconds`.
#[must_use]
pub fn summary(numbers: &GroupSummary, steps_per_epoch: Option<u64>, seconds: f64) -> Summary {
    #[expect(clippy::cast_precision_loss, reason = "a rate is shown to three digits")]
    let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    Summary {
        steps: numbers.totals.steps,
        epochs: steps_per_epoch.map_or(0, |steps| numbers.totals.steps / steps.max(1)),
        samples: numbers.work.samples,
        sample_bytes: numbers.work.bytes,
        seconds,
        samples_per_second: rate(numbers.work.samples),
        bytes_per_second: rate(numbers.work.bytes),
        bytes_read: numbers.counters.store_bytes,
        bytes_read_by_servers: numbers.server_counters.store_bytes,
        bytes_from_tier: numbers.counters.tier_bytes,
        bytes_exchanged: numbers.counters.quic_in_bytes.saturating_add(numbers.counters.rdma_in_bytes),
        paths: Paths::of(&numbers.counters),
        epoch_digests: if steps_per_epoch.is_some() { numbers.epochs.clone() } else { BTreeMap::new() },
        order_digest: steps_per_epoch.map(|_| numbers.totals.digest),
        reported: numbers.reported.clone(),
        generations: numbers.generation.0,
        restarts: numbers.restarts,
        ranks: numbers.world_size,
    }
}
