//! What a group knows in each of its states, and of each worker.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use worker::rendezvous::message::{
    Assignment, DataFacts, ExitStatus, HostFacts, PeerAddress, PreflightFault, ToWorker,
};
use worker::units::{Generation, Incarnation, Rank, WorkerId};

use super::evidence::Observed;
use super::memory::Outcome;
use super::progress::Progress;
use super::servers::{SentRoster, Serving};
use super::{Group, RETIRED_MAX, RecordId};

/// Where the group is.
#[derive(Debug)]
pub(super) enum State {
    Pending,
    /// What an earlier launcher may have left is being swept.
    Clearing {
        /// The last generation's fence, which is on the disk before anything is swept.
        record: RecordId,
        is_swept: bool,
    },
    Gathering {
        /// Nobody hears of the generation before its number is on the disk.
        record: RecordId,
        recorded: bool,
        since: Duration,
        /// The restart's pause.
        not_before: Duration,
        /// Since when there are enough.
        enough: Option<Duration>,
    },
    Preflight {
        members: BTreeSet<WorkerId>,
        since: Duration,
    },
    Assigned {
        world: Box<World>,
    },
    Joining {
        world: Box<World>,
    },
    Running {
        world: Box<World>,
    },
    Suspect {
        world: Box<World>,
        until: Duration,
    },
    Fencing {
        world: Box<World>,
        then: Next,
        stage: FenceStage,
    },
    Ending {
        outcome: Outcome,
        stage: EndStage,
    },
    Over(Outcome),
}

/// How far a fence is.
#[derive(Debug)]
pub(super) enum FenceStage {
    /// It is being written.
    Recording(RecordId),
    /// Workers are told; those that cannot be are swept afterwards.
    Stopping { waiting: BTreeSet<WorkerId>, lost: BTreeSet<WorkerId>, deadline: Duration },
    /// The lost ones are being swept.
    Sweeping { left: BTreeSet<WorkerId> },
}

/// How far the job's end is.
#[derive(Debug)]
pub(super) enum EndStage {
    Recording(RecordId),
    Finishing { deadline: Duration },
    Sweeping { left: BTreeSet<WorkerId> },
}

/// What follows a fence.
#[derive(Clone, Debug)]
pub(super) enum Next {
    Restart { backoff: Duration },
    End(Outcome),
}

/// One worker of the job.
#[derive(Debug, Default)]
pub(super) struct Member {
    pub(super) presence: Presence,
    retired: VecDeque<Incarnation>,
    pub(super) is_being_swept: bool,
    /// Its process died since places were last given out: what is there now is cold.
    pub(super) is_replaced: bool,
    /// Its process has been told to end: it is in no later generation.
    pub(super) is_leaving: bool,
    /// An earlier launcher's process of it may run a generation that nobody has fenced: no generation may begin before it
    /// has registered or been swept.
    pub(super) is_unknown: bool,
    /// It was lost too often: until the next restart the job does without it.
    pub(super) is_given_up: bool,
    /// Launches since the generation was gathered; a spare is launched again a few times only.
    pub(super) relaunches: u32,
}

impl Member {
    pub(super) fn present(&self) -> Option<&Present> {
        match &self.presence {
            Presence::Present(present) => Some(present),
            _ => None,
        }
    }

    pub(super) fn present_mut(&mut self) -> Option<&mut Present> {
        match &mut self.presence {
            Presence::Present(present) => Some(present),
            _ => None,
        }
    }

    /// Registered, and nothing of an earlier generation runs there.
    pub(super) fn is_eligible(&self) -> bool {
        !self.is_leaving && self.present().is_some_and(|present| present.stale.is_none())
    }

    pub(super) fn is_retired(&self, incarnation: Incarnation) -> bool {
        self.retired.contains(&incarnation)
    }

    /// Puts `presence` in the place of what is there; a process that was there never comes back.
    pub(super) fn leave(&mut self, presence: Presence) {
        self.is_leaving = false;
        if let Presence::Present(present) = std::mem::replace(&mut self.presence, presence) {
            if self.retired.len() >= RETIRED_MAX {
                self.retired.pop_front();
            }
            self.retired.push_back(present.incarnation);
            self.is_replaced = true;
        }
    }
}

/// Whether a worker has a process.
#[derive(Debug, Default)]
pub(super) enum Presence {
    /// It certainly has none.
    #[default]
    Absent,
    /// It has one that has not registered.
    Launching { since: Duration, pid: Option<u32> },
    /// It has one that speaks to us.
    Present(Box<Present>),
    /// It may have one that does not: it must be swept before another is launched.
    Lost,
}

/// A registered worker process.
#[derive(Debug)]
pub(super) struct Present {
    pub(super) incarnation: Incarnation,
    pub(super) pid: u32,
    pub(super) host: HostFacts,
    pub(super) data_address: Option<SocketAddr>,
    /// The data set as it found it.
    pub(super) data: Option<DataFacts>,
    pub(super) heard: Duration,
    pub(super) heard_unix_ns: u64,
    pub(super) told: Duration,
    /// Its answer to this generation's `Gather`.
    pub(super) ready: Option<Vec<PreflightFault>>,
    /// The list of peers that it has, of this generation's.
    pub(super) roster: u64,
    /// An earlier generation that still runs there.
    pub(super) stale: Option<Generation>,
}

/// A generation that may be active.
#[derive(Debug)]
pub(super) struct World {
    pub(super) generation: Generation,
    /// Index = group rank.
    pub(super) seats: Vec<Seat>,
    pub(super) ranks_per_worker: u32,
    pub(super) since: Duration,
    pub(super) master: Option<SocketAddr>,
    pub(super) started: BTreeSet<WorkerId>,
    /// The data servers that have a part in it.
    pub(super) servers: BTreeMap<WorkerId, Serving>,
    /// The number of the list of peers.
    pub(super) roster: u64,
    pub(super) sent: SentRoster,
    /// Which data servers there are is known: not so just after an earlier launcher's generation was taken over.
    pub(super) knows_servers: bool,
    pub(super) pids: BTreeMap<Rank, u32>,
    pub(super) exits: BTreeMap<Rank, ExitStatus>,
    pub(super) observed: Vec<Observed>,
    /// Seats that an earlier launcher gave, whose workers have not been heard yet.
    pub(super) awaited: BTreeSet<WorkerId>,
    /// An earlier launcher began it: its workers have all that they need.
    pub(super) is_adopted: bool,
    /// Workers that have stopped their ranks by themselves.
    pub(super) fenced: BTreeSet<WorkerId>,
    pub(super) progress: Progress,
}

/// A place in a generation and the process that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) worker: WorkerId,
    pub(super) incarnation: Incarnation,
    pub(super) host: String,
}

impl World {
    pub(super) fn world_size(&self) -> u32 {
        u32::try_from(self.seats.len()).unwrap_or(u32::MAX).saturating_mul(self.ranks_per_worker)
    }

    pub(super) fn group_rank(&self, worker: WorkerId) -> Option<u32> {
        u32::try_from(self.seats.iter().position(|seat| seat.worker == worker)?).ok()
    }

    pub(super) fn seat(&self, worker: WorkerId) -> Option<&Seat> {
        self.seats.iter().find(|seat| seat.worker == worker)
    }

    /// The ranks of a seat, in local order.
    pub(super) fn ranks(&self, group_rank: u32) -> Vec<Rank> {
        let first = group_rank * self.ranks_per_worker;
        (first..first + self.ranks_per_worker).map(Rank).collect()
    }

    pub(super) fn owner(&self, rank: Rank) -> Option<&Seat> {
        self.seats.get(usize::try_from(rank.0 / self.ranks_per_worker.max(1)).ok()?)
    }

    pub(super) fn all_exited_well(&self) -> bool {
        usize::try_from(self.world_size()).is_ok_and(|ranks| ranks == self.exits.len())
            && self.exits.values().all(|status| status.is_success())
    }

    pub(super) fn assignment(&self, group_rank: u32, group: &Group) -> Assignment {
        Assignment {
            generation: self.generation,
            world_size: self.world_size(),
            group_world_size: u32::try_from(self.seats.len()).unwrap_or(u32::MAX),
            group_rank,
            ranks: self.ranks(group_rank),
            restarts: group.restarts,
            max_restarts: group.config.restarts.max,
            serves_store: group_rank == 0,
            start_step: self.progress.committed(),
            peers: self.peers(group),
            roster: self.roster,
        }
    }

    /// What a data server is given: everything but ranks.
    pub(super) fn server_assignment(&self, group: &Group) -> Assignment {
        let group_rank = u32::try_from(self.seats.len()).unwrap_or(u32::MAX);
        Assignment {
            group_rank,
            ranks: Vec::new(),
            serves_store: false,
            start_step: self.progress.step(),
            ..self.assignment(group_rank, group)
        }
    }

    /// Who exchanges chunks: the workers with ranks and the data servers that are known to serve.
    pub(super) fn peers(&self, group: &Group) -> Vec<PeerAddress> {
        let servers = self.servers.iter().filter(|(_, serving)| serving.is_announced);
        let seats = self.seats.iter().map(|seat| seat.worker);
        seats.chain(servers.map(|(worker, _)| *worker)).map(|worker| group.peer(worker)).collect()
    }

    /// What a worker of this generation has not answered yet.
    pub(super) fn due_messages(
        &self,
        worker: WorkerId,
        incarnation: Incarnation,
        group: &Group,
    ) -> Vec<ToWorker> {
        let Some(group_rank) = self.group_rank(worker) else { return Vec::new() };
        let is_seated = self.seat(worker).is_some_and(|seat| seat.incarnation == incarnation);
        if !is_seated || self.is_adopted || self.started.contains(&worker) {
            return Vec::new();
        }
        let assign = ToWorker::Assign(self.assignment(group_rank, group));
        let start = self.master.map(|master| ToWorker::Start { generation: self.generation, master });
        std::iter::once(assign).chain(start).collect()
    }
}

impl Group {
    fn peer(&self, worker: WorkerId) -> PeerAddress {
        PeerAddress {
            worker,
            data_address: self.members.get(&worker).and_then(Member::present).and_then(|p| p.data_address),
            fingerprint: self.config.fingerprints.get(&worker).cloned().unwrap_or_default(),
            role: self.role(worker),
        }
    }
}
