//! The controller's calls to the API server: few, bounded in number, counted by purpose, each safe to repeat.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    PostParams, Preconditions, PropagationPolicy,
};
use kube::{Client, Error};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::backend::kubernetes::crd::status::Status;
use crate::backend::kubernetes::names;
use crate::backend::kubernetes::objects::SEED_KEY;
use crate::backend::kubernetes::resource::TrainingJob;
use crate::error::in_full;
use crate::rendezvous::authority::Seed;
use crate::rendezvous::group::Memory;
use crate::serve::metrics::{Metrics, Purpose};

/// Calls that are under way at a time, of all jobs together. More do not make an API server on few cores faster, and this
/// is what its priority levels give one client without a queue.
pub const CALLS_MAX: usize = 32;
/// Calls beside them that write memberships down: one job whose pods cannot be changed must not hold up the others' steps.
const MEMORY_CALLS_MAX: usize = 8;
/// No call takes longer than this; a server that needs more is asked again.
const CALL_MAX: Duration = Duration::from_secs(30);
/// Events of a child that are looked through for what went wrong.
const EVENTS_MAX: u32 = 50;
/// Where the memory is in its ConfigMap.
const MEMORY_KEY: &str = "memory.json";
/// The resumption that was carried out last.
const RESUMED_KEY: &str = "resumed";

/// A job's key: its object, for all of its life.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The uid.
    pub uid: String,
}

impl Key {
    /// Whether an object is this job's: one of an earlier job of that name goes with its owner.
    #[must_use]
    pub fn has(&self, meta: &ObjectMeta) -> bool {
        meta.labels.as_ref().and_then(|labels| labels.get(names::LABEL_UID)) == Some(&self.uid)
    }

    /// The reference to the job as the one controller of an object.
    #[must_use]
    pub fn owner(&self) -> Value {
        names::owner(&self.name, &self.uid)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The client.
#[derive(Clone)]
pub struct Calls {
    client: Client,
    limit: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calls").finish_non_exhaustive()
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The API server said no, or could not be reached.
    #[error("{}", in_full(.0))]
    Kube(#[from] Box<Error>),
    /// It did not answer.
    #[error("the API server did not answer within {} s", CALL_MAX.as_secs())]
    Late,
    /// What it sent cannot be understood.
    #[error("{what} cannot be read: {why}")]
    Unreadable {
        /// What.
        what: String,
        /// Why.
        why: String,
    },
}

/// The strategic merge patch that gives a pod its place, a node by its label [`names::LABEL_HOSTNAME`]: it fails if the pod
/// is another by now.
#[must_use]
pub fn placing(uid: &str, hostname: &str, note: &Value) -> Value {
    json!({
        "metadata": {"uid": uid, "annotations": {names::ANNOTATION_PLACED: note.to_string()}},
        "spec": {
            "nodeSelector": {names::LABEL_HOSTNAME: hostname},
            "schedulingGates": [{"$patch": "delete", "name": names::GATE}],
        },
    })
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        Self::Kube(Box::new(error))
    }
}

impl CallError {
    /// The HTTP status, if the server gave one.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Kube(error) => match &**error {
                Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the object is not there.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.code() == Some(404)
    }

    /// Whether the object has changed since it was read.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// Whether asking again cannot help.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self.code(), Some(400 | 403 | 422))
    }
}

/// A membership's memory as it is stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// What it says.
    pub memory: Memory,
    /// The resumption that was carried out last; empty for none.
    pub resumed: String,
    /// Its version; none where there is no object yet.
    pub version: Option<String>,
}

impl Calls {
    /// Calls of `client`, counted in `metrics`.
    #[must_use]
    pub fn new(client: Client, metrics: Arc<Metrics>) -> Self {
        Self {
            client,
            limit: Arc::new(Semaphore::new(CALLS_MAX)),
            memory: Arc::new(Semaphore::new(MEMORY_CALLS_MAX)),
            metrics,
        }
    }

    async fn call<T>(
        &self,
        purpose: Purpose,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, CallError> {
        let limit = if matches!(purpose, Purpose::Memory) { &self.memory } else { &self.limit };
        let _turn = limit.acquire().await;
        let result = match tokio::time::timeout(CALL_MAX, call).await {
            Ok(result) => result.map_err(CallError::from),
            Err(_) => Err(CallError::Late),
        };
        self.metrics.called(purpose, &result);
        result
    }

    fn api(&self, kind: &GroupVersionKind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &ApiResource::from_gvk(kind))
    }

    /// Makes an object as `object` says, whatever it was.
    ///
    /// # Errors
    /// When the API server refuses it or cannot be asked.
    pub async fn apply(&self, namespace: &str, object: &Value) -> Result<(), CallError> {
        // Not shown: it may be a Secret.
        let unreadable =
            || CallError::Unreadable { what: "an object".to_owned(), why: "it has no name".to_owned() };
        let (kind, name) = kind_and_name(object).ok_or_else(unreadable)?;
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        let api = self.api(&kind, namespace);
        self.call(Purpose::Object, api.patch(&name, &params, &Patch::Apply(object))).await.map(|_| ())
    }

    /// Makes an object that is not there yet.
    ///
    /// # Errors
    /// A conflict when it is there; else when the API server refuses it or cannot be asked.
    pub async fn create(&self, namespace: &str, object: &Value) -> Result<(), CallError> {
        let unreadable = |why: String| CallError::Unreadable { what: "an object".to_owned(), why };
        let (kind, _) = kind_and_name(object).ok_or_else(|| unreadable(String::new()))?;
        let body: DynamicObject =
            serde_json::from_value(object.clone()).map_err(|error| unreadable(error.to_string()))?;
        let params =
            PostParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..Default::default() };
        let api = self.api(&kind, namespace);
        self.call(Purpose::Object, api.create(&params, &body)).await.map(|_| ())
    }

    /// An object, if it is there.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn find(
        &self,
        kind: &GroupVersionKind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<DynamicObject>, CallError> {
        let api = self.api(kind, namespace);
        self.call(Purpose::Object, api.get_opt(name)).await
    }

    /// Deletes an object and, in the background, what it owns. One that is not there is no error.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn delete(
        &self,
        kind: &GroupVersionKind,
        namespace: &str,
        name: &str,
    ) -> Result<(), CallError> {
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        let api = self.api(kind, namespace);
        absent_is_fine(self.call(Purpose::Object, api.delete(name, &params)).await.map(|_| ()))
    }

    /// Gives a gated pod its place: one call, that fails if the pod is another by now.
    ///
    /// # Errors
    /// When the API server refuses it or cannot be asked.
    pub async fn place(
        &self,
        namespace: &str,
        pod: &str,
        uid: &str,
        hostname: &str,
        note: &Value,
    ) -> Result<(), CallError> {
        let patch = placing(uid, hostname, note);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params =
            PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..Default::default() };
        // Only its metadata is sent back: a gang has thousands of pods.
        let patch = Patch::Strategic(&patch);
        self.call(Purpose::Place, api.patch_metadata(pod, &params, &patch)).await.map(|_| ())
    }

    /// Deletes a pod that is still the one that is meant. One that is not there is no error.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn delete_pod(
        &self,
        namespace: &str,
        pod: &str,
        uid: &str,
        grace: Option<Duration>,
    ) -> Result<(), CallError> {
        let params = DeleteParams {
            grace_period_seconds: grace.map(|grace| u32::try_from(grace.as_secs()).unwrap_or(u32::MAX)),
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        match self.call(Purpose::Delete, api.delete(pod, &params)).await {
            // Another of that name: the one that was meant is gone.
            Err(error) if error.is_conflict() => Ok(()),
            result => absent_is_fine(result.map(|_| ())),
        }
    }

    /// Writes off a pod on a node that does not answer: it is called failed, as the garbage collector of pods does, since the
    /// Job's controller waits for that before it makes another; then it is deleted by force.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn write_off(&self, namespace: &str, pod: &str, uid: &str) -> Result<(), CallError> {
        let failed = json!({
            "metadata": {"uid": uid},
            "status": {
                "phase": "Failed",
                "reason": "NodeLost",
                "message": "its node does not answer, and its sidecar has stopped its ranks by now",
            },
        });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let patch = Patch::Merge(&failed);
        let written =
            self.call(Purpose::Delete, api.patch_status(pod, &PatchParams::default(), &patch)).await;
        match written {
            // Another of that name: the one that was meant is gone.
            Err(error) if error.is_conflict() => return Ok(()),
            result => absent_is_fine(result.map(|_| ()))?,
        }
        self.delete_pod(namespace, pod, uid, Some(Duration::ZERO)).await
    }

    /// The membership's memory, empty where there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn memory(&self, key: &Key) -> Result<Stored, CallError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &key.namespace);
        let name = names::memory_map(&key.name);
        let Some(map) = self.call(Purpose::Memory, api.get_opt(&name)).await? else {
            return Ok(Stored::default());
        };
        if !key.has(&map.metadata) {
            return Ok(Stored::default());
        }
        let data = map.data.unwrap_or_default();
        let memory = match data.get(MEMORY_KEY) {
            Some(text) => serde_json::from_str(text)
                .map_err(|error| CallError::Unreadable { what: name, why: error.to_string() })?,
            None => Memory::default(),
        };
        let resumed = data.get(RESUMED_KEY).cloned().unwrap_or_default();
        Ok(Stored { memory, resumed, version: map.metadata.resource_version })
    }

    /// Writes the memory down, if it still has the version that `stored` was read or written with; the new version.
    ///
    /// # Errors
    /// A conflict when somebody else wrote it; else when the API server cannot be asked.
    pub async fn write_memory(
        &self,
        key: &Key,
        owner: &Value,
        stored: &Stored,
    ) -> Result<Option<String>, CallError> {
        let name = names::memory_map(&key.name);
        let unreadable = |error: serde_json::Error| CallError::Unreadable {
            what: "the membership's memory".to_owned(),
            why: error.to_string(),
        };
        let memory = serde_json::to_string(&stored.memory).map_err(unreadable)?;
        let map = json!({
            "metadata": {
                "name": name,
                "labels": {names::LABEL_JOB: key.name, names::LABEL_UID: key.uid},
                "ownerReferences": [owner],
                "resourceVersion": stored.version,
            },
            "data": {MEMORY_KEY: memory, RESUMED_KEY: stored.resumed},
        });
        let map: ConfigMap = serde_json::from_value(map).map_err(unreadable)?;
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &key.namespace);
        let params =
            PostParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..Default::default() };
        let written = match &stored.version {
            Some(_) => self.call(Purpose::Memory, api.replace(&name, &params, &map)).await?,
            None => self.call(Purpose::Memory, api.create(&params, &map)).await?,
        };
        Ok(written.metadata.resource_version)
    }

    /// The seed of a job's certificates, if it was drawn.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn seed(&self, key: &Key) -> Result<Option<Seed>, CallError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.namespace);
        let name = names::authority_secret(&key.name);
        let Some(secret) = self.call(Purpose::Object, api.get_opt(&name)).await? else { return Ok(None) };
        if !key.has(&secret.metadata) {
            return Ok(None);
        }
        let bytes = secret.data.and_then(|mut data| data.remove(SEED_KEY));
        let seed = bytes.and_then(|bytes| bytes.0.try_into().ok()).map(Seed);
        let why = || CallError::Unreadable { what: name, why: "it holds no seed of 32 bytes".to_owned() };
        seed.ok_or_else(why).map(Some)
    }

    /// Tells how the job is.
    ///
    /// # Errors
    /// When the API server refuses it or cannot be asked.
    pub async fn write_status(&self, key: &Key, status: &Status) -> Result<(), CallError> {
        let object = json!({
            "apiVersion": names::api_version(),
            "kind": names::KIND,
            "metadata": {"name": key.name, "uid": key.uid},
            "status": status,
        });
        let api: Api<TrainingJob> = Api::namespaced(self.client.clone(), &key.namespace);
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        let patch = Patch::Apply(&object);
        let written = self.call(Purpose::Status, api.patch_status(&key.name, &params, &patch)).await;
        absent_is_fine(written.map(|_| ()))
    }

    /// Deletes the job and with it everything that it owns.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn delete_job(&self, key: &Key) -> Result<(), CallError> {
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions { uid: Some(key.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        let api: Api<TrainingJob> = Api::namespaced(self.client.clone(), &key.namespace);
        absent_is_fine(self.call(Purpose::Object, api.delete(&key.name, &params)).await.map(|_| ()))
    }

    /// Why a child makes no pods, as its controller's warnings say: the latest of each reason.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn warnings(&self, namespace: &str, child: &str) -> Result<Vec<String>, CallError> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let fields = format!("type=Warning,involvedObject.name={child}");
        let params = ListParams::default().fields(&fields).limit(EVENTS_MAX);
        let events = self.call(Purpose::Object, api.list(&params)).await?;
        let mut told: Vec<String> = events
            .items
            .into_iter()
            .map(|event| {
                let reason = event.reason.unwrap_or_default();
                format!("{reason}: {}", event.message.unwrap_or_default())
            })
            .collect();
        told.sort();
        told.dedup();
        Ok(told)
    }
}

fn absent_is_fine(result: Result<(), CallError>) -> Result<(), CallError> {
    match result {
        Err(error) if error.is_absent() => Ok(()),
        result => result,
    }
}

fn kind_and_name(object: &Value) -> Option<(GroupVersionKind, String)> {
    let kind = kind_of(object["apiVersion"].as_str()?, object["kind"].as_str()?);
    Some((kind, object["metadata"]["name"].as_str()?.to_owned()))
}

/// A kind by the `apiVersion` of its objects: the core's kinds have no group.
pub(super) fn kind_of(api_version: &str, kind: &str) -> GroupVersionKind {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    GroupVersionKind::gvk(group, version, kind)
}
