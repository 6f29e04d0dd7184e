//! The controller of all jobs of a cluster: one actor for each, one planner for all, one rendezvous server.
//!
//! ```text
//! watches ── TrainingJobs, our pods ──▶ actors (job) ──wishes──▶ planner ── ledger ◀── caches ◀── nodes, devices
//!                                         │  ▲ ◀──answers──────────┘
//!                                         │  └── rendezvous server ◀── sidecars
//!                                         └── calls (api) ──▶ API server
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, GroupVersionKind};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use tokio::time::{MissedTickBehavior, interval};

use super::names;
use super::objects::ChildKind;
use super::resource::TrainingJob;
use crate::error::in_full;
use crate::rendezvous::server::Server;
use crate::serve::metrics::{Metrics, PhaseLabel};
use crate::topology::kubernetes::devices::Naming;
use crate::topology::levels::Levels;

pub mod api;
pub mod decide;
pub(super) mod devices;
mod job;
pub mod ledger;
mod planner;
pub mod pods;
mod render;
mod watch;

use job::{Handle, Signal};
use planner::Planner;
use pods::PodView;
use watch::Caches;

/// How often actors that gave up are started again, and the numbers of jobs are counted.
const CARE: Duration = Duration::from_secs(5);

/// How a controller is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The sidecars' image.
    pub sidecar_image: String,
    /// Where sidecars reach the rendezvous.
    pub advertise: SocketAddr,
    /// Only this namespace; none: all.
    pub namespace: Option<String>,
    /// Which labels are the fabric's levels.
    pub levels: Levels,
    /// Which resources are GPUs and NICs, beside those that are known.
    pub naming: Naming,
    /// What makes the pods.
    pub child: ChildKind,
}

/// What all actors share.
pub(super) struct Context {
    calls: api::Calls,
    caches: Arc<Caches>,
    planner: Planner,
    server: Server,
    options: Options,
    metrics: Arc<Metrics>,
    child_kind: ChildKind,
    child: GroupVersionKind,
}

/// A running controller.
pub struct Controller {
    context: Arc<Context>,
    jobs: Jobs,
    pods: Pods,
    trainings: BoxStream<'static, Result<Event<TrainingJob>, watcher::Error>>,
    workers: BoxStream<'static, Result<Event<Pod>, watcher::Error>>,
    /// The planner may answer.
    is_open: bool,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").finish_non_exhaustive()
    }
}

/// A job's namespace and uid. Both, because a pod says by labels whose it is, and anybody may write labels in a namespace of
/// his own.
type JobId = (String, String);

#[derive(Default)]
struct Jobs {
    known: BTreeMap<JobId, TrainingJob>,
    /// Deleted ones of which something may still run.
    leaving: BTreeMap<JobId, TrainingJob>,
    handles: BTreeMap<JobId, Handle>,
    listed: Option<BTreeMap<JobId, TrainingJob>>,
    is_filled: bool,
}

#[derive(Default)]
struct Pods {
    /// By job, then by name.
    known: BTreeMap<JobId, BTreeMap<String, PodView>>,
    listed: Option<Vec<(JobId, PodView)>>,
    is_filled: bool,
    /// Jobs of which there were only pods when this controller began to look after them: what those hold is written nowhere
    /// any more.
    orphans: BTreeSet<JobId>,
}

impl Controller {
    /// Begins to watch; `server` is the rendezvous.
    #[must_use]
    pub fn start(client: &Client, server: Server, options: Options, metrics: Arc<Metrics>) -> Self {
        let caches = Caches::start(client, options.levels.clone(), options.naming.clone());
        let context = Context {
            calls: api::Calls::new(client.clone(), Arc::clone(&metrics)),
            planner: Planner::start(Arc::clone(&caches), Arc::clone(&metrics)),
            caches,
            server,
            metrics,
            child_kind: options.child,
            child: api::kind_of(options.child.api_version(), options.child.kind()),
            options,
        };
        let (trainings, pods): (Api<TrainingJob>, Api<Pod>) = match &context.options.namespace {
            Some(namespace) => {
                (Api::namespaced(client.clone(), namespace), Api::namespaced(client.clone(), namespace))
            }
            None => (Api::all(client.clone()), Api::all(client.clone())),
        };
        let ours = watcher::Config::default().labels(names::LABEL_JOB);
        Self {
            context: Arc::new(context),
            jobs: Jobs::default(),
            pods: Pods::default(),
            trainings: watcher(trainings, watcher::Config::default()).default_backoff().boxed(),
            workers: watcher(pods, ours).default_backoff().boxed(),
            is_open: false,
        }
    }

    /// Waits until what plans are made from is known.
    pub async fn filled(&self) {
        self.context.caches.filled().await;
    }

    /// Looks after jobs for ever.
    pub async fn run(mut self) {
        let mut care = interval(CARE);
        care.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(event) = self.trainings.next() => match event {
                    Ok(event) => self.training(event).await,
                    Err(error) => tracing::warn!(error = in_full(&error), "cannot watch the jobs"),
                },
                Some(event) = self.workers.next() => match event {
                    Ok(event) => self.worker(event).await,
                    Err(error) => tracing::warn!(error = in_full(&error), "cannot watch the pods"),
                },
                _ = care.tick() => self.care().await,
            }
        }
    }

    async fn training(&mut self, event: Event<TrainingJob>) {
        match event {
            Event::Init => self.jobs.listed = Some(BTreeMap::new()),
            Event::InitApply(job) => {
                if let (Some(listed), Some(id)) = (&mut self.jobs.listed, id_of(&job)) {
                    listed.insert(id, job);
                }
            }
            Event::InitDone => {
                let listed = self.jobs.listed.take().unwrap_or_default();
                let gone = self.jobs.known.keys().filter(|id| !listed.contains_key(*id)).cloned();
                for id in gone.collect::<Vec<_>>() {
                    self.deleted(&id).await;
                }
                self.jobs.is_filled = true;
                for job in listed.into_values() {
                    self.applied(job).await;
                }
                self.open().await;
            }
            Event::Apply(job) => self.applied(job).await,
            Event::Delete(job) => {
                if let Some(id) = id_of(&job) {
                    self.deleted(&id).await;
                }
            }
        }
    }

    async fn applied(&mut self, job: TrainingJob) {
        let Some(id) = id_of(&job) else { return };
        self.jobs.known.insert(id.clone(), job.clone());
        match self.jobs.handles.get(&id) {
            Some(handle) => send(handle, Signal::Resource(Box::new(job))).await,
            None => self.begin(&id).await,
        }
    }

    async fn deleted(&mut self, id: &JobId) {
        if let Some(job) = self.jobs.known.remove(id) {
            self.jobs.leaving.insert(id.clone(), job);
        }
        self.leave(id).await;
    }

    /// What the pods of a deleted job have stays held until they have ended, also where its actor gave up a moment ago.
    async fn leave(&mut self, id: &JobId) {
        if self.jobs.handles.get(id).is_none_or(Handle::is_over) {
            self.begin(id).await;
        }
        if let Some(handle) = self.jobs.handles.get(id) {
            send(handle, Signal::Deleted).await;
        }
    }

    /// Starts a job's actor, once all of its pods are known.
    async fn begin(&mut self, id: &JobId) {
        if !self.pods.is_filled || !self.jobs.is_filled {
            return;
        }
        let Some(job) = self.jobs.known.get(id).or_else(|| self.jobs.leaving.get(id)) else { return };
        let pods = self.pods.known.get(id).into_iter().flat_map(BTreeMap::values).cloned();
        let Some(handle) = job::start(Arc::clone(&self.context), job.clone(), pods).await else { return };
        self.jobs.handles.insert(id.clone(), handle);
    }

    /// Starts the actors of all jobs that have none.
    async fn begin_all(&mut self) {
        for id in self.jobs.known.keys().cloned().collect::<Vec<_>>() {
            if !self.jobs.handles.contains_key(&id) {
                self.begin(&id).await;
            }
        }
        // One that lost a job which was deleted in that moment has left what its pods hold to the next.
        for id in self.jobs.leaving.keys().cloned().collect::<Vec<_>>() {
            if !self.jobs.handles.contains_key(&id) {
                self.leave(&id).await;
            }
        }
    }

    /// Lets the planner begin, once it has been told what all jobs hold that an earlier controller left.
    async fn open(&mut self) {
        if self.pods.is_filled && self.jobs.is_filled && !std::mem::replace(&mut self.is_open, true) {
            let orphans = self.pods.known.keys().filter(|id| !self.jobs.known.contains_key(*id));
            self.pods.orphans = orphans.cloned().collect();
            for id in self.pods.orphans.clone() {
                self.avoid_orphans(&id).await;
            }
            self.context.planner.tell(planner::Wish::Open).await;
        }
    }

    /// Nothing is planned where pods run whose job is gone.
    async fn avoid_orphans(&mut self, id: &JobId) {
        if !self.pods.orphans.contains(id) {
            return;
        }
        let pods = self.pods.known.get(id).into_iter().flat_map(BTreeMap::values);
        let hosts: BTreeSet<_> =
            pods.filter(|pod| pod.is_alive()).filter_map(|pod| pod.host.clone()).collect();
        if hosts.is_empty() {
            self.pods.orphans.remove(id);
        }
        // The name went with the object.
        let (namespace, uid) = id.clone();
        let key = api::Key { namespace, name: uid.clone(), uid };
        self.context.planner.tell(planner::Wish::Avoid { key, hosts }).await;
    }

    async fn worker(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.pods.listed = Some(Vec::new()),
            Event::InitApply(pod) => {
                let seen = self.ours(&pod);
                if let (Some(listed), Some(seen)) = (&mut self.pods.listed, seen) {
                    listed.push(seen);
                }
            }
            Event::InitDone => {
                let listed = self.pods.listed.take().unwrap_or_default();
                let there: BTreeSet<(&JobId, &str)> =
                    listed.iter().map(|(id, pod)| (id, pod.name.as_str())).collect();
                let known = self.pods.known.iter();
                let gone: Vec<(JobId, String)> = known
                    .flat_map(|(id, pods)| pods.keys().map(move |name| (id.clone(), name.clone())))
                    .filter(|(id, name)| !there.contains(&(id, name.as_str())))
                    .collect();
                for (id, name) in gone {
                    self.pod_gone(&id, &name).await;
                }
                for (id, pod) in listed {
                    self.pod_seen(&id, pod).await;
                }
                self.pods.is_filled = true;
                self.begin_all().await;
                self.open().await;
            }
            Event::Apply(pod) => {
                if let Some((id, pod)) = self.ours(&pod) {
                    self.pod_seen(&id, pod).await;
                }
            }
            Event::Delete(pod) => {
                if let Some((id, pod)) = self.ours(&pod) {
                    self.pod_gone(&id, &pod.name).await;
                }
            }
        }
    }

    /// Whose pod it is, if one of our jobs'.
    fn ours(&self, pod: &Pod) -> Option<(JobId, PodView)> {
        view(pod).or_else(|| self.known(pod))
    }

    /// A pod that was ours stays ours when somebody takes its owner away: it runs on.
    fn known(&self, pod: &Pod) -> Option<(JobId, PodView)> {
        let (id, pod) = labelled(pod)?;
        let known = self.pods.known.get(&id)?.get(&pod.name)?;
        (known.uid == pod.uid).then_some((id, pod))
    }

    async fn pod_seen(&mut self, id: &JobId, pod: PodView) {
        let pods = self.pods.known.entry(id.clone()).or_default();
        if pods.insert(pod.name.clone(), pod.clone()).as_ref() == Some(&pod) {
            return;
        }
        if let Some(handle) = self.jobs.handles.get(id) {
            send(handle, Signal::Pod(Box::new(pod))).await;
        }
        self.avoid_orphans(id).await;
    }

    async fn pod_gone(&mut self, id: &JobId, name: &str) {
        if let Some(pods) = self.pods.known.get_mut(id) {
            pods.remove(name);
            if pods.is_empty() {
                self.pods.known.remove(id);
            }
        }
        if let Some(handle) = self.jobs.handles.get(id) {
            send(handle, Signal::PodGone(name.to_owned())).await;
        }
        self.avoid_orphans(id).await;
    }

    /// Starts actors again that have lost their job, and counts.
    async fn care(&mut self) {
        for (id, handle) in self.jobs.handles.extract_if(.., |_, handle| handle.is_over()) {
            if handle.is_done() {
                self.jobs.leaving.remove(&id);
            }
        }
        let mut phases: BTreeMap<&'static str, i64> =
            super::crd::status::PHASES.into_iter().map(|phase| (phase, 0)).collect();
        for job in self.jobs.known.values() {
            let phase = job.status.as_ref().map_or(super::crd::status::PHASES[0], |status| status.word());
            *phases.entry(phase).or_default() += 1;
        }
        for (phase, count) in phases {
            self.context.metrics.jobs.get_or_create(&PhaseLabel { phase }).set(count);
        }
        self.begin_all().await;
    }
}

/// An actor that has ended hears nothing, which is right.
async fn send(handle: &Handle, signal: Signal) {
    let _ = handle.signals.send(signal).await;
}

fn id_of(job: &TrainingJob) -> Option<JobId> {
    Some((job.namespace()?, job.uid()?))
}

/// Whose pod it is, and what is known of it. A pod with our labels that no Job made is none of ours: the policy
/// `slipway-workers` refuses those, where it is installed.
fn view(pod: &Pod) -> Option<(JobId, PodView)> {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    let is_made = owners.any(|owner| owner.controller == Some(true) && owner.kind == "Job");
    if is_made { labelled(pod) } else { None }
}

/// Whose pod it says that it is.
fn labelled(pod: &Pod) -> Option<(JobId, PodView)> {
    let uid = pod.metadata.labels.as_ref()?.get(names::LABEL_UID)?.clone();
    Some(((pod.namespace()?, uid), PodView::of(pod)?))
}

#[cfg(test)]
mod tests;
