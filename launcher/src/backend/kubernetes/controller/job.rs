//! One job's actor: it looks after one `TrainingJob` from its first sight to its deletion.
//!
//! ```text
//! Finding ─▶ Held            nothing of it is there
//!    │   └─▶ Asking ─▶ Creating ─▶ Gating ─▶ Live ─▶ Over
//!    │                               ▲         │
//!    ├── the child is there ─────────┘         │ suspended, or to be resumed
//!    └──────────▶ Clearing ◀───────────────────┘
//! ```
//! What happens next is decided in [`super::decide`], by the membership (`group`) and by the planner's ledger; here it is
//! carried out. No call to the API server is waited for where heartbeats are heard: each is a task, and its result comes
//! back as a [`Done`]. Every task may fail or be repeated; every stage looks at what is there, not at what it did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use worker::units::WorkerId;

use super::Context;
use super::api::{CallError, Key, Stored};
use super::decide::{Next, Wish};
use super::devices;
use super::ledger::Answer;
use super::planner;
use super::pods::{Change, PodView, Roster};
use super::render::{self, CreateError};
use crate::backend::clock::clock;
use crate::backend::kubernetes::names;
use crate::backend::kubernetes::resource::{self, TrainingJob};
use crate::job::{Job, validate};
use crate::placement::PlacedWorker;
use crate::rendezvous::authority::Seed;
use crate::rendezvous::group::RecordId;
use crate::rendezvous::server::Inbound;

mod find;
mod live;
mod over;
mod pauses;
mod places;
mod tell;

use find::Reading;
use live::Live;
use over::Over;
use pauses::Pauses;
use places::{Deletion, Refusal};
use tell::Teller;

/// How often time passes for a job: a third of the time in which evidence is gathered.
const TICK: Duration = Duration::from_millis(100);
/// Signals that wait for a job's actor: a few per pod of the largest gang, all at once.
const SIGNALS_MAX: usize = 4096;
/// Of what has happened to a job, this much is taken in before it is looked at what that makes due: looking takes as long
/// as a gang is large, and a large one's pods change by the thousand.
const BATCH_MAX: usize = 256;
/// What failed is tried again after this, and after twice as long each time, up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// A cluster that is down for hours is asked this often.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A child that has not made all of its pods by then tells why, and is given up: its places may serve others.
const PODS_MAX: Duration = Duration::from_secs(60);

/// What a job's actor hears of the cluster.
#[derive(Debug)]
pub(super) enum Signal {
    /// The object, as it is now.
    Resource(Box<TrainingJob>),
    /// The object is gone.
    Deleted,
    /// A pod, as it is now.
    Pod(Box<PodView>),
    /// A pod's object is gone.
    PodGone(String),
}

/// The way to a job's actor; dropping it ends the actor at once.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) signals: mpsc::Sender<Signal>,
    task: tokio::task::AbortHandle,
    is_done: Arc<AtomicBool>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Handle {
    /// Whether the actor has ended: it lost the job to somebody else, or all of the job is gone.
    pub(super) fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Whether it has ended because nothing of the job is left.
    pub(super) fn is_done(&self) -> bool {
        self.is_done.load(Ordering::Acquire)
    }
}

/// Where the actor is.
#[derive(Debug)]
enum Stage {
    /// What earlier controllers left is being read.
    Finding,
    /// What the user wrote makes no job.
    Invalid,
    /// Nothing of it is there, and that is right.
    Held,
    /// It waits for places.
    Asking,
    /// Its objects are being made.
    Creating,
    /// Its pods appear and get their places.
    Gating { since: Instant },
    /// The membership is in charge.
    Live(Box<Live>),
    /// The child is being deleted; when nothing runs any more, it is looked at again.
    Clearing { since: Instant },
    /// It is over; what still runs of it is ended.
    Over(Over),
    /// Its object is gone; what runs is waited for.
    Leaving,
}

/// What a task came to.
enum Done {
    Found(Result<Box<Reading>, CallError>),
    Created(Result<Seed, CreateError>),
    Remade(Result<bool, CreateError>),
    Served(Result<(), CreateError>),
    Unserved(Result<(), CallError>),
    Cleared(Result<(), CallError>),
    Warned(Result<Vec<String>, CallError>),
    Placed { pod: String, uid: String, result: Result<(), CallError> },
    Deleted { uid: String, how: Deletion, result: Result<(), CallError> },
    Expired(Result<(), CallError>),
    Written { id: RecordId, result: Result<Option<String>, CallError> },
    Told(Result<(), CallError>),
    Again,
}

/// The actor.
pub(super) struct Actor {
    context: Arc<Context>,
    key: Key,
    resource: TrainingJob,
    job: Option<Job>,
    stage: Stage,
    roster: Roster,
    stored: Stored,
    seed: Option<Seed>,
    has_child: bool,
    /// Where workers have, or are to get, their pods: all of it is held in the planner's ledger.
    plan: BTreeMap<WorkerId, PlacedWorker>,
    devices: devices::Names,
    /// The places have been planned again since all pods are there.
    is_confirmed: bool,
    /// The placed pod of each worker that has one, by uid.
    bound: BTreeMap<WorkerId, String>,
    /// Wishes that the planner has not been told yet.
    wishes: Vec<planner::Wish>,
    /// Pods whose deletion has been asked for, by uid, and how.
    deleted: BTreeSet<(String, Deletion)>,
    /// Workers for which the planner is being asked.
    asked: BTreeSet<WorkerId>,
    /// Hosts that refused a pod of this job, and why.
    refused_by: BTreeMap<String, Refusal>,
    /// Since when a pod cannot be scheduled where it was placed, by uid.
    stuck: BTreeMap<String, Instant>,
    /// Workers whose pods have changed since places were last given back.
    moved: BTreeSet<WorkerId>,
    /// There may be gates to lift, or places to ask for. Every tick looks whether there are.
    has_gates: bool,
    /// Pods that a call is under way for, by uid.
    busy: BTreeSet<String>,
    pauses: Pauses,
    /// When the deletion of data servers that do not end was asked for.
    unserved: Option<Instant>,
    /// It is being asked why the child makes no pods.
    is_asking_why: bool,
    /// Since when pods that nobody looks after are to end.
    in_the_way: Option<Instant>,
    answers: (mpsc::Sender<Answer>, mpsc::Receiver<Answer>),
    inbound: Option<mpsc::Receiver<Inbound>>,
    tasks: JoinSet<Done>,
    teller: Teller,
    retry: Duration,
    /// A write of the memory is under way.
    is_writing: bool,
    /// The newest record that `stored` holds and that is not written.
    unwritten: Option<RecordId>,
    /// Somebody else wrote the memory: this actor knows nothing any more.
    is_lost: bool,
}

/// Starts an actor. When this returns, the planner knows what the job's pods hold.
pub(super) async fn start(
    context: Arc<Context>,
    resource: TrainingJob,
    pods: impl Iterator<Item = PodView>,
) -> Option<Handle> {
    let meta = &resource.metadata;
    let key = Key { namespace: meta.namespace.clone()?, name: meta.name.clone()?, uid: meta.uid.clone()? };
    let (signals, receiver) = mpsc::channel(SIGNALS_MAX);
    let mut actor = Actor {
        teller: Teller::new(&resource),
        context,
        key,
        resource,
        job: None,
        stage: Stage::Finding,
        roster: Roster::default(),
        stored: Stored::default(),
        seed: None,
        has_child: false,
        plan: BTreeMap::new(),
        devices: devices::Names::default(),
        is_confirmed: false,
        bound: BTreeMap::new(),
        wishes: Vec::new(),
        deleted: BTreeSet::new(),
        asked: BTreeSet::new(),
        refused_by: BTreeMap::new(),
        stuck: BTreeMap::new(),
        moved: BTreeSet::new(),
        has_gates: true,
        busy: BTreeSet::new(),
        pauses: Pauses::default(),
        unserved: None,
        is_asking_why: false,
        in_the_way: None,
        answers: mpsc::channel(SIGNALS_MAX),
        inbound: None,
        tasks: JoinSet::new(),
        retry: RETRY_FIRST,
        is_writing: false,
        unwritten: None,
        is_lost: false,
    };
    actor.read_job();
    for pod in pods {
        actor.signal(Signal::Pod(Box::new(pod)));
    }
    actor.hold_what_runs();
    actor.flush_planner().await;
    let is_done = Arc::new(AtomicBool::new(false));
    let task = tokio::spawn(actor.run(receiver, Arc::clone(&is_done))).abort_handle();
    Some(Handle { signals, task, is_done })
}

impl Actor {
    async fn run(mut self, mut signals: mpsc::Receiver<Signal>, is_done: Arc<AtomicBool>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.look();
        while !self.is_lost && !self.is_gone() {
            tokio::select! {
                signal = signals.recv() => match signal {
                    Some(signal) => self.signal(signal),
                    None => return,
                },
                Some(answer) = self.answers.1.recv() => self.answered(answer),
                Some(done) = self.tasks.join_next() => if let Ok(done) = done { self.done(done) },
                Some(inbound) = hear(&mut self.inbound) => self.inbound(inbound),
                _ = ticks.tick() => self.tick(),
            }
            self.take_in(&mut signals);
            self.advance().await;
        }
        tracing::info!(job = %self.key, lost = self.is_lost, "a job is not looked after any more");
        // One that lost its memory leaves what it holds to the next actor of the job, which begins soon.
        if self.is_quiet() {
            self.release_all();
            self.avoid_what_runs();
        }
        self.flush_planner().await;
        is_done.store(self.is_gone(), Ordering::Release);
    }

    /// Takes in what else has happened by now.
    fn take_in(&mut self, signals: &mut mpsc::Receiver<Signal>) {
        for _ in 0..BATCH_MAX {
            if let Ok(signal) = signals.try_recv() {
                self.signal(signal);
            } else if let Some(done) = self.tasks.try_join_next() {
                if let Ok(done) = done {
                    self.done(done);
                }
            } else {
                break;
            }
        }
        self.release_ended();
    }

    fn is_gone(&self) -> bool {
        matches!(self.stage, Stage::Leaving) && self.is_quiet()
    }

    /// No pod of the job may run anything.
    fn is_quiet(&self) -> bool {
        !self.roster.pods().any(PodView::is_alive)
    }

    fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Resource(resource) => {
                let is_changed = resource.metadata.generation != self.resource.metadata.generation;
                self.resource = *resource;
                if is_changed {
                    let was_none = self.job.is_none();
                    self.read_job();
                    if was_none && self.job.is_some() {
                        self.hold_what_runs();
                    }
                }
            }
            Signal::Deleted => {
                self.inbound = None;
                self.stage = Stage::Leaving;
            }
            Signal::Pod(pod) => {
                self.moved.insert(pod.worker);
                self.has_gates |= pod.is_gated;
                let changes = self.roster.update(*pod);
                self.changed(changes);
            }
            Signal::PodGone(name) => {
                self.moved.extend(self.roster.worker_of(&name));
                self.has_gates = true;
                let changes = self.roster.remove(&name);
                self.changed(changes);
            }
        }
    }

    /// What the user wrote, as it is now. A change that makes no job is told, and the job goes on as it was.
    fn read_job(&mut self) {
        match resource::job(&self.resource) {
            Ok(job) => {
                let lacks = validate::build::lacks(&job).into_iter();
                let lacks =
                    lacks.map(|(field, instead)| format!("{field}: this build cannot do it; use {instead}"));
                let lacks: Vec<String> = lacks.collect();
                if lacks.is_empty() {
                    self.job = Some(job);
                }
                self.teller.faults(lacks);
            }
            Err(faults) => self.teller.faults(faults.to_string().lines().map(str::to_owned).collect()),
        }
        if matches!(self.stage, Stage::Invalid) && self.job.is_some() {
            self.look();
        }
    }

    fn wish(&self) -> Wish {
        let notes = self.resource.metadata.annotations.as_ref();
        match notes.and_then(|notes| notes.get(names::ANNOTATION_CANCEL)).map(String::as_str) {
            Some("now") => Wish::Cancel { now: true },
            Some(_) => Wish::Cancel { now: false },
            None if self.job.as_ref().is_some_and(|job| job.suspend) => Wish::Hold,
            None => Wish::Run,
        }
    }

    /// The resumption that the owner asks for; empty for none.
    fn resumption(&self) -> String {
        let notes = self.resource.metadata.annotations.as_ref();
        notes.and_then(|notes| notes.get(names::ANNOTATION_RESUME)).cloned().unwrap_or_default()
    }

    fn done(&mut self, done: Done) {
        match done {
            // The job was deleted meanwhile.
            Done::Found(_) | Done::Again if !matches!(self.stage, Stage::Finding) => {}
            Done::Found(Ok(reading)) => {
                let Reading { stored, seed, has_child, devices } = *reading;
                self.has_child = has_child;
                self.seed = seed;
                self.devices.learn(devices);
                if self.unwritten.is_none() && !self.is_writing {
                    self.stored = stored;
                }
                self.found();
            }
            Done::Found(Err(error)) => {
                self.teller.trouble(format!("cannot read what there is of the job: {error}"));
                self.try_again();
            }
            Done::Created(Ok(seed)) => {
                self.seed = Some(seed);
                self.retry = RETRY_FIRST;
                self.has_child = true;
                if matches!(self.stage, Stage::Creating) {
                    self.stage = Stage::Gating { since: clock() };
                }
            }
            Done::Created(Err(error)) => {
                tracing::warn!(job = %self.key, %error, "cannot make a job's objects");
                self.teller.trouble(format!("cannot make the job's objects: {error}"));
                // Others may use the places while this is tried again.
                self.release_all();
                self.try_again();
            }
            Done::Remade(Ok(false)) => {}
            Done::Remade(Ok(true)) => {
                tracing::warn!(job = %self.key, "the child was deleted while the job ran, and is made anew");
            }
            Done::Remade(Err(error)) => {
                tracing::warn!(job = %self.key, %error, "cannot make a deleted child anew");
                self.teller
                    .trouble(format!("what makes the pods was deleted, and cannot be made anew: {error}"));
            }
            Done::Served(Ok(())) => {}
            Done::Served(Err(error)) => {
                tracing::warn!(job = %self.key, %error, "cannot make a job's data servers");
                self.teller.trouble(format!("cannot make the data servers: {error}"));
            }
            Done::Unserved(result) => {
                if let Err(error) = result {
                    tracing::warn!(job = %self.key, %error, "cannot delete a job's data servers");
                }
            }
            Done::Cleared(Ok(())) => self.has_child = false,
            Done::Cleared(Err(error)) => {
                self.teller.trouble(format!("cannot delete what was left of the job: {error}"));
                self.try_again();
            }
            Done::Warned(warnings) => self.give_up_child(&warnings.unwrap_or_default()),
            Done::Placed { pod, uid, result } => self.placed(&pod, &uid, result),
            Done::Deleted { uid, how, result } => {
                if let Err(error) = result {
                    tracing::warn!(job = %self.key, %error, "cannot delete a pod");
                    // It is tried again, after a while.
                    self.pauses.failed(&uid, clock());
                    self.deleted.remove(&(uid, how));
                } else {
                    self.pauses.succeeded(&uid);
                }
            }
            Done::Expired(result) => self.expired(result),
            Done::Written { id, result } => self.written(id, result),
            Done::Told(result) => {
                if let Err(error) = &result {
                    tracing::warn!(job = %self.key, %error, "cannot tell a job's status");
                }
                self.teller.told(result.is_ok());
            }
            Done::Again => self.look(),
        }
    }

    fn clear(&mut self) {
        self.stage = Stage::Clearing { since: clock() };
        self.inbound = None;
        let (calls, key, child) = (self.context.calls.clone(), self.key.clone(), self.context.child.clone());
        self.tasks.spawn(async move {
            let servers = names::servers(&key.name);
            let ends = async {
                // Only this job's own: there may be a job of that name.
                let found = calls.find(&render::servers_kind(), &key.namespace, &servers).await?;
                if found.is_some_and(|found| key.has(&found.metadata)) {
                    calls.delete(&render::servers_kind(), &key.namespace, &servers).await?;
                }
                calls.delete(&child, &key.namespace, &names::child(&key.name)).await
            };
            Done::Cleared(ends.await)
        });
    }

    /// Makes everything that the pods need, and the child that makes the pods.
    fn create(&mut self) {
        let Some(order) = self.order() else { return };
        self.stage = Stage::Creating;
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move { Done::Created(render::create(&context, order).await) });
    }

    fn order(&self) -> Option<render::Order> {
        Some(render::Order {
            job: self.job.clone()?,
            key: self.key.clone(),
            devices: self.devices.clone(),
            seed: self.seed,
        })
    }

    fn tick(&mut self) {
        self.has_gates = true;
        let now = clock();
        self.pauses.forget(now);
        if self.in_the_way.is_some() && self.is_quiet() {
            self.in_the_way = None;
        }
        self.forgive(now);
        self.tick_over();
        self.tick_live();
    }

    fn changed(&mut self, changes: Vec<Change>) {
        for change in changes {
            tracing::info!(job = %self.key, ?change, "pods");
            match change {
                Change::Launched { worker, number } => self.launched(worker, number),
                Change::Leaving { worker, number } => self.pod_leaving(worker, number),
                Change::Gone { worker, number, how } => self.pod_gone(worker, number, how),
                Change::Rejected { pod, worker, host, why } => self.rejected(&pod, worker, &host, &why),
            }
        }
    }

    /// Does what the stage makes due, given all that is known.
    async fn advance(&mut self) {
        match &self.stage {
            Stage::Finding | Stage::Creating | Stage::Leaving => {}
            Stage::Invalid => {
                // Nobody hears its ranks, so nothing is gained by waiting for them.
                if matches!(self.wish(), Wish::Cancel { .. }) {
                    let since = *self.in_the_way.get_or_insert_with(clock);
                    self.end_pods(since);
                }
            }
            Stage::Held | Stage::Over(_) => {
                let next = self.next();
                let stays = match &self.stage {
                    Stage::Held => next == Next::Keep,
                    _ => next == Next::Rest,
                };
                if !stays && self.unwritten.is_none() && !self.is_writing {
                    self.look();
                } else {
                    self.tend_over();
                }
            }
            Stage::Asking => {
                if self.wish() != Wish::Run {
                    // All of it: the places may have been given in this moment.
                    self.release_all();
                    self.look();
                }
            }
            Stage::Gating { since } => {
                let since = *since;
                self.tend_gating(since);
            }
            Stage::Live(_) => self.tend_live(),
            Stage::Clearing { since } => {
                let since = *since;
                if !self.has_child && self.roster.pods().next().is_none() {
                    self.release_all();
                    self.look();
                } else if !self.has_child {
                    // The garbage collector deletes them, and cannot where their node does not answer.
                    self.end_pods(since);
                }
            }
        }
        self.flush_planner().await;
        self.tell();
    }
}

/// The next message of a worker; never, where nobody is heard.
async fn hear(inbound: &mut Option<mpsc::Receiver<Inbound>>) -> Option<Inbound> {
    match inbound {
        Some(inbound) => inbound.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
pub(super) mod tests;
