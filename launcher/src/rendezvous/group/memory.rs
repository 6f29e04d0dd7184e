//! What a group writes down before it acts, and what a later launcher knows from that (pure).

use std::collections::BTreeMap;

use datapath::Counters;
use datapath::order::OrderDigest;
use serde::{Deserialize, Serialize};
use worker::rendezvous::message::DataFacts;
use worker::units::{Generation, Step, WorkerId};

use super::evidence::Cause;
use super::progress::{Settled, Totals, Work};

/// Epochs whose digests are remembered, the latest: a million would be more than a ConfigMap holds. The sum over all of them
/// is in the totals.
const EPOCHS_KEPT: usize = 1024;

/// One thing that must outlive the launcher. Tagged from outside: serde cannot read maps with number keys back from
/// behind an inner tag.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// That number is taken: nobody may gather it again.
    Generation {
        /// The number.
        generation: Generation,
    },
    /// The data set that the workers found: it must be the same for ever.
    Data {
        /// What they said.
        data: DataFacts,
    },
    /// Who sits where in it, for sticky ranks.
    Assigned {
        /// The generation.
        generation: Generation,
        /// Index = group rank.
        seats: Vec<WorkerId>,
    },
    /// That generation and all before it are over.
    Fence {
        /// The generation.
        generation: Generation,
        /// Why; none when the user asked for it.
        cause: Option<Box<Cause>>,
        /// Whether another generation follows.
        restart: bool,
    },
    /// Every rank has durably saved everything before `committed`.
    Commit {
        /// The generation.
        generation: Generation,
        /// Steps done.
        committed: Step,
        /// Sums over them; of the epochs, those that this commit changed.
        settled: Settled,
        /// What was consumed by then, repeated steps included.
        work: Work,
    },
    /// The job is over.
    End {
        /// How.
        outcome: Outcome,
        /// What it did.
        summary: Box<GroupSummary>,
    },
}

impl Record {
    /// Whether acting on it must wait until it is on the disk, as opposed to in the file.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        !matches!(self, Self::Assigned { .. })
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Every rank exited 0.
    Succeeded,
    /// It did not, for this reason.
    Failed {
        /// The first cause.
        cause: Box<Cause>,
    },
    /// The user asked for it.
    Cancelled,
}

/// What a job did, as far as the group knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupSummary {
    /// The last generation.
    pub generation: Generation,
    /// Generations that followed a failure.
    pub restarts: u32,
    /// Ranks of the last generation.
    pub world_size: u32,
    /// The next step to run after a resume.
    pub committed: Step,
    /// Sums over all steps that all ranks acknowledged.
    pub totals: Totals,
    /// The order digest of each epoch, over the same steps.
    pub epochs: BTreeMap<u64, OrderDigest>,
    /// What was consumed, repeated steps included.
    pub work: Work,
    /// What the trainers reported.
    pub reported: BTreeMap<String, f64>,
    /// The data planes' counters, over all workers and generations of this launcher's life.
    pub counters: Counters,
    /// Of these, the data servers' own.
    #[serde(default)]
    pub server_counters: Counters,
}

/// What is known from the records of earlier launchers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// The largest generation ever taken.
    pub generation: Generation,
    /// The largest that was fenced, or ended.
    pub fenced: Generation,
    /// The last seats.
    pub seats: Vec<WorkerId>,
    /// The generation that they are of.
    #[serde(default)]
    pub seated: Generation,
    /// The committed step.
    pub committed: Step,
    /// Sums below it.
    pub settled: Settled,
    /// What was consumed so far.
    pub work: Work,
    /// The data set, where the workers found it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataFacts>,
    /// Generations that followed a failure.
    pub restarts: u32,
    /// The last failure's cause.
    pub cause: Option<Cause>,
    /// How the job ended, if it did since it was last started.
    pub outcome: Option<Outcome>,
}

impl Memory {
    /// Takes one record in, in the order of the journal.
    pub fn take(&mut self, record: &Record) {
        match record {
            Record::Generation { generation } => {
                self.generation = self.generation.max(*generation);
                self.outcome = None;
            }
            Record::Data { data } => self.data = Some(data.clone()),
            Record::Assigned { generation, seats } => {
                self.generation = self.generation.max(*generation);
                self.seats.clone_from(seats);
                self.seated = *generation;
            }
            Record::Fence { generation, cause, restart } => {
                self.generation = self.generation.max(*generation);
                self.fenced = self.fenced.max(*generation);
                self.restarts += u32::from(*restart);
                if cause.is_some() {
                    self.cause = cause.as_deref().cloned();
                }
            }
            Record::Commit { generation, committed, settled, work } => {
                self.generation = self.generation.max(*generation);
                if *committed >= self.committed {
                    self.committed = *committed;
                    self.settled.totals = settled.totals;
                    self.settled.epochs.extend(&settled.epochs);
                    while self.settled.epochs.len() > EPOCHS_KEPT {
                        self.settled.epochs.pop_first();
                    }
                    self.work = *work;
                }
            }
            Record::End { outcome, summary } => {
                self.work = summary.work;
                self.fenced = self.generation;
                self.outcome = Some(outcome.clone());
            }
        }
    }

    /// What the job did, as far as it is known.
    #[must_use]
    pub fn summary(&self) -> GroupSummary {
        GroupSummary {
            generation: self.generation,
            restarts: self.restarts,
            committed: self.committed,
            totals: self.settled.totals,
            epochs: self.settled.epochs.clone(),
            work: self.work,
            ..GroupSummary::default()
        }
    }

    /// Everything that `records` say.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut memory = Self::default();
        for record in records {
            memory.take(record);
        }
        memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_epochs_the_latest_digests_are_remembered() {
        let mut memory = Memory::default();
        for epoch in 0..3000_u64 {
            let settled =
                Settled { epochs: [(epoch, OrderDigest(epoch.into()))].into(), ..Settled::default() };
            let committed = Step(epoch + 1);
            let work = Work::default();
            memory.take(&Record::Commit { generation: Generation(1), committed, settled, work });
        }
        assert_eq!(memory.settled.epochs.len(), EPOCHS_KEPT);
        assert_eq!(memory.settled.epochs.last_key_value(), Some((&2999, &OrderDigest(2999))));
        assert!(serde_json::to_string(&memory).unwrap().len() < 100_000);
    }
}
