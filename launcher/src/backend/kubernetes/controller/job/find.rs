//! What earlier controllers, or earlier attempts, left of a job: reading it, and what becomes of it.

use std::time::Duration;

use super::{Actor, Done, RETRY_MAX, Stage, render};
use crate::backend::clock::clock;
use crate::backend::kubernetes::controller::api::Stored;
use crate::backend::kubernetes::controller::decide::{self, Found, Next};
use crate::backend::kubernetes::controller::devices;
use crate::backend::kubernetes::names;
use crate::rendezvous::authority::Seed;
use crate::rendezvous::group::{Outcome, Record, RecordId};

/// What earlier controllers left.
pub(super) struct Reading {
    pub(super) stored: Stored,
    pub(super) seed: Option<Seed>,
    pub(super) has_child: bool,
    /// What the child's pods ask for.
    pub(super) devices: devices::Names,
}

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

    /// What is there is known: what becomes of it.
    pub(super) fn found(&mut self) {
        if self.job.is_none() {
            self.stage = Stage::Invalid;
            return;
        }
        let next = self.next();
        tracing::info!(job = %self.key, ?next, generation = %self.stored.memory.generation, "a job is looked after");
        match next {
            Next::Rest => self.rest(),
            Next::Keep => self.stage = Stage::Held,
            Next::Clear => self.clear(),
            Next::EndUnstarted => {
                let (outcome, summary) = (Outcome::Cancelled, Box::new(self.stored.memory.summary()));
                self.remember(&Record::End { outcome, summary }, RecordId(0));
                self.rest();
            }
            // They are not part of any child that is there.
            Next::Ask if !self.is_quiet() => {
                self.teller.waits_for("pods of an earlier attempt have not ended yet".to_owned());
                let since = *self.in_the_way.get_or_insert_with(clock);
                self.end_pods(since);
                self.try_again();
            }
            Next::Ask => {
                self.plan.clear();
                // What the next pods ask for is chosen anew.
                self.devices = devices::Names::default();
                self.is_confirmed = false;
                self.stage = Stage::Asking;
                self.ask(self.workers());
            }
            Next::Adopt => self.adopt(),
        }
    }

    pub(super) fn next(&self) -> Next {
        let memory = &self.stored.memory;
        let found = Found {
            outcome: memory.outcome.as_ref(),
            is_to_resume: self.resumption() != self.stored.resumed,
            has_child: self.has_child,
            has_run: memory.generation.0 > 0,
        };
        decide::next(self.wish(), found)
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
