//! An actor's pods and their places: asking for them, giving them, and what happens when a place was none.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::mpsc;
use worker::units::WorkerId;

use super::{Actor, Done, PODS_MAX, Stage};
use crate::backend::CauseCode;
use crate::backend::clock::{clock, unix_ms};
use crate::backend::kubernetes::controller::api::CallError;
use crate::backend::kubernetes::controller::devices;
use crate::backend::kubernetes::controller::ledger::{Answer, Holding, Place};
use crate::backend::kubernetes::controller::planner::Wish;
use crate::backend::kubernetes::controller::pods::{PodStage, PodView};
use crate::backend::kubernetes::objects;
use crate::placement::{PlacedWorker, Request};
use crate::rendezvous::group::{Cause, Outcome, Record, RecordId};

/// A placed pod that the scheduler cannot bring to its host for this long is placed elsewhere: what keeps it away may
/// be a pod that is about to end.
const STUCK_MAX: Duration = Duration::from_secs(10);
/// Times that hosts may refuse pods of one job before it runs, or it is given up: beyond it the plan and the cluster disagree
/// for good.
const REFUSALS_MAX: u32 = 16;
/// How long nothing is planned for a host after its first refusal; twice that after one that comes later, and so on. A device
/// plugin that is being restarted is back by then, and all that it refuses meanwhile is one refusal.
const SHUNNED: Duration = Duration::from_secs(120);
const SHUNNED_MAX: Duration = Duration::from_secs(3600);

/// A host did not take a pod that was planned for it.
#[derive(Debug)]
pub(super) struct Refusal {
    why: String,
    times: u32,
    since: Instant,
    /// Nothing is planned for the host.
    holds: bool,
}

impl Refusal {
    fn is_past(&self, now: Instant) -> bool {
        let shunned = SHUNNED.saturating_mul(1 << self.times.saturating_sub(1).min(8)).min(SHUNNED_MAX);
        now.saturating_duration_since(self.since) >= shunned
    }
}

impl Actor {
    /// Wants places for these workers; the others keep theirs.
    pub(super) fn ask(&mut self, workers: Vec<WorkerId>) {
        let Some(request) = self.request(workers) else { return };
        let created = self.resource.metadata.creation_timestamp.as_ref();
        let created = created.and_then(|time| u64::try_from(time.0.as_millisecond()).ok()).unwrap_or(0);
        self.teller.asks(unix_ms());
        let (key, answers) = (self.key.clone(), self.listen_anew());
        self.wishes.push(Wish::Ask { key, created, request: Box::new(request), answers });
    }

    /// Wants the places of the whole gang planned again, on what is free now.
    fn renew(&mut self) {
        let Some(request) = self.request(self.workers()) else { return };
        self.plan.clear();
        let (key, answers) = (self.key.clone(), self.listen_anew());
        self.wishes.push(Wish::Renew { key, request: Box::new(request), answers });
    }

    fn request(&mut self, workers: Vec<WorkerId>) -> Option<Request> {
        let job = self.job.as_ref()?;
        let mut request = objects::request(job);
        self.asked = workers.iter().copied().collect();
        request.workers = workers;
        let placed = self.roster.placed();
        let placed = placed.iter().filter(|(worker, _)| !self.asked.contains(worker));
        request.placed = placed.filter_map(|(worker, pod)| Some((*worker, pod.host.clone()?))).collect();
        let refusals = self.refused_by.iter().filter(|(_, refusal)| refusal.holds);
        request.shunned.extend(refusals.map(|(host, refusal)| (host.clone(), refusal.why.clone())));
        let classes = self.context.caches.device_classes();
        let classes: Vec<&serde_json::Value> = classes.iter().map(AsRef::as_ref).collect();
        devices::name_drivers(&mut request.need, &classes);
        // All pods of a job are made from one template.
        request.need.gpu_name = request.need.gpu_name.or_else(|| self.devices.gpu.clone());
        request.need.nic_name = request.need.nic_name.or_else(|| self.devices.nic.clone());
        Some(request)
    }

    pub(super) async fn flush_planner(&mut self) {
        for wish in std::mem::take(&mut self.wishes) {
            self.context.planner.tell(wish).await;
        }
    }

    pub(super) fn answered(&mut self, answer: Answer) {
        self.has_gates = true;
        match answer {
            Answer::Refused(refused) => {
                tracing::info!(job = %self.key, %refused, never = refused.never, "no places");
                self.teller.refused(&refused);
                // Nothing of it has run, and half of a gang must not keep what others could use.
                if matches!(self.stage, Stage::Gating { .. }) {
                    self.clear();
                }
            }
            Answer::Granted(placement) => {
                let waited = self.teller.granted(unix_ms());
                self.context.metrics.placement_wait.observe(waited.as_secs_f64());
                self.devices = devices::Names { gpu: placement.gpu_name, nic: placement.nic_name };
                for place in placement.workers {
                    self.asked.remove(&place.worker);
                    self.plan.insert(place.worker, place);
                }
                self.is_confirmed |= matches!(self.stage, Stage::Gating { .. });
                if matches!(self.stage, Stage::Asking) {
                    self.create();
                }
            }
        }
    }

    /// Everything that the job holds or waits for is free again. No answer that is under way counts any more.
    pub(super) fn release_all(&mut self) {
        self.forget_all();
        self.teller.released();
        self.wishes.push(Wish::Release { key: self.key.clone(), workers: None });
    }

    fn forget_all(&mut self) {
        self.plan.clear();
        self.bound.clear();
        self.asked.clear();
        self.listen_anew();
    }

    /// Where the next answer comes. One to an earlier wish, which may be under way, comes nowhere.
    fn listen_anew(&mut self) -> mpsc::Sender<Answer> {
        self.answers = mpsc::channel(super::SIGNALS_MAX);
        self.answers.0.clone()
    }

    /// What the job's pods have is held, whoever gave it to them, and nothing else is.
    pub(super) fn hold_what_runs(&mut self) {
        let Some(holding) = self.needed() else { return self.avoid_what_runs() };
        self.hold(holding);
        // Told after what is held, so that nobody is placed there in between.
        self.wishes.push(Wish::Avoid { key: self.key.clone(), hosts: BTreeSet::new() });
    }

    fn hold(&mut self, mut holding: Holding) {
        let placed: Vec<PodView> = self.roster.placed().into_values().cloned().collect();
        if placed.is_empty() {
            return self.release_all();
        }
        self.forget_all();
        for pod in &placed {
            self.take_place(pod, &mut holding);
            self.moved.insert(pod.worker);
        }
        self.wishes.push(Wish::Hold { key: self.key.clone(), holding: Box::new(holding) });
        self.release_ended();
    }

    /// A pod has its place, whoever gave it to it: it is planned so, and held with the names that were written down with it.
    fn take_place(&mut self, pod: &PodView, holding: &mut Holding) {
        let Some(host) = pod.host.clone() else { return };
        let (worker, numa_node) = (pod.worker, pod.numa_node());
        self.devices.learn(devices::Names::noted(&pod.place_note()));
        holding.gpu_name.clone_from(&self.devices.gpu);
        holding.nic_name.clone_from(&self.devices.nic);
        holding.places.insert(worker, Place { host: host.clone(), numa: numa_node, admitted: None });
        self.plan.insert(worker, PlacedWorker { worker, host, cpus: Vec::new(), numa_node });
    }

    /// What each of the job's workers needs; none for what is no job.
    fn needed(&self) -> Option<Holding> {
        let request = objects::request(self.job.as_ref()?);
        Some(Holding { need: request.need, locality: request.locality, ..Holding::default() })
    }

    /// What an earlier controller took for a job, and this one does not, runs on: nobody can say what it holds.
    pub(super) fn avoid_what_runs(&mut self) {
        let alive = self.roster.pods().filter(|pod| pod.is_alive());
        let hosts = alive.filter_map(|pod| pod.host.clone()).collect();
        self.wishes.push(Wish::Avoid { key: self.key.clone(), hosts });
    }

    /// Takes over what an earlier controller began, or this one in an earlier attempt.
    pub(super) fn adopt(&mut self) {
        self.hold_what_runs();
        // Whoever has a place keeps it, and the others are asked for now.
        self.is_confirmed = true;
        self.has_gates = true;
        self.stage = Stage::Gating { since: clock() };
        if self.stored.memory.generation.0 > 0 {
            self.go_live();
        }
    }

    /// All workers, spares included.
    pub(super) fn workers(&self) -> Vec<WorkerId> {
        let total = self.job.as_ref().map_or(0, |job| job.workers.total());
        (0..total).map(WorkerId).collect()
    }

    /// And the data servers.
    pub(super) fn everybody(&self) -> Vec<WorkerId> {
        let total = self.job.as_ref().map_or(0, |job| job.processes());
        (0..total).map(WorkerId).collect()
    }

    /// Until every worker has its place.
    pub(super) fn tend_gating(&mut self, since: Instant) {
        if self.wish() != super::Wish::Run {
            return self.clear();
        }
        if self.is_hopeless() {
            return;
        }
        let workers = self.workers();
        let total = workers.len();
        let missing = total - self.roster.workers_with(total, PodView::is_current);
        if missing == 0 && !self.is_confirmed {
            if self.asked.is_empty() {
                self.renew();
            }
            return;
        }
        if missing == 0 {
            self.tend_gates();
            if self.roster.workers_with(total, PodView::is_placed) == total {
                self.go_live();
            }
            return;
        }
        let queue = self.job.as_ref().and_then(|job| job.queue.as_ref());
        if let Some(queue) = queue.filter(|_| missing == total) {
            // It makes no pods before it is admitted. Until then its places may serve others; they are planned again.
            self.teller.waits_for(format!("queue {} has not admitted it yet", queue.name));
            // Those that it took back may still run.
            if !self.plan.is_empty() && self.is_quiet() {
                self.release_all();
                self.is_confirmed = false;
            }
            self.stage = Stage::Gating { since: clock() };
            return;
        }
        self.teller.waits_for(format!("{missing} of {} pods are not there yet", workers.len()));
        if since.elapsed() >= PODS_MAX && !std::mem::replace(&mut self.is_asking_why, true) {
            let (calls, namespace) = (self.context.calls.clone(), self.key.namespace.clone());
            let child = crate::backend::kubernetes::names::child(&self.key.name);
            self.tasks.spawn(async move { Done::Warned(calls.warnings(&namespace, &child).await) });
        }
    }

    /// The child's pods do not appear: its places go to others, and it tries again later.
    pub(super) fn give_up_child(&mut self, warnings: &[String]) {
        self.is_asking_why = false;
        if !matches!(self.stage, Stage::Gating { .. }) {
            return;
        }
        let why = if warnings.is_empty() { "nobody says why".to_owned() } else { warnings.join("; ") };
        self.teller.trouble(format!(
            "not all pods were made within {} s, so its places were given back: {why}",
            PODS_MAX.as_secs()
        ));
        self.clear();
    }

    /// Gives gated pods their places, and asks for those that have none.
    pub(super) fn tend_gates(&mut self) {
        if !std::mem::take(&mut self.has_gates) {
            return;
        }
        // Those that a call is under way for stay gated until their watch tells.
        let is_due = |worker: &WorkerId, pod: &PodView| {
            !self.busy.contains(&pod.uid) || !self.plan.contains_key(worker)
        };
        let gated = self.roster.gated().into_iter().filter(|(worker, pod)| is_due(worker, pod));
        let gated: BTreeMap<WorkerId, PodView> = gated.map(|(worker, pod)| (worker, pod.clone())).collect();
        let mut homeless = Vec::new();
        for (worker, pod) in gated {
            match self.plan.get(&worker).cloned() {
                Some(place) => self.place(&pod, &place),
                None if !self.asked.contains(&worker) => homeless.push(worker),
                None => {}
            }
        }
        if !homeless.is_empty() {
            homeless.extend(self.asked.iter().copied());
            homeless.sort();
            self.ask(homeless);
        }
    }

    fn place(&mut self, pod: &PodView, place: &PlacedWorker) {
        if self.pauses.holds(&pod.uid, clock()) || !self.busy.insert(pod.uid.clone()) {
            return;
        }
        let note = json!({
            "host": place.host,
            "numaNode": place.numa_node,
            "gpu": self.devices.gpu,
            "nic": self.devices.nic,
        });
        let (calls, namespace) = (self.context.calls.clone(), self.key.namespace.clone());
        let (pod, uid) = (pod.name.clone(), pod.uid.clone());
        let hostname = self.context.caches.hostname(&place.host);
        self.teller.gates_begin(clock());
        self.tasks.spawn(async move {
            let result = calls.place(&namespace, &pod, &uid, &hostname, &note).await;
            Done::Placed { pod, uid, result }
        });
    }

    pub(super) fn placed(&mut self, pod: &str, uid: &str, result: Result<(), CallError>) {
        match result {
            // It stays busy: its gate is gone, which its watch will tell.
            Ok(()) => {
                self.pauses.succeeded(uid);
                if let Some(took) = self.teller.gate_lifted(clock()) {
                    self.context.metrics.ungate.observe(took.as_secs_f64());
                }
            }
            Err(error) => {
                // The next tick looks again.
                self.pauses.failed(uid, clock());
                self.teller.gate_stays();
                self.busy.remove(uid);
                if !error.is_absent() && !error.is_conflict() {
                    tracing::warn!(job = %self.key, pod, %error, "cannot give a pod its place");
                    self.teller.trouble(format!("cannot give pod {pod} its place: {error}"));
                }
            }
        }
    }

    /// The kubelet of a planned host did not admit a pod: what was planned for it is not there.
    pub(super) fn rejected(&mut self, pod: &str, worker: WorkerId, host: &str, why: &str) {
        tracing::warn!(job = %self.key, pod, %worker, host, why, "a pod is placed again, elsewhere");
        let before = self.refused_by.get(host);
        let times = before.map_or(1, |refusal| refusal.times.saturating_add(u32::from(!refusal.holds)));
        let told = format!("refused a pod of this job: {why}");
        self.refused_by.insert(host.to_owned(), Refusal { why: told, times, since: clock(), holds: true });
        // After a restart an earlier pod's refusal is news again, and its worker may have its place elsewhere.
        if self.plan.get(&worker).is_some_and(|place| place.host == host) {
            self.forget_place(worker);
        }
        self.teller.trouble(format!("{host} refused worker {worker}, which is placed elsewhere: {why}"));
    }

    /// Hosts have refused pods of this job for too often: it ends. Whether it does.
    pub(super) fn is_hopeless(&mut self) -> bool {
        let refusals = self.refused_by.values().map(|refusal| refusal.times).fold(0, u32::saturating_add);
        if refusals < REFUSALS_MAX {
            return false;
        }
        let message = format!("hosts refused pods {refusals} times that they had room for by all accounts");
        let mut cause = Cause::plain(CauseCode::Unplaceable, self.stored.memory.generation, message);
        "`launcher doctor` compares what the cluster offers with what it says".clone_into(&mut cause.hint);
        let told = self.refused_by.iter().map(|(host, refusal)| format!("{host}: {}", refusal.why));
        cause.log_tail = told.collect();
        let outcome = Outcome::Failed { cause: Box::new(cause) };
        // It was tried: only another resumption starts it again.
        self.stored.resumed = self.resumption();
        self.remember(&Record::End { outcome, summary: Box::new(self.stored.memory.summary()) }, RecordId(0));
        self.refused_by.clear();
        self.clear();
        true
    }

    /// Hosts that refused pods a while ago may be planned for again, also for those who wait now.
    pub(super) fn forgive(&mut self, now: Instant) {
        let past = self.refused_by.values_mut().filter(|refusal| refusal.holds && refusal.is_past(now));
        let forgiven = past.map(|refusal| refusal.holds = false).count();
        if forgiven > 0 && !self.asked.is_empty() {
            self.ask(self.asked.iter().copied().collect());
        }
    }

    /// Pods that the scheduler cannot bring to their hosts are placed again after a while.
    pub(super) fn tend_stuck(&mut self) {
        let now = clock();
        let stuck: Vec<(PodView, String)> =
            self.roster.unschedulable().map(|(pod, why)| (pod.clone(), why.to_owned())).collect();
        self.stuck.retain(|uid, _| stuck.iter().any(|(pod, _)| pod.uid == *uid));
        for (pod, why) in stuck {
            let since = *self.stuck.entry(pod.uid.clone()).or_insert(now);
            if now.saturating_duration_since(since) < STUCK_MAX {
                continue;
            }
            self.stuck.remove(&pod.uid);
            let host = pod.host.clone().unwrap_or_default();
            self.rejected(&pod.name, pod.worker, &host, &why);
            self.delete_pod(&pod, Deletion::InOrder);
        }
    }

    /// A worker's place is free again, and the worker is to get another.
    pub(super) fn forget_place(&mut self, worker: WorkerId) {
        if self.plan.remove(&worker).is_some() {
            let workers = Some([worker].into());
            self.wishes.push(Wish::Release { key: self.key.clone(), workers });
        }
    }

    /// Workers whose placed pods have ended give their places back: their next pods may go elsewhere.
    pub(super) fn release_ended(&mut self) {
        if self.job.is_none() && !self.moved.is_empty() {
            self.moved.clear();
            return self.avoid_what_runs();
        }
        for worker in std::mem::take(&mut self.moved) {
            let is_there = self.roster.alive(worker).next().is_some();
            if !is_there && self.bound.remove(&worker).is_some() {
                self.forget_place(worker);
            }
            if let Some(pod) = self.roster.placed_of(worker) {
                let pod = pod.clone();
                self.busy.remove(&pod.uid);
                self.bound.insert(worker, pod.uid.clone());
                self.hold_where_it_is(&pod);
                if pod.is_admitted {
                    self.wishes.push(Wish::Admitted { key: self.key.clone(), worker });
                }
            }
        }
    }

    /// An earlier controller's last call may have placed a pod after this one had planned it elsewhere, or nowhere any more.
    fn hold_where_it_is(&mut self, pod: &PodView) {
        // One that no scheduler can bring there has nothing there, and is placed anew.
        let is_stuck = matches!(pod.stage, PodStage::Unschedulable { .. });
        let planned = self.plan.get(&pod.worker).map(|place| &place.host);
        if is_stuck || pod.host.is_none() || planned == pod.host.as_ref() {
            return;
        }
        let Some(mut holding) = self.needed() else { return };
        self.take_place(pod, &mut holding);
        self.wishes.push(Wish::Has { key: self.key.clone(), holding: Box::new(holding) });
    }

    pub(super) fn delete_pod(&mut self, pod: &PodView, how: Deletion) {
        if self.pauses.holds(&pod.uid, clock()) || !self.deleted.insert((pod.uid.clone(), how)) {
            return;
        }
        let (calls, namespace) = (self.context.calls.clone(), self.key.namespace.clone());
        let (name, uid) = (pod.name.clone(), pod.uid.clone());
        self.tasks.spawn(async move {
            let result = match how {
                Deletion::InOrder => calls.delete_pod(&namespace, &name, &uid, None).await,
                Deletion::AtOnce => calls.delete_pod(&namespace, &name, &uid, Some(Duration::ZERO)).await,
                Deletion::WriteOff => calls.write_off(&namespace, &name, &uid).await,
            };
            Done::Deleted { uid, how, result }
        });
    }
}

/// How a pod is deleted; each way is tried until it succeeds once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deletion {
    /// Its containers may end as they like, within the pod's grace.
    InOrder,
    /// Without grace.
    AtOnce,
    /// Its node does not answer, so nobody there will say that it ended.
    WriteOff,
}
