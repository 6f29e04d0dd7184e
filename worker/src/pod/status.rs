//! What a sidecar answers to probes and shows as metrics: filled by the agent and the link, read by the HTTP server.

use std::sync::{Mutex, MutexGuard, PoisonError};

use datapath::Counters;

/// The sidecar's state, as others may see it.
#[derive(Debug)]
pub(crate) struct Status(Mutex<Seen>);

/// A moment of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// What the worker does, for people: one line.
    pub(crate) doing: String,
    /// The ranks' container has something to do.
    pub(crate) ranks_wanted: bool,
    /// The generation whose ranks run here, 0 for none.
    pub(crate) generation: u64,
    /// Launches since the start.
    pub(crate) launches: u64,
    /// The rendezvous has welcomed us and the connection stands.
    pub(crate) connected: bool,
    /// The data plane's counters.
    pub(crate) counters: Counters,
}

impl Default for Status {
    fn default() -> Self {
        Self(Mutex::new(Seen {
            doing: "starts".to_owned(),
            ranks_wanted: false,
            generation: 0,
            launches: 0,
            connected: false,
            counters: Counters::default(),
        }))
    }
}

impl Status {
    /// This moment.
    pub(crate) fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// What the worker does now.
    pub(crate) fn doing(&self, what: impl Into<String>) {
        self.lock().doing = what.into();
    }

    /// Whether the ranks' container should start.
    pub(crate) fn ranks(&self, wanted: bool) {
        self.lock().ranks_wanted = wanted;
    }

    /// Ranks of this generation are to be executed.
    pub(crate) fn launched(&self, generation: u64) {
        let mut seen = self.lock();
        seen.generation = generation;
        seen.launches += 1;
    }

    /// Nothing of any generation runs.
    pub(crate) fn idle(&self) {
        self.lock().generation = 0;
    }

    /// Whether the rendezvous is reached.
    pub(crate) fn connected(&self, connected: bool) {
        self.lock().connected = connected;
    }

    /// The data plane's counters of this moment.
    pub(crate) fn count(&self, counters: Counters) {
        self.lock().counters = counters;
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Every change is one assignment: there is no half of it that a panic could leave.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
