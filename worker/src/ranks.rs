//! Where the ranks are executed: by this process, or in another container of this pod.

use std::time::Duration;

use crate::pod::link::Orders;
use crate::pod::message::Surroundings;
use crate::supervisor::{Launch, Supervisor, SupervisorEvent};
use crate::units::{Generation, Rank};

/// Makes the launch, once it is known what the ranks find around them.
pub(crate) type Prepare = Box<dyn FnOnce(&Surroundings) -> Launch + Send>;

/// What is told of the ranks.
#[derive(Debug)]
pub(crate) enum RanksEvent {
    /// As whoever executes them sees it.
    Supervisor(SupervisorEvent),
    /// Their container was told to stop while they ran, by somebody else than us.
    Terminating(Generation),
}

/// Who executes the ranks. Dropping it ends them.
#[derive(Debug)]
pub(crate) enum Ranks {
    /// This process.
    Here(Supervisor, Surroundings),
    /// `worker exec` in their own container, when it has connected.
    There(Orders),
}

impl Ranks {
    /// Executes ranks; answered by `Started` or `NotStarted`.
    pub(crate) fn launch(&self, generation: Generation, ranks: &[Rank], prepare: Prepare) {
        match self {
            Self::Here(supervisor, surroundings) => supervisor.launch(prepare(surroundings)),
            Self::There(orders) => orders.launch(generation, ranks, prepare),
        }
    }

    /// Ends a generation; answered by `Stopped`, also when nothing runs.
    pub(crate) fn stop(&self, generation: Generation, grace: Duration) {
        match self {
            Self::Here(supervisor, _) => supervisor.stop(generation, grace),
            Self::There(orders) => orders.stop(generation, grace),
        }
    }
}
