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
use crate::rendezvous::client::Client;
use crate::rendezvous::message::{
    Assignment, CauseKind, Evidence, ExitStatus, PreflightFault, Registration, ToLauncher,
};
use crate::supervisor::{Family, Launch, RankExit, RankProcess, Supervisor, SupervisorEvent};
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
    /// From the ranks' thread.
    Supervisor(SupervisorEvent),
    /// The feeds of a generation are open.
    Entered(Generation, BTreeMap<Rank, RankFeed>),
    /// Where the ranks of a generation meet is open.
    StoreOpened(Generation, Meeting),
    /// An action failed.
    Failed(Generation, PreflightFault),
}

/// Where notes are dropped.
pub(super) type Notes = mpsc::Sender<Note>;

/// All that a worker holds.
pub(super) struct Shell {
    config: Arc<WorkerConfig>,
    inherited: Arc<BTreeMap<String, String>>,
    notes: Notes,
    client: Client,
    registration: watch::Sender<Registration>,
    supervisor: Supervisor,
    data: Option<Arc<DataSide>>,
    /// Why there is no data plane although the job has data.
    data_fault: Option<PreflightFault>,
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
    pub(super) inherited: BTreeMap<String, String>,
    pub(super) client: Client,
    pub(super) registration: watch::Sender<Registration>,
    pub(super) data: Result<Option<DataSide>, PreflightFault>,
}

impl Shell {
    /// Starts the ranks' thread. The receiver brings what [`Self::translate`] makes events of.
    pub(super) fn start(parts: Parts, family: Family) -> std::io::Result<(Self, mpsc::Receiver<Note>)> {
        let Parts { config, inherited, client, registration, data } = parts;
        let (notes, inbox) = mpsc::channel(NOTES_MAX);
        let tell = notes.clone();
        // Fails when the loop is gone; then nobody needs to know.
        let supervisor = Supervisor::start(family, move |event| {
            let _ = tell.blocking_send(Note::Supervisor(event));
        })?;
        let (data, data_fault) = match data {
            Ok(data) => (data.map(Arc::new), None),
            Err(fault) => (None, Some(fault)),
        };
        // What a killed worker of the same number left.
        remove_leftovers(&config);
        let shell = Self {
            config: Arc::new(config),
            inherited: Arc::new(inherited),
            notes,
            client,
            registration,
            supervisor,
            data,
            data_fault,
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
            Note::Supervisor(SupervisorEvent::Started { generation, pids }) => {
                Event::Started { generation, pids }
            }
            Note::Supervisor(SupervisorEvent::Exited(exit)) => Event::Exited(exit),
            Note::Supervisor(SupervisorEvent::Stopped { generation }) => Event::Stopped { generation },
            Note::Supervisor(SupervisorEvent::NotStarted { generation, rank, error }) => {
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
            Action::Heartbeat(session, generation, progress) => {
                let counters = self.data.as_ref().map(|data| data.counters()).unwrap_or_default();
                self.send(session, ToLauncher::Heartbeat { generation, progress, counters });
                self.rotate_logs();
            }
            Action::Running(running) => {
                self.registration.send_modify(|registration| registration.running = running);
            }
            Action::Check(generation) => self.check(generation),
            Action::Enter(assignment) => self.enter(assignment),
            Action::OpenStore { generation, world_size } => self.open_store(generation, world_size),
            Action::Launch { assignment, master } => self.launch(&assignment, master),
            Action::Examine(exit) => self.examine(exit),
            Action::Hang { generation, stuck } => self.report_hang(generation, stuck),
            Action::Stop { generation, grace } => self.supervisor.stop(generation, grace),
            Action::Leave(generation) => self.leave(generation),
            Action::Exit(outcome) => return Some(outcome),
        }
        None
    }

    /// Lets go of everything, in the order in which nothing can speak of what is gone. `inbox` is closed first, so
    /// that no thread waits for its reader.
    pub(super) async fn close(self, inbox: mpsc::Receiver<Note>) {
        let Self { client, supervisor, data, feeds, meeting, config, .. } = self;
        drop(inbox);
        drop(supervisor);
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
        let (config, inherited, notes) =
            (Arc::clone(&self.config), Arc::clone(&self.inherited), self.notes());
        let data_fault = self.data_fault.clone();
        tokio::task::spawn_blocking(move || {
            let mut faults = preflight::check(&config, &inherited);
            faults.extend(data_fault);
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

    fn launch(&mut self, assignment: &Assignment, master: std::net::SocketAddr) {
        let facts = crate::host::facts(&self.config.cpus);
        // Without a wish the scheduler is free.
        let cpus = if self.config.cpus.is_empty() { &[][..] } else { &facts.cpus };
        let plan = affinity::plan(cpus, &facts.numa, assignment.ranks.len());
        self.oom_kills = examine::oom_kills(Path::new("/"));
        let (logs, worker, generation) = (&self.config.log_folder, self.config.worker, assignment.generation);
        let flight_folder = files::flight_folder(logs, generation, worker);
        for folder in [&files::error_folder(logs, worker), &flight_folder] {
            if let Err(error) = fs::create_dir_all(folder) {
                tracing::warn!(%error, folder = %folder.display(), "ranks cannot leave what they know here");
            }
        }
        let interface = interface::of_address(Path::new("/"), self.config.bind);
        self.ranks.clone_from(&assignment.ranks);
        let ranks = (0..).zip(&assignment.ranks).zip(plan).map(|((local_rank, rank), cpus)| {
            let error_file = error_file(&self.config, generation, *rank);
            let env = environment::of_rank(&Inputs {
                inherited: &self.inherited,
                job_env: &self.config.run.env,
                job: &self.config.job,
                job_uid: &self.config.job_uid,
                worker,
                framework: self.config.run.framework,
                assignment,
                local_rank,
                rank: *rank,
                master,
                interface: interface.as_deref(),
                cpus: &cpus,
                data_socket: self.feeds.get(rank).map(|feed| feed.socket.as_str()),
                error_file: &error_file,
                flight_folder: &flight_folder,
                checkpoint_folder: &self.config.checkpoint_folder,
                python_folder: &self.config.python_folder,
            });
            RankProcess { rank: *rank, env, cpus, log: files::rank_log(logs, *rank) }
        });
        self.supervisor.launch(Launch {
            generation,
            cookie: sweep::cookie(&self.config.job_uid, generation, worker),
            command: self.config.run.command.clone(),
            workdir: self.config.run.workdir.clone(),
            ranks: ranks.collect(),
        });
    }

    fn examine(&self, exit: RankExit) {
        let (config, notes, oom_before) = (Arc::clone(&self.config), self.notes(), self.oom_kills);
        let RankExit { generation, rank, status, stopped_by_us, log_start } = exit;
        let error_file = error_file(&self.config, generation, rank);
        tokio::task::spawn_blocking(move || {
            let error_file = examine::error_file(&error_file);
            let evidence = evidence::judge(&Observation {
                rank,
                status,
                stopped_by_us,
                oom_counted: examine::oom_kills(Path::new("/")) > oom_before,
                error_file: error_file.as_deref(),
                log: &examine::log_end(&files::rank_log(&config.log_folder, rank), log_start),
                seen_unix_ns: unix_ns(),
            });
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
