//! The hands of the agent: does what the machine decides, and tells it what happened.
//!
//! Nothing here waits: whatever takes time is a task or the supervisor's thread, and its answer is a [`Note`].

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use tokio::sync::{mpsc, watch};

use super::data::{DataSide, RankFeed};
use super::machine::{Action, Event, Stuck};
use super::meeting::Meeting;
use super::{Outcome, examine, preflight, rotate};
use crate::config::WorkerConfig;
use crate::environment::{self, Inputs};
use crate::evidence::{self, Observation};
use crate::host::interface;
use crate::pod::link::Orders;
use crate::pod::message::Surroundings;
use crate::pod::status::Status;
use crate::ranks::{Prepare, Ranks, RanksEvent};
use crate::rendezvous::client::Client;
use crate::rendezvous::message::{
    Assignment, CauseKind, Evidence, ExitStatus, PeerAddress, PreflightFault, Registration, ToLauncher,
};
use crate::supervisor::{Container, Family, Launch, RankExit, RankProcess, Supervisor, SupervisorEvent};
use crate::units::{Generation, Rank};
use crate::{affinity, files, sweep};

/// Notes that wait for the agent's loop: a few per rank, and the feeds wait when it is full.
const NOTES_MAX: usize = 1_024;
/// What a shell would return for a program that is missing, and for one that cannot be executed.
const CODE_MISSING: i32 = 127;
const CODE_NOT_EXECUTABLE: i32 = 126;

/// What happened, on its way to the machine.
#[derive(Debug)]
pub(super) enum Note {
    /// The machine can have it as it is.
    Event(Event),
    /// From whoever executes the ranks.
    Ranks(RanksEvent),
    /// The feeds of a generation are open.
    Entered(Generation, BTreeMap<Rank, RankFeed>),
    /// Where the ranks of a generation meet is open.
    StoreOpened(Generation, Meeting),
    /// An action failed.
    Failed(Generation, PreflightFault),
}

/// Where notes are dropped.
pub(super) type Notes = mpsc::Sender<Note>;

/// An environment; none where ranks run in another container, which has its own.
type Inherited = Option<Arc<BTreeMap<String, String>>>;

/// All that a worker holds.
pub(super) struct Shell {
    config: Arc<WorkerConfig>,
    /// What ranks inherit; none where they run in another container.
    inherited: Inherited,
    notes: Notes,
    client: Client,
    registration: watch::Sender<Registration>,
    ranks_home: Ranks,
    /// What others may see of this worker, in a pod.
    status: Option<Arc<Status>>,
    data: Option<Arc<DataSide>>,
    /// Why there is no data plane although the job has data.
    data_faults: Vec<PreflightFault>,
    feeds: BTreeMap<Rank, RankFeed>,
    meeting: Option<(Generation, Meeting)>,
    /// This generation and all before are over: what still opens for them is closed at once.
    left: Generation,
    /// Whose logs are growing.
    ranks: Vec<Rank>,
    /// Whether somebody looks at the logs' lengths now.
    rotating: Arc<AtomicBool>,
    oom_kills: u64,
}

/// What a shell is made of.
pub(super) struct Parts {
    pub(super) config: WorkerConfig,
    pub(super) home: RanksHome,
    pub(super) client: Client,
    pub(super) registration: watch::Sender<Registration>,
    pub(super) data: Result<Option<DataSide>, Vec<PreflightFault>>,
    /// What others may see of this worker, in a pod.
    pub(super) status: Option<Arc<Status>>,
}

/// Where the ranks will run.
pub(super) enum RanksHome {
    /// As children of this process, with this environment.
    Here(Family, BTreeMap<String, String>),
    /// In another container of this pod.
    There(Orders, mpsc::Receiver<RanksEvent>),
}

impl Shell {
    /// Starts the ranks' thread. The receiver brings what [`Self::translate`] makes events of.
    pub(super) fn start(parts: Parts) -> std::io::Result<(Self, mpsc::Receiver<Note>)> {
        let Parts { config, home, client, registration, data, status } = parts;
        let (notes, inbox) = mpsc::channel(NOTES_MAX);
        let (ranks_home, inherited) = settle(home, &config, notes.clone())?;
        let (data, data_faults) = match data {
            Ok(data) => (data.map(Arc::new), Vec::new()),
            Err(faults) => (None, faults),
        };
        // What a killed worker of the same number left.
        remove_leftovers(&config);
        let shell = Self {
            config: Arc::new(config),
            inherited,
            notes,
            client,
            registration,
            ranks_home,
            status,
            data,
            data_faults,
            feeds: BTreeMap::new(),
            meeting: None,
            left: Generation::default(),
            ranks: Vec::new(),
            rotating: Arc::new(AtomicBool::new(false)),
            oom_kills: 0,
        };
        Ok((shell, inbox))
    }

    pub(super) fn notes(&self) -> Notes {
        self.notes.clone()
    }

    /// Keeps what a note carries and says what the machine must know of it.
    pub(super) fn translate(&mut self, note: Note) -> Event {
        match note {
            Note::Event(event) => event,
            Note::Entered(generation, feeds) => {
                if generation > self.left {
                    self.feeds = feeds;
                }
                Event::Entered { generation }
            }
            Note::StoreOpened(generation, meeting) => {
                let address = meeting.address();
                if generation > self.left {
                    self.meeting = Some((generation, meeting));
                }
                Event::StoreOpened { generation, address }
            }
            Note::Failed(generation, fault) => {
                Event::Trouble { generation, evidence: evidence::of_fault(&fault, unix_ns()) }
            }
            Note::Ranks(RanksEvent::Terminating(generation)) => {
                Event::Trouble { generation, evidence: evidence::container_told_to_stop(unix_ns()) }
            }
            Note::Ranks(RanksEvent::Supervisor(event)) => self.of_supervisor(event),
        }
    }

    fn of_supervisor(&self, event: SupervisorEvent) -> Event {
        match event {
            SupervisorEvent::Started { generation, pids } => Event::Started { generation, pids },
            SupervisorEvent::Exited(exit) => Event::Exited(exit),
            SupervisorEvent::Stopped { generation } => Event::Stopped { generation },
            SupervisorEvent::NotStarted { generation, rank, error } => {
                let program = self.config.run.command.first().map_or("", String::as_str);
                let evidence = evidence::not_started(rank, program, &error, unix_ns());
                let missing = error.kind() == std::io::ErrorKind::NotFound;
                let code = if missing { CODE_MISSING } else { CODE_NOT_EXECUTABLE };
                Event::NotStarted { generation, rank, status: ExitStatus::Code { code }, evidence }
            }
        }
    }

    /// Does one thing; the worker's outcome if that was the last.
    pub(super) fn perform(&mut self, action: Action) -> Option<Outcome> {
        match action {
            Action::Send(session, message) => self.send(session, message),
            Action::Heartbeat(session, generation, roster, progress) => {
                let counters = self.data.as_ref().map(|data| data.counters()).unwrap_or_default();
                if let Some(status) = &self.status {
                    status.count(counters);
                }
                self.send(session, ToLauncher::Heartbeat { generation, progress, counters, roster });
                self.rotate_logs();
            }
            Action::Running(running) => {
                self.registration.send_modify(|registration| registration.running = running);
            }
            Action::Check(generation) => self.check(generation),
            Action::Enter(assignment) => self.enter(assignment),
            Action::Meet { generation, roster, peers } => self.meet(generation, roster, peers),
            Action::OpenStore { generation, world_size } => self.open_store(generation, world_size),
            Action::Launch { assignment, master } => self.launch(assignment, master),
            Action::Examine(exit) => self.examine(exit),
            Action::Hang { generation, stuck } => self.report_hang(generation, stuck),
            Action::Stop { generation, grace } => self.ranks_home.stop(generation, grace),
            Action::Leave(generation) => self.leave(generation),
            Action::Exit(outcome) => return Some(outcome),
        }
        None
    }

    /// Lets go of everything, in the order in which nothing can speak of what is gone. `inbox` is closed first, so
    /// that no thread waits for its reader.
    pub(super) async fn close(self, inbox: mpsc::Receiver<Note>) {
        let Self { client, ranks_home, data, feeds, meeting, config, .. } = self;
        drop(inbox);
        drop(ranks_home);
        drop(feeds);
        drop(meeting);
        remove_leftovers(&config);
        client.close().await;
        if let Some(data) = data.and_then(Arc::into_inner) {
            data.close().await;
        }
    }

    fn send(&self, session: crate::rendezvous::client::SessionId, message: ToLauncher) {
        if !self.client.send(session, message) {
            tracing::warn!("the connection to the launcher is stuck; a message is dropped");
        }
    }

    fn check(&self, generation: Generation) {
        let (config, inherited, notes) = (Arc::clone(&self.config), self.inherited.clone(), self.notes());
        let data_faults = self.data_faults.clone();
        tokio::task::spawn_blocking(move || {
            let mut faults = preflight::check(&config, inherited.as_deref());
            faults.extend(data_faults);
            let _ = notes.blocking_send(Note::Event(Event::Checked { generation, faults }));
        });
    }

    fn enter(&self, assignment: Assignment) {
        let (Some(data), notes) = (self.data.clone(), self.notes()) else { return };
        tokio::spawn(async move {
            let generation = assignment.generation;
            let note = match data.enter(&assignment, &notes).await {
                Ok(feeds) => Note::Entered(generation, feeds),
                Err(fault) => Note::Failed(generation, fault),
            };
            let _ = notes.send(note).await;
        });
    }

    fn meet(&self, generation: Generation, roster: u64, peers: Vec<PeerAddress>) {
        let (Some(data), notes) = (self.data.clone(), self.notes()) else { return };
        tokio::spawn(async move {
            if let Err(fault) = data.meet(generation, roster, &peers).await {
                let _ = notes.send(Note::Failed(generation, fault)).await;
            }
        });
    }

    fn open_store(&self, generation: Generation, world_size: u32) {
        let (config, notes) = (Arc::clone(&self.config), self.notes());
        tokio::task::spawn_blocking(move || {
            let note = match Meeting::open(config.run.framework, config.bind, world_size) {
                Ok(meeting) => Note::StoreOpened(generation, meeting),
                Err(fault) => Note::Failed(generation, fault),
            };
            let _ = notes.blocking_send(note);
        });
    }

    fn launch(&mut self, assignment: Assignment, master: std::net::SocketAddr) {
        self.oom_kills = examine::oom_kills(Path::new("/"));
        let (logs, worker, generation) = (&self.config.log_folder, self.config.worker, assignment.generation);
        for folder in [files::error_folder(logs, worker), files::flight_folder(logs, generation, worker)] {
            if let Err(error) = fs::create_dir_all(&folder) {
                tracing::warn!(%error, folder = %folder.display(), "ranks cannot leave what they know here");
            }
        }
        self.ranks.clone_from(&assignment.ranks);
        let ranks = assignment.ranks.clone();
        let sockets = self.feeds.iter().map(|(rank, feed)| (*rank, feed.socket.clone())).collect();
        let config = Arc::clone(&self.config);
        let prepare: Prepare =
            Box::new(move |surroundings| launch_of(&config, &assignment, master, &sockets, surroundings));
        self.ranks_home.launch(generation, &ranks, prepare);
    }

    fn examine(&self, exit: RankExit) {
        let (config, notes, oom_before) = (Arc::clone(&self.config), self.notes(), self.oom_kills);
        let RankExit { generation, rank, status, stopped_by_us, log_start, container } = exit;
        let error_file = error_file(&self.config, generation, rank);
        tokio::task::spawn_blocking(move || {
            let error_file = examine::error_file(&error_file);
            let log = examine::log_end(&files::rank_log(&config.log_folder, rank), log_start);
            let oom_counted = match container {
                Container::Ours => examine::oom_kills(Path::new("/")) > oom_before,
                Container::Other { oom_counted } => oom_counted,
                Container::Gone => false,
            };
            let evidence = if container == Container::Gone && !stopped_by_us {
                Some(evidence::container_gone(rank, &log, unix_ns()))
            } else {
                evidence::judge(&Observation {
                    rank,
                    status,
                    stopped_by_us,
                    oom_counted,
                    error_file: error_file.as_deref(),
                    log: &log,
                    seen_unix_ns: unix_ns(),
                })
            };
            let _ = notes.blocking_send(Note::Event(Event::Examined { generation, rank, evidence }));
        });
    }

    fn report_hang(&self, generation: Generation, stuck: Stuck) {
        let (config, notes) = (Arc::clone(&self.config), self.notes());
        tokio::task::spawn_blocking(move || {
            let Stuck { rank, step, quiet } = stuck;
            let evidence = Evidence {
                rank: Some(rank),
                cause: CauseKind::Hang,
                seen_unix_ns: unix_ns(),
                message: match step {
                    Some(step) => format!("no step for {:.1} s, the last one was {step}", quiet.as_secs_f64()),
                    None => format!("no step in the {:.1} s since its start", quiet.as_secs_f64()),
                },
                hint: "the end of its log may show where; a longer spec.hang.timeout lets slow steps and a slow \
                       start-up pass"
                    .to_owned(),
                log_tail: evidence::tail(&examine::log_end(&files::rank_log(&config.log_folder, rank), 0)),
            };
            let _ = notes.blocking_send(Note::Event(Event::Trouble { generation, evidence }));
        });
    }

    fn leave(&mut self, generation: Generation) {
        self.left = self.left.max(generation);
        self.feeds.clear();
        self.ranks.clear();
        remove_leftovers(&self.config);
        if let Some((_, meeting)) = self.meeting.take_if(|(of, _)| *of <= generation) {
            meeting.close();
        }
    }

    /// Keeps the logs of the running ranks within their bound; one look at a time.
    fn rotate_logs(&self) {
        if self.ranks.is_empty() || self.rotating.swap(true, Ordering::AcqRel) {
            return;
        }
        let (config, ranks, rotating) =
            (Arc::clone(&self.config), self.ranks.clone(), Arc::clone(&self.rotating));
        tokio::task::spawn_blocking(move || {
            for rank in ranks {
                let log = files::rank_log(&config.log_folder, rank);
                let by_way_of = files::rotating_log(&config.log_folder, config.worker, rank);
                if let Err(error) = rotate::rotate_if_long(&log, &by_way_of, rotate::RANK_LOG_BYTES_MAX) {
                    tracing::warn!(%error, %rank, "cannot shorten a rank's log");
                }
            }
            rotating.store(false, Ordering::Release);
        });
    }
}

/// Lets whoever is to execute the ranks tell the agent's loop.
fn settle(home: RanksHome, config: &WorkerConfig, notes: Notes) -> std::io::Result<(Ranks, Inherited)> {
    match home {
        RanksHome::Here(family, inherited) => {
            // Fails when the loop is gone; then nobody needs to know.
            let supervisor = Supervisor::start(family, move |event| {
                let _ = notes.blocking_send(Note::Ranks(RanksEvent::Supervisor(event)));
            })?;
            // Without a wish the scheduler is free.
            let cpus =
                if config.cpus.is_empty() { Vec::new() } else { crate::host::facts(&config.cpus).cpus };
            let workdir = config.run.workdir.clone();
            let surroundings = Surroundings { env: inherited.clone(), cpus, workdir };
            Ok((Ranks::Here(supervisor, surroundings), Some(Arc::new(inherited))))
        }
        RanksHome::There(orders, mut events) => {
            tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    if notes.send(Note::Ranks(event)).await.is_err() {
                        return;
                    }
                }
            });
            Ok((Ranks::There(orders), None))
        }
    }
}

/// The ranks of a generation, as they are to be executed among these surroundings.
fn launch_of(
    config: &WorkerConfig,
    assignment: &Assignment,
    master: std::net::SocketAddr,
    sockets: &BTreeMap<Rank, String>,
    surroundings: &Surroundings,
) -> Launch {
    let (logs, worker, generation) = (&config.log_folder, config.worker, assignment.generation);
    let numa = crate::host::facts(&[]).numa;
    let plan = affinity::plan(&surroundings.cpus, &numa, assignment.ranks.len());
    let interface = interface::of_address(Path::new("/"), config.bind);
    let flight_folder = files::flight_folder(logs, generation, worker);
    let ranks = (0..).zip(&assignment.ranks).zip(plan).map(|((local_rank, rank), cpus)| {
        let error_file = error_file(config, generation, *rank);
        let env = environment::of_rank(&Inputs {
            inherited: &surroundings.env,
            job_env: &config.run.env,
            job: &config.job,
            job_uid: &config.job_uid,
            worker,
            framework: config.run.framework,
            assignment,
            local_rank,
            rank: *rank,
            master,
            interface: interface.as_deref(),
            cpus: &cpus,
            data_socket: sockets.get(rank).map(String::as_str),
            error_file: &error_file,
            flight_folder: &flight_folder,
            checkpoint_folder: &config.checkpoint_folder,
            python_folder: &config.python_folder,
        });
        RankProcess { rank: *rank, env, cpus, log: files::rank_log(logs, *rank) }
    });
    // In a pod the image may say where its program runs.
    let workdir =
        if config.run.workdir.as_os_str().is_empty() { &surroundings.workdir } else { &config.run.workdir };
    Launch {
        generation,
        cookie: sweep::cookie(&config.job_uid, generation, worker),
        command: config.run.command.clone(),
        workdir: workdir.clone(),
        ranks: ranks.collect(),
    }
}

/// Where a rank may leave torch's error file.
fn error_file(config: &WorkerConfig, generation: Generation, rank: Rank) -> PathBuf {
    files::error_folder(&config.log_folder, config.worker).join(format!("{generation}-{rank}.json"))
}

fn remove_leftovers(config: &WorkerConfig) {
    if let Err(error) = files::remove_leftovers(&config.log_folder, config.worker) {
        tracing::warn!(%error, "cannot remove what ranks left in the log folder");
    }
}

/// The wall clock, for evidence that is compared between hosts.
pub(super) fn unix_ns() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "a shell: evidence carries the time at which it was seen")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
