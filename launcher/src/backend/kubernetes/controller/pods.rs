//! The pods of one job, as far as the controller cares, and what a change of one of them means (pure).
//!
//! ```text
//! pod of worker w:  gated ──placed──▶ bound ──sidecar runs──▶ launched ──ended, deleted──▶ gone
//!                                       │
//!                                       ├── the scheduler cannot bring it there: unschedulable
//!                                       └── the kubelet does not admit it: rejected
//! ```
//! A worker may have several pods at a time: one that ends and the one that the child's controller has made to replace it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use worker::pod::process_number;
use worker::units::WorkerId;

use crate::backend::kubernetes::names;

/// Reasons of a failed pod that say that the kubelet did not admit it: what was planned for it is not there.
const NOT_ADMITTED: [&str; 8] = [
    "TopologyAffinityError",
    "UnexpectedAdmissionError",
    "SMTAlignmentError",
    "NodeAffinity",
    "NodeName",
    "NodePorts",
    "AdmissionFailed",
    "OutOf",
];

/// What is known of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// Its uid: a pod of the same name later is another.
    pub uid: String,
    /// Which worker it is.
    pub worker: WorkerId,
    /// It is a data server: it has no place of a gang, and is the scheduler's business.
    pub is_server: bool,
    /// It waits for its place.
    pub is_gated: bool,
    /// The host that it was placed on, or runs on.
    pub host: Option<String>,
    /// What [`names::ANNOTATION_PLACED`] says.
    pub placed: Option<String>,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Its kubelet has taken it, and with it what it was given.
    pub is_admitted: bool,
    /// How far it is.
    pub stage: PodStage,
    /// Somebody has asked for its deletion.
    pub is_leaving: bool,
    /// What keeps it from running, for people; empty when nothing does.
    pub trouble: String,
}

/// How far a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodStage {
    /// No container of it has run.
    Waiting,
    /// The scheduler finds no node for it.
    Unschedulable {
        /// Why.
        why: String,
    },
    /// Its sidecar has been started.
    Running,
    /// The kubelet did not admit it.
    Rejected {
        /// Why.
        why: String,
    },
    /// No container of it runs any more.
    Ended {
        /// How.
        how: String,
    },
}

impl PodView {
    /// What is known of `pod`; none for one that is no worker's.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let meta = &pod.metadata;
        let labels = meta.labels.as_ref()?;
        let index: u32 = labels.get(names::LABEL_INDEX)?.parse().ok()?;
        let is_server = labels.get(names::LABEL_ROLE).is_some_and(|role| role == names::ROLE_SERVER);
        let first = meta.annotations.as_ref().and_then(|notes| notes.get(names::ANNOTATION_FIRST_WORKER));
        let first: u32 = if is_server { first?.parse().ok()? } else { 0 };
        let spec = pod.spec.as_ref()?;
        let gates = spec.scheduling_gates.as_deref().unwrap_or_default();
        let chosen = spec.node_selector.as_ref().and_then(|labels| labels.get(names::LABEL_HOSTNAME));
        let placed = meta.annotations.as_ref().and_then(|notes| notes.get(names::ANNOTATION_PLACED));
        let noted = placed.and_then(|text| note(text)["host"].as_str().map(str::to_owned));
        Some(Self {
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
            worker: WorkerId(first.checked_add(index)?),
            is_server,
            is_gated: gates.iter().any(|gate| gate.name == names::GATE),
            host: spec.node_name.clone().or(noted).or_else(|| chosen.cloned()),
            placed: placed.cloned(),
            created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            is_admitted: pod.status.as_ref().is_some_and(|status| status.start_time.is_some()),
            stage: stage(pod),
            is_leaving: meta.deletion_timestamp.is_some(),
            trouble: trouble(pod),
        })
    }

    /// Nothing of it runs, and nothing will.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.stage, PodStage::Ended { .. } | PodStage::Rejected { .. })
    }

    /// It is, or will be, its worker: it is not on its way out.
    #[must_use]
    pub fn is_current(&self) -> bool {
        !self.is_leaving && !self.is_over()
    }

    /// What was written down of its place when it got it; null where nothing was.
    #[must_use]
    pub fn place_note(&self) -> serde_json::Value {
        self.placed.as_deref().map(note).unwrap_or_default()
    }

    /// The NUMA node of its place, where the plan named one.
    #[must_use]
    pub fn numa_node(&self) -> Option<u32> {
        self.place_note()["numaNode"].as_u64().and_then(|node| u32::try_from(node).ok())
    }

    /// It has its place, and may run there.
    #[must_use]
    pub fn is_placed(&self) -> bool {
        !self.is_server && !self.is_gated && !self.is_over() && self.host.is_some()
    }

    /// Something of it may run, now or at any moment.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !(self.is_over() || self.is_gated && self.is_fresh())
    }

    /// Nothing of it has ever run.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        matches!(self.stage, PodStage::Waiting | PodStage::Unschedulable { .. })
    }
}

fn note(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_default()
}

fn stage(pod: &Pod) -> PodStage {
    let Some(status) = &pod.status else { return PodStage::Waiting };
    let reason = status.reason.as_deref().unwrap_or_default();
    let message = status.message.as_deref().unwrap_or_default();
    // A data server's is no init container.
    let sidecar = container(status.init_container_statuses.as_deref(), names::SIDECAR)
        .or_else(|| container(status.container_statuses.as_deref(), names::SIDECAR));
    let has_run = sidecar.is_some_and(|sidecar| {
        let state = sidecar.state.as_ref();
        state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
            || sidecar.restart_count > 0
    });
    match status.phase.as_deref() {
        Some("Failed") if NOT_ADMITTED.iter().any(|known| reason.starts_with(known)) => {
            PodStage::Rejected { why: format!("{reason}: {message}") }
        }
        Some("Failed") => {
            let told = if reason.is_empty() { ended(pod) } else { format!("{reason}: {message}") };
            PodStage::Ended { how: format!("its pod failed ({told})") }
        }
        Some("Succeeded") => PodStage::Ended { how: "its pod has ended".to_owned() },
        _ if has_run => PodStage::Running,
        _ => {
            let conditions = status.conditions.as_deref().unwrap_or_default();
            let refused = conditions.iter().find(|condition| {
                condition.type_ == "PodScheduled"
                    && condition.status == "False"
                    && condition.reason.as_deref() == Some("Unschedulable")
            });
            match refused {
                Some(condition) => {
                    PodStage::Unschedulable { why: condition.message.clone().unwrap_or_default() }
                }
                None => PodStage::Waiting,
            }
        }
    }
}

/// Which container ended and how, of a pod that failed without a reason of its own.
fn ended(pod: &Pod) -> String {
    let statuses = pod.status.iter().flat_map(|status| {
        let ranks = status.container_statuses.iter().flatten();
        ranks.chain(status.init_container_statuses.iter().flatten())
    });
    let ends = statuses.filter_map(|container| {
        let end = container.state.as_ref()?.terminated.as_ref().filter(|end| end.exit_code != 0)?;
        let reason = end.reason.as_deref().unwrap_or("Error");
        Some(format!("container {}: {reason}, exit code {}", container.name, end.exit_code))
    });
    ends.collect::<Vec<_>>().join("; ")
}

/// Containers that cannot start, in one line.
fn trouble(pod: &Pod) -> String {
    let Some(status) = &pod.status else { return String::new() };
    let containers =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let waiting = containers.filter_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting
            .reason
            .as_deref()
            .filter(|reason| !matches!(*reason, "PodInitializing" | "ContainerCreating"))?;
        let message = waiting.message.as_deref().unwrap_or_default();
        Some(format!("container {} waits: {reason} {message}", container.name).trim_end().to_owned())
    });
    waiting.collect::<Vec<_>>().join("; ")
}

fn container<'a>(statuses: Option<&'a [ContainerStatus]>, name: &str) -> Option<&'a ContainerStatus> {
    statuses?.iter().find(|status| status.name == name)
}

/// What a change means for the membership, or for the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The worker's sidecar runs.
    Launched {
        /// Which worker.
        worker: WorkerId,
        /// What it will register as its process.
        number: u32,
    },
    /// A launched pod has been told to end, by whoever deleted it.
    Leaving {
        /// Which worker.
        worker: WorkerId,
        /// What it registered as its process.
        number: u32,
    },
    /// Nothing of a launched pod runs any more.
    Gone {
        /// Which worker.
        worker: WorkerId,
        /// What it registered as its process.
        number: u32,
        /// How it ended.
        how: String,
    },
    /// The kubelet of the host where a pod was placed does not admit it.
    Rejected {
        /// Which pod.
        pod: String,
        /// Which worker.
        worker: WorkerId,
        /// The host that was meant.
        host: String,
        /// Why.
        why: String,
    },
}

/// All pods of a job.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    pods: BTreeMap<String, PodView>,
    /// The names of each worker's pods: with thousands of workers, nobody may look through all pods for each.
    by_worker: BTreeMap<WorkerId, BTreeSet<String>>,
    /// Pods whose sidecar has been told of, by name.
    launched: BTreeMap<String, PodView>,
    /// Pods whose rejection has been told of, by uid: their end is no news.
    rejected: BTreeMap<String, WorkerId>,
}

impl Roster {
    /// Takes the present state of one pod in.
    pub fn update(&mut self, pod: PodView) -> Vec<Change> {
        let mut changes = Vec::new();
        // Another pod of that name: the earlier one's end was not seen.
        if self.pods.get(&pod.name).is_some_and(|known| known.uid != pod.uid) {
            changes.extend(self.remove(&pod.name.clone()));
        }
        let number = process_number(&pod.uid);
        let worker = pod.worker;
        let knew = self.pods.get(&pod.name).is_some_and(|known| known.is_leaving);
        match &pod.stage {
            PodStage::Running if !self.launched.contains_key(&pod.name) => {
                self.launched.insert(pod.name.clone(), pod.clone());
                changes.push(Change::Launched { worker, number });
            }
            PodStage::Ended { how } if self.launched.remove(&pod.name).is_some() => {
                changes.push(Change::Gone { worker, number, how: how.clone() });
            }
            PodStage::Rejected { why } => {
                // A kubelet that was started again looks at pods that ran before it, too.
                if self.launched.remove(&pod.name).is_some() {
                    changes.push(Change::Gone {
                        worker,
                        number,
                        how: format!("its kubelet ended it ({why})"),
                    });
                }
                // A data server was planned by nobody here: the scheduler finds another node for the next one.
                if let Some(host) = pod.host.as_ref().filter(|_| !pod.is_server)
                    && self.rejected.insert(pod.uid.clone(), worker).is_none()
                {
                    let (pod, host, why) = (pod.name.clone(), host.clone(), why.clone());
                    changes.push(Change::Rejected { pod, worker, host, why });
                }
            }
            _ => {}
        }
        if pod.is_leaving && !knew && self.launched.contains_key(&pod.name) {
            changes.push(Change::Leaving { worker, number });
        }
        self.by_worker.entry(worker).or_default().insert(pod.name.clone());
        if let Some(before) = self.pods.insert(pod.name.clone(), pod)
            && before.worker != worker
        {
            self.forget(before.worker, &before.name);
        }
        changes
    }

    /// A pod's object is gone.
    pub fn remove(&mut self, name: &str) -> Vec<Change> {
        let Some(pod) = self.pods.remove(name) else { return Vec::new() };
        self.forget(pod.worker, name);
        self.rejected.remove(&pod.uid);
        let launched = self.launched.remove(name);
        let gone = launched.map(|pod| Change::Gone {
            worker: pod.worker,
            number: process_number(&pod.uid),
            how: "its pod was deleted".to_owned(),
        });
        gone.into_iter().collect()
    }

    fn forget(&mut self, worker: WorkerId, name: &str) {
        if let Some(names) = self.by_worker.get_mut(&worker) {
            names.remove(name);
            if names.is_empty() {
                self.by_worker.remove(&worker);
            }
        }
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &PodView> {
        self.pods.values()
    }

    /// The pod that is, or will be, the worker: the one that is not on its way out.
    #[must_use]
    pub fn current(&self, worker: WorkerId) -> Option<&PodView> {
        self.of(worker).find(|pod| pod.is_current())
    }

    /// The worker's pods of which something may run.
    pub fn alive(&self, worker: WorkerId) -> impl Iterator<Item = &PodView> {
        self.of(worker).filter(|pod| pod.is_alive())
    }

    /// Pods that wait for a place, by worker.
    #[must_use]
    pub fn gated(&self) -> BTreeMap<WorkerId, &PodView> {
        let waiting = self.pods.values().filter(|pod| pod.is_gated && pod.is_current());
        waiting.map(|pod| (pod.worker, pod)).collect()
    }

    /// How many of the workers below `total` have a pod that `is` so: one look at each pod.
    #[must_use]
    pub fn workers_with(&self, total: usize, is: impl Fn(&PodView) -> bool) -> usize {
        let mut have = vec![false; total];
        for pod in self.pods.values() {
            if is(pod)
                && let Ok(worker) = usize::try_from(pod.worker.0)
                && let Some(slot) = have.get_mut(worker)
            {
                *slot = true;
            }
        }
        have.into_iter().filter(|has| *has).count()
    }

    /// Which worker the pod of that name is.
    #[must_use]
    pub fn worker_of(&self, name: &str) -> Option<WorkerId> {
        self.pods.get(name).map(|pod| pod.worker)
    }

    /// The pod with which a worker has its place, if it has one.
    #[must_use]
    pub fn placed_of(&self, worker: WorkerId) -> Option<&PodView> {
        self.of(worker).filter(|pod| pod.is_placed()).last()
    }

    /// Workers that have a place, each with the pod that has it.
    #[must_use]
    pub fn placed(&self) -> BTreeMap<WorkerId, &PodView> {
        let placed = self.pods.values().filter(|pod| pod.is_placed());
        placed.map(|pod| (pod.worker, pod)).collect()
    }

    /// The pod that tells each worker's place, of ended ones too: the one that has it, else the last that had one. A pod
    /// that was not admitted never had any.
    #[must_use]
    pub fn last_placed(&self) -> BTreeMap<WorkerId, &PodView> {
        let mut last = BTreeMap::<WorkerId, &PodView>::new();
        let rank = |pod: &PodView| (pod.is_placed(), pod.created);
        let was_placed = |pod: &&PodView| {
            !pod.is_gated && pod.host.is_some() && !matches!(pod.stage, PodStage::Rejected { .. })
        };
        for pod in self.pods.values().filter(was_placed) {
            let told = last.entry(pod.worker).or_insert(pod);
            if rank(pod) > rank(told) {
                *told = pod;
            }
        }
        last
    }

    /// Placed pods that the scheduler cannot bring where they were placed, each with its reason. That may pass.
    pub fn unschedulable(&self) -> impl Iterator<Item = (&PodView, &str)> {
        let ours = self.pods.values().filter(|pod| !pod.is_gated && !pod.is_leaving && !pod.is_server);
        ours.filter_map(|pod| match &pod.stage {
            PodStage::Unschedulable { why } => Some((pod, why.as_str())),
            _ => None,
        })
    }

    fn of(&self, worker: WorkerId) -> impl Iterator<Item = &PodView> {
        let pods = &self.pods;
        let names = self.by_worker.get(&worker).into_iter().flatten();
        names.filter_map(move |name| pods.get(name))
    }
}

#[cfg(test)]
mod tests;
