//! The words that the launcher and its workers both speak, as types.
//!
//! Two integers of one kind never stand side by side in a signature here: a rank is not a worker, and a
//! generation is not a step.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A training process's number in its world, `0..world size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rank(pub u32);

/// One worker (a sidecar and its ranks) of a job, `0..workers + spares`; it keeps its number for the job's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub u32);

/// The number of a membership. It only grows, also across restarts of the launcher; 0 is "none yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    ///
    /// # Panics
    /// After 2^64 generations, which no job lives to see.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a job has fewer than 2^64 generations"))
    }
}

/// A number that a worker process draws at its start: two processes that claim one [`WorkerId`] differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// A count of training steps over all epochs. As a position it is "the next step to run".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Step(pub u64);

macro_rules! display_as_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_as_number!(Rank, WorkerId, Generation, Incarnation, Step);
