//! An actor while the membership is in charge: its actions become calls and messages, and what happens becomes its
//! events. The counterpart of the local controller, with pods instead of processes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use worker::pod::process_number;
use worker::rendezvous::message::ToWorker;
use worker::units::{Generation, Incarnation, WorkerId};

use super::places::Deletion;
use super::{Actor, Done, Stage};
use crate::backend::Phase;
use crate::backend::clock::{clock, since_unix_epoch};
use crate::backend::kubernetes::controller::api::CallError;
use crate::backend::kubernetes::controller::decide::Wish;
use crate::backend::kubernetes::controller::pods::{PodStage, PodView};
use crate::backend::kubernetes::controller::render;
use crate::backend::numbers::Meter;
use crate::backend::terms;
use crate::job::Job;
use crate::job::spec::pod::NodeLost;
use crate::rendezvous::authority::{Authority, AuthorityError};
use crate::rendezvous::group::{
    Action, Event, Group, GroupConfig, NO_PROCESS, Now, Outcome, Record, RecordId, ServerNews, Timing,
};
use crate::rendezvous::server::{self, Inbound, Outbound};

/// Waited before a failed write of the memory is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(1);
/// From the deletion of a pod on a node that does not answer to its deletion by force: its sidecar has lost its lease and
/// stopped its ranks by then, and their time to stop is over.
pub(super) const FORCE_AFTER: Duration = Duration::from_secs(45);
/// Pods that are missing for this long may be missing for good, as somebody deleted what makes them; asked again as often.
const CHILD_LOOK: Duration = Duration::from_secs(15);
/// How long things may take where workers are pods: images are fetched, nodes are replaced, queues are waited for. A lease
/// is longer than it takes another controller to lead (15 s, and a start), so that ranks run on over that.
pub(super) fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_secs(1),
        lease: Duration::from_secs(40),
        launch: Duration::from_secs(600),
        gather: Duration::from_secs(3600),
        last_call: Duration::from_secs(10),
        servers: Duration::from_secs(60),
        start: Duration::from_secs(1800),
        suspect: Duration::from_millis(500),
        stop_grace: Duration::from_secs(10),
        stop_margin: Duration::from_secs(30),
        resend: Duration::from_secs(10),
    }
}

/// The membership and its surroundings.
pub(super) struct Live {
    pub(super) group: Group,
    pub(super) meter: Meter,
    pub(super) started: Instant,
    sessions: BTreeMap<(WorkerId, Incarnation), Outbound>,
    sweeps: Vec<Sweep>,
    /// As it was when it was last looked at.
    phase: Phase,
    cancelled: Option<bool>,
    /// Since when not every worker has a pod, or since the child was looked for because of that.
    lacking: Option<Instant>,
    /// When what makes the data servers was looked for.
    served: Option<Instant>,
    _entry: server::Entry,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("group", &self.group).finish_non_exhaustive()
    }
}

struct Sweep {
    generation: Generation,
    workers: Vec<WorkerId>,
    /// The pods that are to end, by uid: those that replace them are not.
    pods: BTreeSet<String>,
    since: Instant,
}

impl Actor {
    /// All pods have their places (or had them when an earlier controller died): the membership begins.
    pub(super) fn go_live(&mut self) {
        let (Some(job), Some(seed)) = (&self.job, self.seed) else {
            self.teller.trouble("the seed of the job's certificates is not there".to_owned());
            return self.try_again();
        };
        let authority = match authority(&self.key.uid, seed, job) {
            Ok(authority) => authority,
            Err(error) => {
                self.teller.trouble(format!("cannot make the job's certificates: {error}"));
                return self.try_again();
            }
        };
        let (entry, inbound) = match self.context.server.enlist(&self.key.uid, &authority) {
            Ok(enlisted) => enlisted,
            Err(error) => {
                self.teller.trouble(format!("cannot open the job's rendezvous: {error}"));
                return self.try_again();
            }
        };
        let group = Group::new(config(job, &authority), self.stored.memory.clone());
        self.inbound = Some(inbound);
        self.teller.begins();
        self.stage = Stage::Live(Box::new(Live {
            group,
            meter: Meter::default(),
            started: clock(),
            sessions: BTreeMap::new(),
            sweeps: Vec::new(),
            phase: Phase::Pending,
            cancelled: None,
            lacking: None,
            served: None,
            _entry: entry,
        }));
        let has_run = self.stored.memory.generation.0 > 0;
        self.handle(Event::Start);
        if has_run {
            self.tell_of_pods();
        }
    }

    /// After an earlier controller: which workers there are, and which there are not.
    fn tell_of_pods(&mut self) {
        for worker in self.everybody() {
            let event = match self.launched_number(worker) {
                Some(pid) => Event::Launched { worker, pid },
                None => Event::Gone { worker, pid: NO_PROCESS, how: "it has no pod".to_owned() },
            };
            self.handle(event);
        }
    }

    fn launched_number(&self, worker: WorkerId) -> Option<u32> {
        let pod = self.roster.current(worker)?;
        matches!(pod.stage, PodStage::Running).then(|| process_number(&pod.uid))
    }

    pub(super) fn launched(&mut self, worker: WorkerId, number: u32) {
        self.handle(Event::Launched { worker, pid: number });
    }

    pub(super) fn pod_leaving(&mut self, worker: WorkerId, number: u32) {
        self.handle(Event::Leaving { worker, pid: number });
    }

    pub(super) fn pod_gone(&mut self, worker: WorkerId, number: u32, how: String) {
        self.handle(Event::Gone { worker, pid: number, how });
    }

    pub(super) fn inbound(&mut self, inbound: Inbound) {
        let Stage::Live(live) = &mut self.stage else { return };
        let event = match inbound {
            Inbound::Registered { registration, outbound } => {
                live.sessions.retain(|_, session| session.is_open());
                live.sessions.insert((registration.worker, registration.incarnation), outbound);
                Event::Registered(registration)
            }
            Inbound::Message { worker, incarnation, message } => {
                Event::Message { worker, incarnation, message: *message }
            }
        };
        self.handle(event);
    }

    pub(super) fn tick_live(&mut self) {
        self.handle(Event::Tick);
        self.tend_child();
        self.tend_servers();
    }

    /// The child makes the pods that are missing, unless somebody deleted it.
    fn tend_child(&mut self) {
        let total = self.workers().len();
        let Stage::Live(live) = &mut self.stage else { return };
        let is_complete = self.roster.workers_with(total, PodView::is_current) == total;
        if is_complete || live.group.phase().is_over() {
            live.lacking = None;
            return;
        }
        let now = clock();
        let since = *live.lacking.get_or_insert(now);
        if now.saturating_duration_since(since) < CHILD_LOOK {
            return;
        }
        live.lacking = Some(now);
        let Some(order) = self.order() else { return };
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move { Done::Remade(render::remake(&context, order).await) });
    }

    /// Data servers are made when the gang has its places, and again when somebody deleted what makes them.
    fn tend_servers(&mut self) {
        let Some(job) = &self.job else { return };
        let wanted = job.servers();
        let first = job.processes().saturating_sub(wanted);
        let Stage::Live(live) = &mut self.stage else { return };
        let there = self
            .roster
            .pods()
            .filter(|pod| pod.is_server && pod.worker.0 >= first && pod.is_current())
            .count();
        let is_complete = u32::try_from(there).is_ok_and(|there| there >= wanted);
        if is_complete || live.group.phase().is_over() {
            return;
        }
        let now = clock();
        if live.served.is_some_and(|looked| now.saturating_duration_since(looked) < CHILD_LOOK) {
            return;
        }
        live.served = Some(now);
        let Some(order) = self.order() else { return };
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move { Done::Served(render::serve(&context, order).await) });
    }

    /// Gives the group an event and does what it says, until there is nothing more to do.
    fn handle(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Stage::Live(live) = &mut self.stage else { return };
            let unix_ns = u64::try_from(since_unix_epoch().as_nanos()).unwrap_or(u64::MAX);
            let now = Now { elapsed: live.started.elapsed(), unix_ns };
            for action in live.group.handle(event, now) {
                events.extend(self.act(action));
            }
        }
    }

    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Persist { id, record } => self.remember(&record, id),
            Action::Launch { worker } => {
                let pid = self.launched_number(worker)?;
                return Some(Event::Launched { worker, pid });
            }
            Action::Sweep { generation, workers } => {
                if let Stage::Live(live) = &mut self.stage {
                    let alive = workers.iter().flat_map(|worker| self.roster.alive(*worker));
                    let pods = alive.map(|pod| pod.uid.clone()).collect();
                    live.sweeps.push(Sweep { generation, workers, pods, since: clock() });
                }
            }
            Action::Send { worker, incarnation, message } => self.send(worker, incarnation, message),
            Action::Restarting { cause, .. } => {
                tracing::warn!(job = %self.key, message = cause.message, "a job is restarted");
                self.context.metrics.restarts.inc();
            }
            Action::Server { news, message, .. } => {
                if news == ServerNews::Back {
                    tracing::info!(job = %self.key, message, "a data server is there");
                } else {
                    tracing::warn!(job = %self.key, reason = news.code(), message, "a data server is not there");
                }
            }
            Action::Done(_) => {}
        }
        None
    }

    fn send(&mut self, worker: WorkerId, incarnation: Incarnation, message: ToWorker) {
        let Stage::Live(live) = &mut self.stage else { return };
        let key = (worker, incarnation);
        let is_last = matches!(message, ToWorker::Refuse { .. });
        let is_sent = live.sessions.get(&key).is_some_and(|session| session.send(message));
        if is_last || !is_sent {
            // Dropping it closes the connection; a worker that is still wanted comes again and is told again.
            live.sessions.remove(&key);
        }
    }

    /// Takes a record into the memory, and begins to write that down.
    pub(super) fn remember(&mut self, record: &Record, id: RecordId) {
        self.stored.memory.take(record);
        if matches!(record, Record::Generation { .. }) {
            self.stored.resumed = self.resumption();
        }
        self.unwritten = Some(id);
        self.write();
    }

    fn write(&mut self) {
        let (Some(id), false) = (self.unwritten, self.is_writing) else { return };
        self.is_writing = true;
        self.unwritten = None;
        let (calls, key, owner, stored) =
            (self.context.calls.clone(), self.key.clone(), self.key.owner(), self.stored.clone());
        self.tasks.spawn(async move {
            loop {
                let result = calls.write_memory(&key, &owner, &stored).await;
                match &result {
                    Err(error) if error.is_conflict() => {
                        // Perhaps an answer of ours was lost: then what is there is what we wrote.
                        match calls.memory(&key).await {
                            Ok(there) if there.memory == stored.memory => {
                                return Done::Written { id, result: Ok(there.version) };
                            }
                            // Left by an earlier object of that name, and on its way out with it.
                            Ok(there) if stored.version.is_none() && there.version.is_none() => {}
                            Ok(_) => return Done::Written { id, result },
                            Err(_) => {}
                        }
                    }
                    Err(CallError::Kube(_) | CallError::Late) if !is_final(&result) => {}
                    _ => return Done::Written { id, result },
                }
                tokio::time::sleep(WRITE_AGAIN).await;
            }
        });
    }

    pub(super) fn written(&mut self, id: RecordId, result: Result<Option<String>, CallError>) {
        self.is_writing = false;
        match result {
            Ok(version) => {
                self.stored.version = version;
                self.handle(Event::Persisted(id));
                self.write();
            }
            // Its objects go with it.
            Err(_) if matches!(self.stage, Stage::Leaving) => {}
            Err(error) => {
                tracing::error!(job = %self.key, %error, "the membership's memory cannot be written");
                self.is_lost = true;
            }
        }
    }

    /// What is due while the membership is in charge.
    pub(super) fn tend_live(&mut self) {
        self.obey_wish();
        self.tend_sweeps();
        self.tend_stuck();
        let Stage::Live(live) = &self.stage else { return };
        let phase = live.group.phase();
        // Kubelets answer after the last gate is lifted, when the membership already waits for its workers. One that has run
        // is worth more patience.
        let has_run = self.stored.memory.seated.0 > 0;
        if phase == Phase::Gathering && !has_run && self.is_hopeless() {
            return;
        }
        let Stage::Live(live) = &mut self.stage else { return };
        if std::mem::replace(&mut live.phase, phase) != phase && phase == Phase::Running {
            self.teller.runs();
            // Hosts took all pods: what refused some before is history.
            self.refused_by.clear();
        }
        // Whoever comes when all is over would only be ended again.
        if !phase.is_over() {
            self.tend_gates();
        }
        let Stage::Live(live) = &self.stage else { return };
        let Some(outcome) = live.group.outcome() else { return };
        let is_held = matches!(outcome, Outcome::Cancelled) && self.wish() == Wish::Hold;
        self.teller.ends();
        // Written only when all of it is: what follows looks at what is stored.
        if self.unwritten.is_some() || self.is_writing {
            return;
        }
        self.inbound = None;
        if is_held {
            self.clear();
        } else {
            self.rest();
        }
    }

    fn obey_wish(&mut self) {
        let now = match self.wish() {
            Wish::Run => return,
            Wish::Hold => false,
            Wish::Cancel { now } => now,
        };
        let Stage::Live(live) = &mut self.stage else { return };
        // A second wish can only be more urgent.
        if live.cancelled.is_some_and(|told| told || !now) {
            return;
        }
        live.cancelled = Some(now);
        self.handle(Event::Cancel { now });
    }

    fn tend_sweeps(&mut self) {
        let Stage::Live(live) = &mut self.stage else { return };
        let mut swept = Vec::new();
        let mut due = Vec::new();
        let is_over = live.group.phase().is_over();
        live.sweeps.retain_mut(|sweep| {
            let alive = sweep.workers.iter().flat_map(|worker| self.roster.alive(*worker));
            let alive: Vec<&PodView> = alive.filter(|pod| sweep.pods.contains(&pod.uid)).collect();
            if alive.is_empty() {
                let workers = std::mem::take(&mut sweep.workers);
                swept.push(Event::Swept { generation: sweep.generation, workers });
                return false;
            }
            due.extend(alive.into_iter().map(|pod| (pod.clone(), sweep.since)));
            true
        });
        let at_once = live.cancelled == Some(true) && is_over;
        for (pod, since) in due {
            self.end_pod(&pod, since, at_once);
        }
        for event in swept {
            self.handle(event);
        }
    }

    /// Sees to it that a pod ends, which it was to since `since`.
    pub(super) fn end_pod(&mut self, pod: &PodView, since: Instant, at_once: bool) {
        let policy = policy(pod, self.job.as_ref());
        let is_answering = self.is_answering(pod);
        if !is_answering && policy == NodeLost::Wait {
            let host = pod.host.as_deref().unwrap_or("a node");
            self.teller.waits_for(format!(
                "{host} does not answer, and spec.pod.nodeLost is wait: pod {} may still run",
                pod.name
            ));
        }
        self.delete_pod(pod, how_to_end(policy, is_answering, since.elapsed(), at_once));
    }

    /// Whether the kubelet of a pod's node would say that it has ended.
    pub(super) fn is_answering(&self, pod: &PodView) -> bool {
        pod.host.as_deref().is_some_and(|host| self.context.caches.is_ready(host))
    }
}

/// What is to become of a pod whose node does not answer.
fn policy(pod: &PodView, job: Option<&Job>) -> NodeLost {
    match pod.is_server {
        // It runs no rank: nothing that it does unseen is beside another's work.
        true => NodeLost::Replace,
        false => job.map(|job| job.pod.node_lost).unwrap_or_default(),
    }
}

/// How a pod is deleted that was to end `waited` ago.
fn how_to_end(policy: NodeLost, is_answering: bool, waited: Duration, at_once: bool) -> Deletion {
    match (policy, is_answering, at_once) {
        (NodeLost::Replace, false, _) if waited >= FORCE_AFTER => Deletion::WriteOff,
        (_, _, true) => Deletion::AtOnce,
        (_, _, false) => Deletion::InOrder,
    }
}

/// Whether writing again cannot help.
fn is_final(result: &Result<Option<String>, CallError>) -> bool {
    matches!(result, Err(error) if error.is_refused() || error.is_absent())
}

/// The certificates of all workers.
fn authority(
    job_uid: &str,
    seed: crate::rendezvous::authority::Seed,
    job: &Job,
) -> Result<Authority, AuthorityError> {
    let mut authority = Authority::new(job_uid, seed)?;
    for worker in (0..job.processes()).map(WorkerId) {
        authority.worker(worker)?;
    }
    Ok(authority)
}

fn config(job: &Job, authority: &Authority) -> GroupConfig {
    let prints = authority.fingerprints().iter().map(|(print, worker)| (*worker, print));
    GroupConfig { finds_workers: true, ..terms::group(job, timing(), prints) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_on_a_dead_node_is_written_off_in_time_if_the_job_allows_it() {
        use NodeLost::{Replace, Wait};
        assert_eq!(how_to_end(Replace, false, FORCE_AFTER, true), Deletion::WriteOff);
        assert_eq!(how_to_end(Replace, false, FORCE_AFTER - Duration::from_secs(1), true), Deletion::AtOnce);
        assert_eq!(how_to_end(Replace, true, FORCE_AFTER, false), Deletion::InOrder);
        assert_eq!(how_to_end(Wait, false, FORCE_AFTER, false), Deletion::InOrder);
    }

    #[test]
    fn of_a_data_server_it_is_always_allowed() {
        let mut resource = super::super::tests::resource();
        resource.spec["pod"]["nodeLost"] = "wait".into();
        let job = super::super::resource::job(&resource).ok();
        let worker = super::super::tests::pod(&serde_json::json!({"containers": []}), &serde_json::json!({}));
        assert_eq!(policy(&worker, job.as_ref()), NodeLost::Wait);
        let server = PodView { is_server: true, ..worker };
        assert_eq!(policy(&server, job.as_ref()), NodeLost::Replace);
    }
}
