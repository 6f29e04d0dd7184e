//! What happens to a worker, and what it must do (pure).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Outcome, Stuck};
use crate::rendezvous::client::SessionId;
use crate::rendezvous::message::{
    Assignment, ConsumedStep, Evidence, ExitStatus, PeerAddress, PreflightFault, RankProgress, ToLauncher,
    ToWorker,
};
use crate::supervisor::RankExit;
use crate::units::{Generation, Rank, Step};

/// What a rank's feed tells.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::agent) enum FeedNews {
    Attached,
    Consumed(ConsumedStep),
    Committed(Step),
    Reported(BTreeMap<String, f64>),
    Ended,
    Detached,
}

/// What happens to a worker.
#[derive(Clone, Debug)]
pub(in crate::agent) enum Event {
    Connected(SessionId),
    Lost {
        silent: Duration,
    },
    Incompatible {
        reason: String,
    },
    Message(ToWorker),
    /// Answer to [`Action::Check`].
    Checked {
        generation: Generation,
        faults: Vec<PreflightFault>,
    },
    /// Answer to [`Action::Enter`].
    Entered {
        generation: Generation,
    },
    /// Answer to [`Action::OpenStore`].
    StoreOpened {
        generation: Generation,
        address: SocketAddr,
    },
    /// All ranks are executed.
    Started {
        generation: Generation,
        pids: BTreeMap<Rank, u32>,
    },
    /// A rank could not be executed.
    NotStarted {
        generation: Generation,
        rank: Rank,
        status: ExitStatus,
        evidence: Evidence,
    },
    /// A rank's process ended.
    Exited(RankExit),
    /// Answer to [`Action::Examine`].
    Examined {
        generation: Generation,
        rank: Rank,
        evidence: Option<Evidence>,
    },
    /// Something is wrong but nothing ended: also the failure of an action.
    Trouble {
        generation: Generation,
        evidence: Evidence,
    },
    /// Answer to [`Action::Stop`]: no process is left.
    Stopped {
        generation: Generation,
    },
    /// A rank's feed tells something.
    Feed {
        generation: Generation,
        rank: Rank,
        news: FeedNews,
    },
    /// The pipe from the launcher ended.
    LifelineEnded,
    /// SIGTERM or SIGINT.
    Terminated,
    /// Time passed.
    Tick,
}

/// What a worker must do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::agent) enum Action {
    Send(SessionId, ToLauncher),
    /// Send a heartbeat, with the number of the last list of peers, and with the data plane's counters put in.
    Heartbeat(SessionId, Generation, u64, Vec<RankProgress>),
    /// What a registration says from now on.
    Running(Option<Generation>),
    Check(Generation),
    /// Let the data plane take part in the generation, and open a feed per rank.
    Enter(Assignment),
    /// Let it go on among other peers.
    Meet {
        generation: Generation,
        roster: u64,
        peers: Vec<PeerAddress>,
    },
    OpenStore {
        generation: Generation,
        world_size: u32,
    },
    Launch {
        assignment: Assignment,
        master: SocketAddr,
    },
    /// Find out why a rank ended.
    Examine(RankExit),
    /// Tell a stuck rank as a trouble.
    Hang {
        generation: Generation,
        stuck: Stuck,
    },
    Stop {
        generation: Generation,
        grace: Duration,
    },
    /// Close the feeds and the store of the generation.
    Leave(Generation),
    Exit(Outcome),
}

impl Event {
    /// The generation that it is about.
    pub(super) fn generation(&self) -> Option<Generation> {
        match self {
            Self::Checked { generation, .. }
            | Self::Entered { generation }
            | Self::StoreOpened { generation, .. }
            | Self::Started { generation, .. }
            | Self::NotStarted { generation, .. }
            | Self::Examined { generation, .. }
            | Self::Trouble { generation, .. }
            | Self::Stopped { generation }
            | Self::Feed { generation, .. }
            | Self::Exited(RankExit { generation, .. }) => Some(*generation),
            _ => None,
        }
    }
}
