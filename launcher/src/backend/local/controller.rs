//! One job's controller: the shell around the membership state machine. It owns the journal, the processes, the
//! rendezvous and the clock; every decision is the group's.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use worker::rendezvous::message::ToWorker;
use worker::units::{Incarnation, WorkerId};

use super::folder::{Folder, Lock};
use super::journal::writer::{Order, Writer, Written};
use super::journal::{Entry, Journal};
use super::processes::{ProcessEvent, Processes};
use super::report::Reporter;
use super::setup::Setup;
use crate::backend::clock::{clock, since_unix_epoch, unix_ms};
use crate::backend::{JobStatus, Phase, ProgressEvent};
use crate::error::{ExitCode, Failure};
use crate::rendezvous::authority::{Authority, Seed};
use crate::rendezvous::group::{Action, Event, Group, NO_PROCESS, Now, Outcome, RecordId};
use crate::rendezvous::server::{self, Inbound, Outbound, Server};

/// How often time passes for the group: a tenth of its shortest limit that a person notices.
const TICK: Duration = Duration::from_millis(50);

/// How long the end of all processes is waited for when the job must be given up at once: longer than the kernel needs
/// to take a killed process's memory back.
const ABANDON_MAX: Duration = Duration::from_secs(30);

/// What can be asked of a controller from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// End the job; the ranks may save what they have.
    Cancel,
    /// End it at once.
    CancelNow,
}

/// The running controller.
pub(super) struct Controller {
    folder: Folder,
    setup: Setup,
    group: Group,
    journal: Writer,
    processes: Processes,
    sessions: BTreeMap<(WorkerId, Incarnation), Outbound>,
    server: Server,
    _entry: server::Entry,
    reporter: Reporter,
    phase: Phase,
    started: Instant,
    cancelling: bool,
    _lock: Lock,
}

/// What a controller hears.
struct Ears {
    inbound: mpsc::Receiver<Inbound>,
    processes: mpsc::Receiver<ProcessEvent>,
    wishes: mpsc::Receiver<Wish>,
    written: watch::Receiver<Written>,
}

/// Controls the job to its end and returns its last status.
pub(super) async fn run(
    folder: Folder,
    lock: Lock,
    mut setup: Setup,
    wishes: mpsc::Receiver<Wish>,
    events: mpsc::Sender<ProgressEvent>,
) -> Result<JobStatus, Failure> {
    let internal = |error: &dyn std::error::Error| Failure::from_error(ExitCode::Internal, error);
    let total = setup.worker_count();
    let seed = Seed::draw().map_err(|error| internal(&error))?;
    let mut authority = Authority::new(&setup.uid, seed).map_err(|error| internal(&error))?;
    for worker in (0..total).map(WorkerId) {
        let identity = authority.worker(worker).map_err(|error| internal(&error))?;
        setup.identities.insert(worker, identity);
    }
    let server = Server::start((Ipv4Addr::LOCALHOST, 0).into()).map_err(|error| {
        Failure::from_error(ExitCode::Unavailable, &error).hint("are the ports of 127.0.0.1 used up?")
    })?;
    let (entry, inbound) = server.enlist(&setup.uid, &authority).map_err(|error| internal(&error))?;
    let cannot_write = |error: std::io::Error| {
        let path = folder.path().display();
        Failure::new(ExitCode::CannotCreate, format!("failed to write into {path}")).because(&error)
    };
    let mut journal = Journal::open(&folder.journal()).map_err(cannot_write)?;
    let begun = Entry::Controller { pid: std::process::id(), workers: setup.job.workers.count.get() };
    journal.append(unix_ms(), &begun, false).map_err(cannot_write)?;
    let (journal, written) = Writer::start(journal).map_err(|error| internal(&error))?;
    let program = this_program().map_err(|error| internal(&error))?;
    let (processes, process_events) = Processes::new(
        program,
        setup.uid.clone(),
        usize::try_from(total).unwrap_or(usize::MAX),
        folder.logs(),
    );
    let group = Group::new(setup.group_config(), setup.memory.clone());
    let reporter = Reporter::new(folder.clone(), &setup, events);
    let controller = Controller {
        folder,
        setup,
        group,
        journal,
        processes,
        sessions: BTreeMap::new(),
        server,
        _entry: entry,
        reporter,
        phase: Phase::Pending,
        started: clock(),
        cancelling: false,
        _lock: lock,
    };
    controller.run(Ears { inbound, processes: process_events, wishes, written }).await
}

impl Controller {
    async fn run(mut self, mut ears: Ears) -> Result<JobStatus, Failure> {
        if let Err(failure) = self.live(&mut ears).await {
            self.abandon(&mut ears).await;
            return Err(failure);
        }
        if let Some(Outcome::Failed { cause }) = self.group.outcome() {
            tracing::info!(message = %cause.message, "the job failed");
        }
        self.sessions.clear();
        self.server.close().await;
        self.journal.close().await;
        Ok(self.reporter.finish(&self.group, unix_ms()))
    }

    /// Until the job is over.
    async fn live(&mut self, ears: &mut Ears) -> Result<(), Failure> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut wishes_are_open = true;
        self.handle(Event::Start).await?;
        while self.group.outcome().is_none() {
            tokio::select! {
                Some(inbound) = ears.inbound.recv() => self.inbound(inbound).await?,
                Some(event) = ears.processes.recv() => self.process(event).await?,
                told = ears.written.changed() => {
                    let written = ears.written.borrow_and_update().clone();
                    match (told, written) {
                        (Ok(()), Ok(record)) => self.handle(Event::Persisted(record)).await?,
                        (_, Err(error)) => return Err(self.cannot_write(&error)),
                        (Err(gone), _) => return Err(self.cannot_write(&gone)),
                    }
                }
                wish = ears.wishes.recv(), if wishes_are_open => match wish {
                    Some(wish) => self.wish(wish).await?,
                    None => wishes_are_open = false,
                },
                _ = ticks.tick() => self.handle(Event::Tick).await?,
            }
        }
        Ok(())
    }

    /// Nothing can be written down any more, so nothing more may be decided: everything is killed.
    async fn abandon(&self, ears: &mut Ears) {
        let workers = (0..self.setup.worker_count()).map(WorkerId).collect();
        self.processes.sweep(self.group.generation(), workers);
        let swept = async {
            while let Some(event) = ears.processes.recv().await {
                if !matches!(event, ProcessEvent::Gone { .. }) {
                    return;
                }
            }
        };
        if tokio::time::timeout(ABANDON_MAX, swept).await.is_err() {
            tracing::error!("processes of the job may be left");
        }
    }

    async fn inbound(&mut self, inbound: Inbound) -> Result<(), Failure> {
        let event = match inbound {
            Inbound::Registered { registration, outbound } => {
                self.sessions.retain(|_, session| session.is_open());
                self.sessions.insert((registration.worker, registration.incarnation), outbound);
                Event::Registered(registration)
            }
            Inbound::Message { worker, incarnation, message } => {
                Event::Message { worker, incarnation, message: *message }
            }
        };
        self.handle(event).await
    }

    async fn process(&mut self, event: ProcessEvent) -> Result<(), Failure> {
        let event = match event {
            ProcessEvent::Gone { worker, pid, how } => {
                tracing::info!(%worker, pid, %how, "a worker's process is gone");
                Event::Gone { worker, pid, how }
            }
            ProcessEvent::Swept { generation, workers } => Event::Swept { generation, workers },
            // A generation beside what is left of the last one would be worse than none.
            ProcessEvent::Unswept { why } => {
                return Err(Failure::new(
                    ExitCode::Temporary,
                    "failed to kill all that is left of the ranks",
                )
                .because(&*why)
                .hint("when they are gone, `launcher job resume` goes on from the last committed step"));
            }
        };
        self.handle(event).await
    }

    async fn wish(&mut self, wish: Wish) -> Result<(), Failure> {
        // A second wish means that the first took too long.
        let now = wish == Wish::CancelNow || self.cancelling;
        self.cancelling = true;
        self.reporter.tell(ProgressEvent::Cancelling { now }).await;
        self.handle(Event::Cancel { now }).await
    }

    /// Gives the group an event and does what it says, until there is nothing more to do.
    async fn handle(&mut self, event: Event) -> Result<(), Failure> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.now();
            let actions = self.group.handle(event, now);
            // The phase is told before what follows from it, so that a journal reads in order.
            self.note_phase().await;
            for action in actions {
                if let Some(event) = self.act(action).await {
                    events.push_back(event);
                }
            }
        }
        self.reporter.refresh(&self.group, self.started.elapsed(), unix_ms());
        Ok(())
    }

    async fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Persist { id, record } => {
                self.append(Entry::Group(record), Some(id)).await;
            }
            Action::Launch { worker } => return Some(self.launch(worker)),
            Action::Sweep { generation, workers } => self.processes.sweep(generation, workers),
            Action::Send { worker, incarnation, message } => self.send(worker, incarnation, message),
            Action::Restarting { cause, backoff } => {
                self.reporter.restarting(&self.group, &cause, backoff).await;
            }
            Action::Server { news, message, .. } => {
                self.reporter.server(&self.group, news, message, unix_ms()).await;
            }
            Action::Done(_) => {}
        }
        None
    }

    fn launch(&mut self, worker: WorkerId) -> Event {
        let Some(config) = self.setup.worker_config(&self.folder, worker, self.server.address()) else {
            return Event::Gone { worker, pid: NO_PROCESS, how: "it has no place".to_owned() };
        };
        match self.processes.launch(&config, &self.folder.worker_log(worker)) {
            Ok(pid) => Event::Launched { worker, pid },
            Err(error) => Event::Gone {
                worker,
                pid: NO_PROCESS,
                how: format!("its process cannot be started: {error}"),
            },
        }
    }

    fn send(&mut self, worker: WorkerId, incarnation: Incarnation, message: ToWorker) {
        let key = (worker, incarnation);
        let is_last = matches!(message, ToWorker::Refuse { .. });
        let is_sent = self.sessions.get(&key).is_some_and(|session| session.send(message));
        if is_last || !is_sent {
            // Dropping it closes the connection; a worker that is still wanted comes again and is told again.
            self.sessions.remove(&key);
        }
    }

    /// Queues an entry. When nothing more can be written, [`Ears::written`] says so and why.
    async fn append(&self, entry: Entry, record: Option<RecordId>) {
        let _ = self.journal.append(Order { at: unix_ms(), entry, record }).await;
    }

    fn cannot_write(&self, error: &dyn std::error::Error) -> Failure {
        let path = self.folder.journal();
        Failure::new(ExitCode::CannotCreate, format!("failed to write {}", path.display()))
            .because(error)
            .hint("is the disk full? `launcher job resume` goes on from the last committed step")
    }

    async fn note_phase(&mut self) {
        let phase = self.group.phase();
        if phase == self.phase {
            return;
        }
        self.phase = phase;
        let generation = self.group.generation();
        self.append(Entry::Phase { phase, generation }, None).await;
        self.reporter.phase(&self.group, unix_ms()).await;
    }

    fn now(&self) -> Now {
        let unix_ns = u64::try_from(since_unix_epoch().as_nanos()).unwrap_or(u64::MAX);
        Now { elapsed: self.started.elapsed(), unix_ns }
    }
}

/// The program that knows the hidden commands. A test binary is not it, so tests name another.
pub(super) fn this_program() -> std::io::Result<PathBuf> {
    std::env::current_exe()
}
