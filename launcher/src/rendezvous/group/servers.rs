//! Data servers: workers without ranks that own the chunks of the data (pure).
//!
//! ```text
//! absent ──launched──▶ starting ──registered, ready──▶ joining ──started──▶ serving (all others have heard of it)
//!    ▲                                                                        │
//!    └────────────────────────── lost: the others hear of it at once ─────────┘
//! ```
//! None of it is worth a generation. A server that is lost is taken out of the list of peers, which the others are sent under
//! a growing number until they say that they have it; one that comes back is put in again. It is launched again on a budget
//! of its own, so that the job's restarts are not spent on it. The start of a generation waits for those that are on their
//! way, but not for long, and not twice for the same one.

use std::time::Duration;

use datapath::plane::Role;
use worker::rendezvous::message::{DataFacts, PreflightFault, ToWorker};
use worker::units::{Incarnation, WorkerId};

use super::budget::{Budget, RestartPolicy};
use super::state::{Member, Presence, State, World};
use super::{Action, Group, Now};

/// Launches of one data server: more in this time say that the next one would not help either. Then it is tried again when
/// the window has passed.
const LAUNCHES: RestartPolicy =
    RestartPolicy { max: 5, window: Duration::from_secs(600), backoff: Duration::from_secs(1) };

/// What is known of a data server beside its presence.
#[derive(Debug)]
pub(super) struct Server {
    launches: Budget,
    not_before: Duration,
    /// A generation has begun without it: the next one does not wait for it, until it has been there.
    is_late: bool,
    /// Why it does not serve; empty when nothing is known to be wrong.
    why: String,
}

/// A data server's part in a generation.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) incarnation: Incarnation,
    pub(super) is_started: bool,
    /// It is in the list of peers.
    pub(super) is_announced: bool,
}

/// The list of peers that everybody was sent last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SentRoster {
    roster: u64,
    at: Option<Duration>,
}

/// What happened to a data server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerNews {
    /// It served, and is lost.
    Lost,
    /// A generation begins without it.
    Missing,
    /// It serves again, or late.
    Back,
}

impl ServerNews {
    /// A stable word for it.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Lost => "server_lost",
            Self::Missing => "server_missing",
            Self::Back => "server_back",
        }
    }
}

/// How far a data server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// It owns chunks.
    Serving,
    /// It is on its way.
    Starting,
    /// It is not there.
    Lost,
}

/// One data server at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerView {
    /// Its number as a worker.
    pub worker: WorkerId,
    /// Its number among the data servers.
    pub number: u32,
    /// Its host's name; empty before it has registered.
    pub host: String,
    /// Its process.
    pub pid: Option<u32>,
    /// How far it is.
    pub state: ServerState,
    /// What is wrong with it; empty when nothing is.
    pub why: String,
}

impl Server {
    pub(super) fn new() -> Self {
        Self {
            launches: Budget::new(LAUNCHES),
            not_before: Duration::ZERO,
            is_late: false,
            why: String::new(),
        }
    }
}

impl Group {
    /// The number of the first data server: those of workers and spares are below.
    fn first_server(&self) -> u32 {
        self.config.workers.saturating_add(self.config.spares)
    }

    pub(super) fn is_server(&self, worker: WorkerId) -> bool {
        self.servers.contains_key(&worker)
    }

    pub(super) fn role(&self, worker: WorkerId) -> Role {
        if self.is_server(worker) { Role::Server } else { Role::Worker }
    }

    /// Those that may have ranks.
    pub(super) fn candidates(&self) -> impl Iterator<Item = (&WorkerId, &Member)> {
        self.members.iter().filter(|(worker, _)| !self.is_server(**worker))
    }

    /// Launches data servers that have no process, as often as their budget allows.
    pub(super) fn launch_servers(&mut self, now: Now) {
        if !matches!(
            self.state,
            State::Gathering { recorded: true, .. }
                | State::Preflight { .. }
                | State::Assigned { .. }
                | State::Joining { .. }
                | State::Running { .. }
                | State::Suspect { .. }
        ) {
            return;
        }
        let mut lost = Vec::new();
        for (worker, server) in &mut self.servers {
            let Some(member) = self.members.get_mut(worker) else { continue };
            match member.presence {
                Presence::Absent if now.elapsed >= server.not_before => {
                    let Some(pause) = server.launches.spend(now.elapsed) else { continue };
                    server.not_before = now.elapsed.saturating_add(pause);
                    member.presence = Presence::Launching { since: now.elapsed, pid: None };
                    self.out.push(Action::Launch { worker: *worker });
                }
                Presence::Lost if !member.is_being_swept => {
                    member.is_being_swept = true;
                    lost.push(*worker);
                }
                _ => {}
            }
        }
        if !lost.is_empty() {
            self.out.push(Action::Sweep { generation: self.generation, workers: lost });
        }
    }

    /// Those that are there and cannot take part are launched anew, as often as their budget allows: what they found when they
    /// started they say for as long as they run.
    pub(super) fn replace_refused_servers(&mut self, now: Now) {
        let Some(world) = self.active_world() else { return };
        let is_due = |(worker, server): &(&WorkerId, &Server)| {
            !world.servers.contains_key(worker)
                && now.elapsed >= server.not_before
                && server.launches.has_room(now.elapsed)
        };
        let due: Vec<WorkerId> = self.servers.iter().filter(is_due).map(|(worker, _)| *worker).collect();
        for worker in due {
            if let Some(why) = self.is_out(worker) {
                self.lose(worker, Presence::Lost, &why, now);
            }
        }
    }

    /// Why a data server that has checked itself takes part in nothing.
    fn is_out(&self, worker: WorkerId) -> Option<String> {
        let member = self.members.get(&worker).filter(|member| member.is_eligible())?;
        member.present()?.ready.as_ref()?;
        self.refusal(worker).err()
    }

    /// Whether a generation whose workers are all ready still waits for data servers.
    pub(super) fn awaits_servers(&self, since: Duration, now: Now) -> bool {
        now.elapsed < since.saturating_add(self.config.timing.servers) && !self.awaited_servers().is_empty()
    }

    /// Data servers that are on their way.
    pub(super) fn awaited_servers(&self) -> Vec<WorkerId> {
        let is_coming = |(worker, server): &(&WorkerId, &Server)| {
            !server.is_late
                && match self.members.get(worker).map(|member| &member.presence) {
                    Some(Presence::Launching { .. }) => true,
                    Some(Presence::Present(present)) => present.ready.is_none(),
                    _ => false,
                }
        };
        self.servers.iter().filter(is_coming).map(|(worker, _)| *worker).collect()
    }

    /// The data servers that a generation begins with; of the others it is said that they are missing.
    pub(super) fn ready_servers(&mut self) -> Vec<(WorkerId, Serving)> {
        let mut ready = Vec::new();
        for worker in self.servers.keys().copied().collect::<Vec<_>>() {
            match self.refusal(worker) {
                Ok(incarnation) => {
                    if let Some(server) = self.servers.get_mut(&worker) {
                        server.is_late = false;
                        server.why.clear();
                    }
                    ready.push((worker, Serving { incarnation, is_started: false, is_announced: true }));
                }
                Err(why) => self.miss(worker, &why),
            }
        }
        ready
    }

    /// Whether a data server can take part, or why not.
    fn refusal(&self, worker: WorkerId) -> Result<Incarnation, String> {
        let member = self.members.get(&worker).filter(|member| member.is_eligible());
        let Some(present) = member.and_then(Member::present) else {
            let known = self.servers.get(&worker).map(|server| server.why.clone()).unwrap_or_default();
            return Err(if known.is_empty() { "it has not registered in time".to_owned() } else { known });
        };
        match &present.ready {
            None => Err("it has not checked itself in time".to_owned()),
            Some(faults) if !faults.is_empty() => {
                Err(faults.iter().map(|fault| fault.message.as_str()).collect::<Vec<_>>().join("; "))
            }
            Some(_) if differs(present.data.as_ref(), self.data.as_ref()) => {
                Err("the data set is another one there".to_owned())
            }
            Some(_) => Ok(present.incarnation),
        }
    }

    /// A data server has checked itself: it takes part in the generation that runs, if one does.
    pub(super) fn server_ready(&mut self, worker: WorkerId, now: Now) {
        let is_new = self.active_world().is_some_and(|world| !world.servers.contains_key(&worker));
        // One that has been told to end is gone soon.
        let stays = self.members.get(&worker).is_some_and(Member::is_eligible);
        if !is_new || !stays {
            return;
        }
        match self.refusal(worker) {
            Ok(incarnation) => {
                let serving = Serving { incarnation, is_started: false, is_announced: false };
                if let Some(world) = self.active_world_mut() {
                    world.servers.insert(worker, serving);
                }
                self.tell(worker, now.elapsed);
            }
            Err(why) => self.miss(worker, &why),
        }
    }

    /// A data server owns chunks from now on.
    pub(super) fn server_started(&mut self, worker: WorkerId, now: Now) {
        let Some(serving) = self.active_world_mut().and_then(|world| world.servers.get_mut(&worker)) else {
            return;
        };
        serving.is_started = true;
        if std::mem::replace(&mut serving.is_announced, true) {
            return;
        }
        if let Some(server) = self.servers.get_mut(&worker) {
            server.is_late = false;
            server.why.clear();
        }
        self.announce(now);
        let message = format!("{} serves chunks", self.server_name(worker));
        self.out.push(Action::Server { worker, news: ServerNews::Back, message });
    }

    /// A data server that registers says that it serves the generation that runs: it does so for an earlier launcher.
    pub(super) fn server_resumes(&mut self, worker: WorkerId, incarnation: Incarnation, now: Now) {
        if let Some(world) = self.active_world_mut() {
            world.servers.insert(worker, Serving { incarnation, is_started: true, is_announced: true });
            self.announce(now);
        }
    }

    /// A data server is there no longer, or says that it cannot go on.
    pub(super) fn server_lost(&mut self, worker: WorkerId, why: &str, now: Now) {
        let left = self.active_world_mut().and_then(|world| world.servers.remove(&worker));
        match self.state {
            State::Pending | State::Clearing { .. } | State::Ending { .. } | State::Over(_) => return,
            // The other launches are tried first.
            State::Gathering { .. } | State::Preflight { .. } => self.note(worker, why),
            _ if left.as_ref().is_some_and(|serving| serving.is_announced) => {
                self.name(worker, ServerNews::Lost, why);
            }
            _ => self.note(worker, why),
        }
        if left.is_some_and(|serving| serving.is_announced) {
            self.announce(now);
        }
        // A process that has left a generation never comes back to it.
        if self.active_world().is_some()
            && let Some(present) = self.members.get_mut(&worker).and_then(Member::present_mut)
        {
            let (code, message, hint) = ("left".to_owned(), why.to_owned(), String::new());
            present.ready = Some(vec![PreflightFault { code, message, hint }]);
        }
        self.launch_servers(now);
        self.close_preflight(now);
    }

    /// It goes on without a data server, and later generations do not wait for that.
    fn miss(&mut self, worker: WorkerId, why: &str) {
        self.name(worker, ServerNews::Missing, why);
        if let Some(server) = self.servers.get_mut(&worker) {
            server.is_late = true;
        }
    }

    fn note(&mut self, worker: WorkerId, why: &str) {
        if let Some(server) = self.servers.get_mut(&worker) {
            why.clone_into(&mut server.why);
        }
    }

    /// Says what is wrong with a data server, once until it serves again.
    fn name(&mut self, worker: WorkerId, news: ServerNews, why: &str) {
        let is_known = news == ServerNews::Missing
            && self.servers.get(&worker).is_some_and(|server| server.is_named(why));
        self.note(worker, why);
        if is_known {
            return;
        }
        let who = self.server_name(worker);
        let left = self.world().map_or(0, |world| world.servers.len());
        let then = match (news, left) {
            (ServerNews::Missing, _) => String::new(),
            (_, 0) => "; the workers with ranks read its chunks themselves".to_owned(),
            (_, 1) => "; the other data server owns its chunks".to_owned(),
            (_, left) => format!("; the other {left} data servers own its chunks"),
        };
        let what = match news {
            ServerNews::Lost => "was lost",
            ServerNews::Missing | ServerNews::Back => "is missing",
        };
        let message = format!("{who} {what}: {why}{then}");
        self.out.push(Action::Server { worker, news, message });
    }

    fn server_name(&self, worker: WorkerId) -> String {
        let number = worker.0.saturating_sub(self.first_server());
        format!("data server {number} (worker {worker})")
    }

    /// The generation in which things go on.
    fn active_world(&self) -> Option<&World> {
        match &self.state {
            State::Fencing { .. } => None,
            _ => self.world(),
        }
    }

    fn active_world_mut(&mut self) -> Option<&mut World> {
        match &mut self.state {
            State::Assigned { world }
            | State::Joining { world }
            | State::Running { world }
            | State::Suspect { world, .. } => Some(world),
            _ => None,
        }
    }

    /// Gives the list of peers a new number, and sends it at once where the last one is a while ago: when many data servers come
    /// or go together, nobody is sent a list for each of them.
    fn announce(&mut self, now: Now) {
        let Some(world) = self.active_world_mut() else { return };
        world.roster += 1;
        self.send_roster(now);
    }

    /// Sends the list of peers to everybody who has a part in the generation, if it is another one and it is time.
    pub(super) fn send_roster(&mut self, now: Now) {
        let gap = self.config.timing.heartbeat;
        let Some(world) = self.active_world_mut() else { return };
        // An earlier launcher's data servers are still registering: until they have, the list that is out is the better one.
        if !world.knows_servers || world.sent.roster >= world.roster {
            return;
        }
        if world.sent.at.is_some_and(|at| now.elapsed < at.saturating_add(gap)) {
            return;
        }
        world.sent = SentRoster { roster: world.roster, at: Some(now.elapsed) };
        let (generation, roster) = (world.generation, world.roster);
        let seats = world.seats.iter().map(|seat| seat.worker);
        let everybody: Vec<WorkerId> = seats.chain(world.servers.keys().copied()).collect();
        let Some(peers) = self.world().map(|world| world.peers(self)) else { return };
        for worker in everybody {
            if let Some(present) = self.members.get_mut(&worker).and_then(Member::present_mut) {
                present.told = now.elapsed;
            }
            self.send(worker, ToWorker::Peers { generation, roster, peers: peers.clone() });
        }
    }

    /// A worker says which list of peers it has. A launcher that has taken over learns by it how far the last one had counted.
    pub(super) fn roster_heard(&mut self, worker: WorkerId, roster: u64, now: Now) {
        if let Some(present) = self.members.get_mut(&worker).and_then(Member::present_mut) {
            present.roster = roster;
        }
        let Some(world) = self.active_world_mut().filter(|world| world.roster < roster) else { return };
        world.roster = roster;
        self.announce(now);
    }

    /// When all data servers of an adopted generation have come, or must have, the list of peers is this launcher's.
    pub(super) fn settle_servers(&mut self, now: Now) {
        let (wanted, lease) = (self.servers.len(), self.config.timing.lease);
        let Some(world) = self.active_world_mut().filter(|world| !world.knows_servers) else { return };
        let is_time = now.elapsed > world.since.saturating_add(lease);
        if !world.awaited.is_empty() || world.servers.len() < wanted && !is_time {
            return;
        }
        world.knows_servers = true;
        self.announce(now);
    }

    /// What a data server must do now and has not answered yet; and for everybody, the list of peers.
    pub(super) fn due_of_servers(&self, worker: WorkerId) -> Vec<ToWorker> {
        let Some((world, present)) =
            self.active_world().zip(self.members.get(&worker).and_then(Member::present))
        else {
            return Vec::new();
        };
        if let Some(serving) = world.servers.get(&worker).filter(|serving| !serving.is_started) {
            if serving.incarnation != present.incarnation {
                return Vec::new();
            }
            let generation = world.generation;
            let start = world.master.map(|master| ToWorker::Start { generation, master });
            return std::iter::once(ToWorker::Assign(world.server_assignment(self))).chain(start).collect();
        }
        if self.is_server(worker) && !world.servers.contains_key(&worker) {
            let is_asked = present.ready.is_none();
            return is_asked
                .then_some(ToWorker::Gather { generation: world.generation })
                .into_iter()
                .collect();
        }
        let has_part = world.started.contains(&worker)
            || world.servers.contains_key(&worker)
            || world.is_adopted && world.seat(worker).is_some();
        if has_part && world.knows_servers && present.roster < world.roster {
            let (generation, roster) = (world.generation, world.roster);
            return vec![ToWorker::Peers { generation, roster, peers: world.peers(self) }];
        }
        Vec::new()
    }

    /// The data servers, or how they were when the job ended.
    #[must_use]
    pub fn servers(&self) -> Vec<ServerView> {
        if !self.last_servers.is_empty() {
            return self.last_servers.clone();
        }
        self.servers.iter().map(|(worker, server)| self.server_view(*worker, server)).collect()
    }

    fn server_view(&self, worker: WorkerId, server: &Server) -> ServerView {
        let member = self.members.get(&worker);
        let present = member.and_then(Member::present);
        let serves = self.world().and_then(|world| world.servers.get(&worker));
        let state = match (member.map(|member| &member.presence), serves) {
            (Some(Presence::Present(_)), Some(serving)) if serving.is_announced => ServerState::Serving,
            (Some(Presence::Present(_)), None) if self.is_out(worker).is_some() => ServerState::Lost,
            (Some(Presence::Present(_) | Presence::Launching { .. }), _) => ServerState::Starting,
            _ => ServerState::Lost,
        };
        ServerView {
            worker,
            number: worker.0.saturating_sub(self.first_server()),
            host: present.map(|present| present.host.name.clone()).unwrap_or_default(),
            pid: present.map(|present| present.pid),
            state,
            why: server.why.clone(),
        }
    }
}

impl Server {
    /// Whether the same has been said, and nothing better has happened since.
    fn is_named(&self, why: &str) -> bool {
        self.is_late && self.why == why
    }
}

/// Whether a data server has found another data set than the job's workers.
fn differs(found: Option<&DataFacts>, agreed: Option<&DataFacts>) -> bool {
    found.is_some() && agreed.is_some() && found != agreed
}
