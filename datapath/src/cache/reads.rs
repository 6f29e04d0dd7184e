//! The store's reads that are under way: as many at once as [`Depth`] says.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::depth::{Depth, Done, READS_START};

pub(super) struct Reads {
    permits: Semaphore,
    flow: Mutex<Flow>,
    began: Instant,
}

struct Flow {
    depth: Depth,
    /// Permits that are still held and that there shall no longer be.
    surplus: usize,
}

impl Reads {
    pub(super) fn new() -> Self {
        Self {
            permits: Semaphore::new(READS_START),
            flow: Mutex::new(Flow { depth: Depth::new(), surplus: 0 }),
            began: Instant::now(),
        }
    }

    /// Waits for its turn.
    pub(super) async fn begin(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        self.permits.acquire().await.ok()
    }

    /// How many may be under way now.
    pub(super) fn at_once(&self) -> usize {
        self.flow().depth.reads()
    }

    /// A read of the store has ended, which was begun at that moment, and asked for at that one.
    pub(super) fn end(
        &self,
        permit: Option<SemaphorePermit<'_>>,
        bytes: u64,
        begun: Instant,
        asked: Option<Instant>,
    ) {
        let now = Instant::now();
        let waited = asked.map_or(Duration::ZERO, |asked| now - asked);
        let done = Done { bytes, took: now - begun, waited };
        let mut flow = self.flow();
        let before = flow.depth.reads();
        if let Some(change) = flow.depth.done(done, now - self.began) {
            tracing::debug!(
                reads = change.reads,
                before,
                reason = change.reason,
                "reads of the store at once"
            );
            let more = change.reads.saturating_sub(before);
            let again = more.min(flow.surplus);
            flow.surplus = flow.surplus - again + before.saturating_sub(change.reads);
            self.permits.add_permits(more - again);
        }
        if flow.surplus > 0
            && let Some(permit) = permit
        {
            flow.surplus -= 1;
            permit.forget();
        }
    }

    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
