//! Actors beside an API server that fails at the worst moment: what each may hold, and what it must not do.

use std::net::SocketAddr;

use axum::http::{Method, StatusCode};
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;
use worker::units::Generation;

use super::*;
use crate::backend::kubernetes::controller::Options;
use crate::backend::kubernetes::controller::api::Calls;
use crate::backend::kubernetes::controller::planner::Planner;
use crate::backend::kubernetes::controller::watch::Caches;
use crate::backend::kubernetes::objects::{self, ChildKind, SEED_KEY};
use crate::rendezvous::group::{Memory, Outcome};
use crate::rendezvous::server::Server;
use crate::serve::metrics::Metrics;
use api_server::ApiServer;

mod api_server;
mod mishaps;

const CHILD: &str = "/apis/batch/v1/namespaces/research/jobs/a";
const MEMORY: &str = "/api/v1/namespaces/research/configmaps/a-memory";
const JOB: &str = "/apis/slipway.dev/v1alpha1/namespaces/research/trainingjobs/a";
const PODS: &str = "/api/v1/namespaces/research/pods/";
/// Whatever is waited for happens long before.
const SOON: Duration = Duration::from_secs(20);
/// What must not happen has time to, if it does.
const A_WHILE: Duration = Duration::from_millis(300);

/// A cluster of one node with one GPU.
pub(in super::super) struct Rig {
    api: ApiServer,
    pub(in super::super) context: Arc<Context>,
    rivals: u32,
}

impl Rig {
    /// With devices as `node-1` offers them.
    pub(in super::super) fn new(offers: &Value) -> Self {
        let mut resources = json!({"cpu": "8", "memory": "32Gi", "pods": "20"});
        resources.as_object_mut().unwrap().extend(offers.as_object().unwrap().clone());
        let node = json!({
            "metadata": {"name": "node-1", "labels": {names::LABEL_HOSTNAME: "node-1.example.org"}},
            "status": {
                "capacity": resources, "allocatable": resources,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        let api = ApiServer::default();
        let metrics = Arc::new(Metrics::default());
        let caches = Caches::of(vec![serde_json::from_value(node).unwrap()]);
        let options = Options {
            sidecar_image: "worker:1".to_owned(),
            advertise: SocketAddr::from(([127, 0, 0, 1], 7071)),
            namespace: None,
            levels: Default::default(),
            naming: Default::default(),
            child: ChildKind::Job,
        };
        let context = Context {
            calls: Calls::new(api.client(), Arc::clone(&metrics)),
            planner: Planner::start(Arc::clone(&caches), Arc::clone(&metrics)),
            caches,
            server: Server::start(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap(),
            metrics,
            child_kind: options.child,
            child: super::super::api::kind_of(options.child.api_version(), options.child.kind()),
            options,
        };
        Self { api, context: Arc::new(context), rivals: 0 }
    }

    /// One whose planner answers.
    pub(in super::super) async fn open() -> Self {
        let rig = Self::new(&json!({"nvidia.com/gpu": "1"}));
        rig.context.planner.tell(planner::Wish::Open).await;
        rig
    }

    async fn start(&self, resource: &TrainingJob, pods: &[PodView]) -> Handle {
        start(Arc::clone(&self.context), resource.clone(), pods.iter().cloned()).await.unwrap()
    }

    /// An earlier controller wrote this down.
    pub(in super::super) fn remembers(&self, outcome: Option<Outcome>, generation: u64) {
        let memory = Memory { outcome, generation: Generation(generation), ..Memory::default() };
        let data = json!({"memory.json": serde_json::to_string(&memory).unwrap(), "resumed": ""});
        self.api.put(MEMORY, json!({"metadata": ours("a-memory"), "data": data}));
        self.api.put(CHILD, json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": ours("a")}));
        let seed = json!({SEED_KEY: ByteString(vec![7; 32])});
        let path = "/api/v1/namespaces/research/secrets/a-authority";
        self.api.put(path, json!({"metadata": ours("a-authority"), "data": seed}));
    }

    /// Another job wants the node's one GPU.
    async fn rival(&mut self) -> (Key, Receiver<Answer>) {
        self.rivals += 1;
        let name = format!("rival-{}", self.rivals);
        let key = Key { namespace: "research".to_owned(), name: name.clone(), uid: name };
        let request = Box::new(objects::request(&resource::job(&resource()).unwrap()));
        let (answers, receiver) = mpsc::channel(8);
        self.context
            .planner
            .tell(planner::Wish::Ask { key: key.clone(), created: 1, request, answers })
            .await;
        (key, receiver)
    }

    /// Whether another job can have the GPU; it gives it back at once.
    pub(in super::super) async fn is_free(&mut self) -> bool {
        let (key, mut answers) = self.rival().await;
        let answer = tokio::time::timeout(SOON, answers.recv()).await.unwrap().unwrap();
        self.context.planner.tell(planner::Wish::Release { key, workers: None }).await;
        matches!(answer, Answer::Granted(_))
    }

    async fn called(&self, method: Method, part: &str) -> Vec<Value> {
        self.wait(&format!("{method} {part}"), || !self.api.calls(&method, part).is_empty()).await;
        self.api.calls(&method, part)
    }

    async fn wait(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        for _ in 0..SOON.as_millis() / 10 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within {SOON:?}: {what}; {:#?}", self.api.history());
    }

    pub(in super::super) async fn becomes_free(&mut self) {
        for _ in 0..200 {
            if self.is_free().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the GPU is not given back; {:#?}", self.api.history());
    }

    /// What was told of the job last.
    fn status(&self) -> Value {
        self.api.calls(&Method::PATCH, "/trainingjobs/a/status").pop().unwrap_or_default()["status"].take()
    }
}

pub(in super::super) fn ours(name: &str) -> Value {
    json!({"name": name, "namespace": "research", "labels": {names::LABEL_UID: "uid-a", names::LABEL_JOB: "a"}})
}

/// Job `a`: one worker with one GPU.
pub(in super::super) fn resource() -> TrainingJob {
    let object = json!({
        "metadata": {"name": "a", "namespace": "research", "uid": "uid-a", "generation": 1},
        "spec": {
            "workers": {"count": 1},
            "run": {"command": ["python3", "train.py"]},
            "resources": {"gpus": 1, "cpus": 2, "memory": "1Gi"},
            "pod": {"image": "train:1"},
        },
    });
    serde_json::from_value(object).unwrap()
}

fn changed(mut resource: TrainingJob, field: &str, value: Value) -> TrainingJob {
    resource.spec[field] = value;
    resource.metadata.generation = Some(2);
    resource
}

pub(super) fn pod(spec: &Value, status: &Value) -> PodView {
    let mut meta = ours("a-0-x");
    meta["uid"] = "pod-1".into();
    meta["labels"][names::LABEL_INDEX] = "0".into();
    if spec.get("schedulingGates").is_none() {
        let note = json!({"host": "node-1", "numaNode": null, "gpu": "nvidia.com/gpu", "nic": null});
        meta["annotations"] = json!({names::ANNOTATION_PLACED: note.to_string()});
    }
    let pod = json!({"metadata": meta, "spec": spec, "status": status});
    PodView::of(&serde_json::from_value(pod).unwrap()).unwrap()
}

fn gated() -> PodView {
    pod(&json!({"containers": [], "schedulingGates": [{"name": names::GATE}]}), &json!({}))
}

fn running() -> PodView {
    let (spec, status) = bound();
    pod(&spec, &status)
}

/// The specification and status of a pod whose sidecar runs.
pub(in super::super) fn bound() -> (Value, Value) {
    let sidecar = json!({
        "name": names::SIDECAR, "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}},
    });
    let status = json!({
        "phase": "Running", "startTime": "2026-01-01T00:00:00Z", "initContainerStatuses": [sidecar],
    });
    (json!({"containers": [], "nodeName": "node-1"}), status)
}

async fn tell(handle: &Handle, signal: Signal) {
    handle.signals.send(signal).await.unwrap();
}

#[tokio::test]
async fn a_child_that_was_made_though_the_answer_was_lost_gets_no_places_that_others_hold() {
    let mut rig = Rig::open().await;
    rig.api.lose_answer(Method::PATCH, "/jobs/a");
    let handle = rig.start(&resource(), &[]).await;
    rig.called(Method::PATCH, "/jobs/a").await;
    // Whoever waits gets the place while the attempt is not repeated.
    rig.becomes_free().await;
    let (_, mut answers) = rig.rival().await;
    assert!(matches!(answers.recv().await, Some(Answer::Granted(_))));
    tell(&handle, Signal::Pod(Box::new(gated()))).await;
    rig.called(Method::DELETE, "/jobs/a").await;
    assert_eq!(rig.api.calls(&Method::PATCH, PODS), Vec::<Value>::new(), "it was promised to another");
}

#[tokio::test]
async fn a_pod_is_bound_by_the_label_of_its_node_to_what_its_child_asks_for() {
    // Another controller chose the second, and died before any pod had its place.
    let rig = Rig::new(&json!({"nvidia.com/gpu": "1", "amd.com/gpu": "1"}));
    rig.context.planner.tell(planner::Wish::Open).await;
    rig.remembers(None, 0);
    let mut child = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": ours("a")});
    let chosen = json!({"gpu": "amd.com/gpu", "nic": null}).to_string();
    child["metadata"]["annotations"] = json!({names::ANNOTATION_DEVICES: chosen});
    rig.api.put(CHILD, child);
    let _handle = rig.start(&resource(), &[gated()]).await;
    let placed = rig.called(Method::PATCH, PODS).await.remove(0);
    assert_eq!(placed["spec"]["nodeSelector"][names::LABEL_HOSTNAME], "node-1.example.org");
    let note: Value =
        serde_json::from_str(placed["metadata"]["annotations"][names::ANNOTATION_PLACED].as_str().unwrap())
            .unwrap();
    assert_eq!((&note["host"], &note["gpu"]), (&json!("node-1"), &json!("amd.com/gpu")));
}

#[tokio::test]
async fn what_a_child_asks_for_is_written_on_it() {
    let rig = Rig::open().await;
    let _handle = rig.start(&resource(), &[]).await;
    let child = rig.called(Method::PATCH, "/jobs/a").await.remove(0);
    let meta = serde_json::from_value(child["metadata"].clone()).unwrap();
    assert_eq!(render::devices_of(&meta).gpu.as_deref(), Some("nvidia.com/gpu"));
}

#[tokio::test]
async fn a_change_that_comes_while_the_job_is_looked_at_counts() {
    let rig = Rig::open().await;
    let permits = rig.api.delay(Method::GET, "/jobs/a");
    let handle = rig.start(&resource(), &[]).await;
    rig.called(Method::GET, "/jobs/a").await;
    tell(&handle, Signal::Resource(Box::new(changed(resource(), "suspend", true.into())))).await;
    permits.add_permits(1);
    rig.wait("it is suspended", || rig.status()["phase"] == "Suspended").await;
    assert_eq!(rig.api.calls(&Method::PATCH, "/jobs/a"), Vec::<Value>::new());
}

#[tokio::test]
async fn a_job_that_is_over_is_deleted_in_its_time_however_often_that_fails() {
    let rig = Rig::open().await;
    rig.remembers(Some(Outcome::Succeeded), 1);
    let ended = |unix_s: u64| {
        let mut over = changed(resource(), "pod", json!({"image": "train:1", "ttl": "1h"}));
        let ended = k8s_openapi::jiff::Timestamp::from_second(i64::try_from(unix_s).unwrap()).unwrap();
        over.status =
            serde_json::from_value(json!({"phase": "Succeeded", "endedAt": ended.to_string()})).ok();
        assert!(over.status.as_ref().is_some_and(|status| status.ended_at.is_some()));
        over
    };
    let now = crate::backend::clock::unix_ms() / 1000;
    let early = rig.start(&ended(now - 3500), &[]).await;
    rig.called(Method::GET, "/jobs/a").await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(rig.api.calls(&Method::DELETE, JOB), Vec::<Value>::new(), "its hour is not over");
    drop(early);
    // Counted from its end, whichever controller saw that.
    rig.api.put(JOB, json!({"metadata": ours("a")}));
    rig.api.refuse(Method::DELETE, "/trainingjobs/a", 1, StatusCode::INTERNAL_SERVER_ERROR);
    let handle = rig.start(&ended(now - 3700), &[]).await;
    rig.wait("a second attempt", || rig.api.calls(&Method::DELETE, JOB).len() == 2).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(rig.api.calls(&Method::DELETE, JOB).len(), 2, "asked for once it is done");
    assert!(!handle.is_over(), "it looks after the job until that is gone");
    tell(&handle, Signal::Deleted).await;
    rig.wait("it ends", || handle.is_over()).await;
}

#[tokio::test]
async fn pods_of_a_job_that_is_over_are_ended_and_their_places_held_until_they_are() {
    let mut rig = Rig::open().await;
    rig.remembers(Some(Outcome::Succeeded), 1);
    let handle = rig.start(&resource(), &[running()]).await;
    rig.called(Method::DELETE, PODS).await;
    assert!(!rig.is_free().await, "it still runs");
    tell(&handle, Signal::PodGone("a-0-x".to_owned())).await;
    rig.becomes_free().await;
}

#[tokio::test]
async fn an_actor_that_lost_its_memory_leaves_to_the_next_what_its_pods_have() {
    let mut rig = Rig::open().await;
    rig.remembers(None, 1);
    // Somebody else writes in the same moment.
    rig.api.refuse(Method::PUT, MEMORY, 100, StatusCode::CONFLICT);
    let lost = rig.start(&resource(), &[running()]).await;
    rig.wait("it gives up", || lost.is_over()).await;
    assert!(!rig.is_free().await, "its pod runs");
    // The job is deleted meanwhile.
    let next = rig.start(&resource(), &[running()]).await;
    tell(&next, Signal::Deleted).await;
    assert!(!rig.is_free().await, "its pod still runs");
    tell(&next, Signal::PodGone("a-0-x".to_owned())).await;
    rig.becomes_free().await;
    rig.wait("it ends", || next.is_over()).await;
}

#[tokio::test]
async fn an_answer_that_comes_after_the_deletion_does_not_bring_a_job_back() {
    let mut rig = Rig::open().await;
    rig.remembers(None, 1);
    let permits = rig.api.delay(Method::GET, "/jobs/a");
    let handle = rig.start(&resource(), &[running()]).await;
    rig.called(Method::GET, "/jobs/a").await;
    tell(&handle, Signal::Deleted).await;
    tokio::time::sleep(A_WHILE).await;
    permits.add_permits(1);
    tokio::time::sleep(A_WHILE).await;
    assert!(!rig.is_free().await);
    tell(&handle, Signal::PodGone("a-0-x".to_owned())).await;
    rig.wait("it ends", || handle.is_over()).await;
    assert_eq!(rig.api.calls(&Method::PUT, MEMORY), Vec::<Value>::new(), "nobody leads it any more");
}

#[tokio::test]
async fn nobody_is_answered_before_it_is_known_what_all_jobs_hold() {
    let mut rig = Rig::new(&json!({"nvidia.com/gpu": "1"}));
    let (key, mut answers) = rig.rival().await;
    assert!(tokio::time::timeout(A_WHILE, answers.recv()).await.is_err(), "not all has been told yet");
    rig.context.planner.tell(planner::Wish::Release { key, workers: None }).await;
    rig.remembers(None, 1);
    let (_, mut answers) = rig.rival().await;
    let _handle = rig.start(&resource(), &[running()]).await;
    rig.context.planner.tell(planner::Wish::Open).await;
    assert!(matches!(answers.recv().await, Some(Answer::Refused(_))), "a pod has it");
}
