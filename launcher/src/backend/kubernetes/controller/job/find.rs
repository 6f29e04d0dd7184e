//! Reading what earlier controllers, or earlier attempts, left of a job.

use std::time::Duration;

use super::{Actor, Done, RETRY_MAX, Reading, Stage, render};
use crate::backend::kubernetes::names;

impl Actor {
    /// Reads what is there of the job, from the beginning.
    pub(super) fn look(&mut self) {
        self.stage = Stage::Finding;
        self.inbound = None;
        let (calls, key, child) = (self.context.calls.clone(), self.key.clone(), self.context.child.clone());
        self.tasks.spawn(async move {
            let read = async {
                let stored = calls.memory(&key).await?;
                let seed = calls.seed(&key).await?;
                let found = calls.find(&child, &key.namespace, &names::child(&key.name)).await?;
                let child = found.filter(|child| key.has(&child.metadata));
                let devices = child.as_ref().map(|child| render::devices_of(&child.metadata));
                let (has_child, devices) = (child.is_some(), devices.unwrap_or_default());
                Ok(Box::new(Reading { stored, seed, has_child, devices }))
            };
            Done::Found(read.await)
        });
    }

    /// How long the next attempt waits, which is more than the last one did.
    pub(super) fn longer(&mut self) -> Duration {
        let wait = self.retry;
        self.retry = (self.retry * 2).min(RETRY_MAX);
        wait
    }

    /// Looks again after a while that grows.
    pub(super) fn try_again(&mut self) {
        if matches!(self.stage, Stage::Leaving) {
            return;
        }
        let wait = self.longer();
        self.stage = Stage::Finding;
        self.tasks.spawn(async move {
            tokio::time::sleep(wait).await;
            Done::Again
        });
    }
}
