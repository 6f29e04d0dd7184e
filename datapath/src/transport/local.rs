//! The lane to this worker's own cache: a copy.

use crate::cache::{Cache, LoadError};
use crate::counters::Counting;
use crate::fault;
use crate::session::Failure;
use crate::transport::{Outcome, Part};

/// Fills the parts from the cache, which reads what it has not. One outcome for each part, in their order.
pub(crate) async fn fetch(
    cache: &Cache,
    counters: &Counting,
    refresh: bool,
    parts: &mut [Part<'_>],
) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(parts.len());
    for part in parts {
        let held = if refresh {
            cache.get_verified(part.chunk(), part.until()).await
        } else {
            cache.get(part.chunk(), part.until()).await
        };
        let outcome = match held {
            Ok(chunk) => {
                let filled = part.fill_from(&chunk);
                filled.map_err(|sample| Failure::Corrupt { sample: Some(sample.0) })
            }
            Err(error) => Err(failure(error)),
        };
        if outcome.is_ok() {
            counters.local_bytes.add(part.bytes());
        }
        outcomes.push(outcome);
        // A large batch is milliseconds of copying: let the other tasks of this thread have their turn.
        tokio::task::consume_budget().await;
    }
    outcomes
}

/// What a failed load means for the request.
pub(crate) fn failure(error: LoadError) -> Failure {
    if error.reason == fault::CRC_MISMATCH {
        Failure::Corrupt { sample: None }
    } else {
        Failure::Store { reason: error.reason, message: error.message }
    }
}
