//! What a worker knows of its launcher and of the current generation (pure).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::event::FeedNews;
use super::progress::{Progress, Stuck};
use super::{GRACE, Now};
use crate::rendezvous::client::SessionId;
use crate::rendezvous::message::{Assignment, Evidence, ExitStatus, PeerAddress, PreflightFault, ToLauncher};
use crate::supervisor::RankExit;
use crate::units::{Generation, Rank};

/// How long a worker looks for its launcher before the first welcome.
pub(super) const JOIN_MAX: Duration = Duration::from_secs(60);

/// The way to the launcher.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) session: Option<SessionId>,
    /// The session on which the launcher has welcomed us: only there may anything be said.
    pub(super) welcomed: Option<SessionId>,
    pub(super) lease: Duration,
    pub(super) heartbeat: Duration,
    pub(super) last_contact: Now,
    pub(super) last_heartbeat: Now,
    /// The lease is over and the ranks were told to stop; nothing more follows from its end.
    pub(super) given_up: bool,
}

/// One generation.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) generation: Generation,
    /// What will be fenced with it: a fence may name a later generation than we ever saw.
    pub(super) fence_as: Generation,
    pub(super) ready: Option<Vec<PreflightFault>>,
    pub(super) assignment: Option<Assignment>,
    pub(super) entered: bool,
    /// The number of the last list of peers that came.
    pub(super) roster: u64,
    /// That list, while the data plane has not entered.
    pub(super) peers: Option<Vec<PeerAddress>>,
    pub(super) store: Option<SocketAddr>,
    pub(super) master: Option<SocketAddr>,
    pub(super) launched: bool,
    pub(super) started: Option<BTreeMap<Rank, u32>>,
    pub(super) exits: BTreeMap<Rank, Exit>,
    pub(super) troubles: Vec<Evidence>,
    pub(super) hang_told: bool,
    pub(super) progress: Progress,
    pub(super) stop: Stopping,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stopping {
    No,
    Asked,
    Done,
}

/// A rank's end on its way to the launcher.
#[derive(Debug)]
pub(super) enum Exit {
    Draining { exit: RankExit, until: Now },
    Examining { status: ExitStatus },
    Told { status: ExitStatus, evidence: Option<Evidence> },
}

impl Link {
    /// When the ranks must begin to stop, so that none is left when the launcher's lease ends. The launcher counts
    /// from the last heartbeat that it saw, which may be an interval older than our last contact.
    pub(super) fn lost_at(&self) -> Now {
        let usable = self.lease.saturating_sub(self.heartbeat).saturating_sub(self.margin());
        self.last_contact + usable
    }

    /// What stopping may take.
    pub(super) fn margin(&self) -> Duration {
        (self.lease / 4).min(GRACE)
    }
}

impl Run {
    /// `outlives`: its launcher may be replaced while it runs.
    pub(super) fn new(generation: Generation, outlives: bool) -> Self {
        Self {
            generation,
            fence_as: generation,
            ready: None,
            assignment: None,
            entered: false,
            roster: 0,
            peers: None,
            store: None,
            master: None,
            launched: false,
            started: None,
            exits: BTreeMap::new(),
            troubles: Vec::new(),
            hang_told: false,
            progress: Progress::for_later_launchers(outlives),
            stop: Stopping::No,
        }
    }

    pub(super) fn started_message(&self) -> Option<ToLauncher> {
        let pids = self.started.clone()?;
        Some(ToLauncher::Started { generation: self.generation, pids })
    }

    pub(super) fn on_feed(&mut self, rank: Rank, news: FeedNews, now: Now) {
        if news == FeedNews::Detached
            && let Some(Exit::Draining { until, .. }) = self.exits.get_mut(&rank)
        {
            *until = now;
        }
        self.progress.note(rank, news, now);
    }

    pub(super) fn find_stuck(&self, limit: Option<Duration>, now: Now) -> Option<Stuck> {
        let limit = limit.filter(|_| self.watches_for_hangs())?;
        self.progress.stuck(limit, now, |rank| !self.exits.contains_key(&rank))
    }

    pub(super) fn hang_deadline(&self, limit: Option<Duration>) -> Option<Now> {
        let limit = limit.filter(|_| self.watches_for_hangs())?;
        self.progress.stuck_deadline(limit, |rank| !self.exits.contains_key(&rank))
    }

    fn watches_for_hangs(&self) -> bool {
        !self.hang_told && self.stop == Stopping::No
    }
}

/// The run, if it is of this generation and nobody is stopping it.
pub(super) fn current(run: &mut Option<Run>, generation: Generation) -> Option<&mut Run> {
    current_or_stopping(run, generation).filter(|run| run.stop == Stopping::No)
}

pub(super) fn current_or_stopping(run: &mut Option<Run>, generation: Generation) -> Option<&mut Run> {
    run.as_mut().filter(|run| run.generation == generation)
}
