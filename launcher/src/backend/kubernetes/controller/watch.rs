//! What is watched of the cluster: each source once, kept in memory in the least form that plans need.
//!
//! Our own pods are watched elsewhere, by their label; no other pod is ever listed. Sources that are not installed are
//! looked for again from time to time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use serde_json::Value;
use tokio::sync::{Notify, watch};

use crate::backend::kubernetes::names;
use crate::backend::kubernetes::sources::{Gathered, Source, is_not_served};
use crate::error::in_full;
use crate::topology::kubernetes::devices::Naming;
use crate::topology::kubernetes::{Facts, Held};
use crate::topology::levels::Levels;

/// How often a source that is not installed, or may not be read, is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// How long is waited at the start for a source that does not answer.
const SILENCE_MAX: Duration = Duration::from_secs(20);

type Objects = BTreeMap<String, Arc<Value>>;

/// Everything that plans are made from.
#[derive(Debug)]
pub(super) struct Caches {
    nodes: RwLock<BTreeMap<String, Arc<Node>>>,
    others: BTreeMap<Source, RwLock<Option<Objects>>>,
    changed: Arc<Notify>,
    /// Sources that have not told all that they know; `None` stands for the nodes.
    silent: watch::Sender<BTreeSet<Option<Source>>>,
    levels: Levels,
    naming: Naming,
}

impl Caches {
    /// Begins to watch.
    pub(super) fn start(client: &Client, levels: Levels, naming: Naming) -> Arc<Self> {
        let caches = Arc::new(Self {
            nodes: RwLock::default(),
            others: Source::ALL.into_iter().map(|source| (source, RwLock::default())).collect(),
            changed: Arc::default(),
            silent: watch::Sender::new(Source::ALL.into_iter().map(Some).chain([None]).collect()),
            levels,
            naming,
        });
        tokio::spawn(Arc::clone(&caches).follow_nodes(Api::all(client.clone())));
        for source in Source::ALL {
            let api = Api::all_with(client.clone(), &source.resource());
            tokio::spawn(Arc::clone(&caches).follow(source, api));
        }
        caches
    }

    /// What is known of a cluster of these nodes, and never changes.
    #[cfg(test)]
    pub(super) fn of(nodes: Vec<Node>) -> Arc<Self> {
        let named =
            nodes.into_iter().map(|node| (node.metadata.name.clone().unwrap_or_default(), Arc::new(node)));
        Arc::new(Self {
            nodes: RwLock::new(named.collect()),
            others: Source::ALL.into_iter().map(|source| (source, RwLock::default())).collect(),
            changed: Arc::default(),
            silent: watch::Sender::default(),
            levels: Levels::default(),
            naming: Naming::default(),
        })
    }

    /// Told when something changed that a plan may depend on.
    pub(super) fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }

    /// Waits until all is known that there is to know. The nodes are waited for as long as it takes; another source that is
    /// served but does not answer, for [`SILENCE_MAX`].
    pub(super) async fn filled(&self) {
        let mut silent = self.silent.subscribe();
        let all = silent.wait_for(BTreeSet::is_empty);
        // The sender lives as long as we do.
        if tokio::time::timeout(SILENCE_MAX, all).await.is_err() {
            let sources = silent.borrow().clone();
            tracing::warn!(?sources, "sources do not answer: plans are made without them until they do");
            let _ = silent.wait_for(|silent| !silent.contains(&None)).await;
        }
    }

    /// The source has told all that it knows.
    fn heard(&self, source: Option<Source>) {
        self.silent.send_if_modified(|silent| silent.remove(&source));
    }

    /// What a node's label says that pods are bound to it by. It is its name nearly everywhere, but not by any rule.
    pub(super) fn hostname(&self, node: &str) -> String {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let labels = nodes.get(node).and_then(|node| node.metadata.labels.as_ref());
        let hostname = labels.and_then(|labels| labels.get(names::LABEL_HOSTNAME));
        hostname.map_or_else(|| node.to_owned(), Clone::clone)
    }

    /// Whether a node is known to be well; one that is not there is not.
    pub(super) fn is_ready(&self, node: &str) -> bool {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(node).is_some_and(|node| {
            let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
        })
    }

    /// The classes of dynamic resource allocation; none where there is no such thing.
    pub(super) fn device_classes(&self) -> Vec<Arc<Value>> {
        self.all(Source::DeviceClasses)
    }

    /// The slices of dynamic resource allocation.
    pub(super) fn slices(&self) -> Vec<Arc<Value>> {
        self.all(Source::Slices)
    }

    fn all(&self, source: Source) -> Vec<Arc<Value>> {
        let Some(slot) = self.others.get(&source) else { return Vec::new() };
        let slot = slot.read().unwrap_or_else(PoisonError::into_inner);
        slot.iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// What is known now, with what our own pods hold.
    pub(super) fn with_facts<T>(
        &self,
        held: BTreeMap<String, Vec<Held>>,
        make: impl FnOnce(&Facts<'_>, &Levels) -> T,
    ) -> T {
        let nodes: Vec<Arc<Node>> = {
            let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
            nodes.values().cloned().collect()
        };
        let others: BTreeMap<Source, Option<Vec<Arc<Value>>>> = self
            .others
            .iter()
            .map(|(source, objects)| {
                let objects = objects.read().unwrap_or_else(PoisonError::into_inner);
                (*source, objects.as_ref().map(|objects| objects.values().cloned().collect()))
            })
            .collect();
        let gathered = Gathered { nodes, others, has_job_sets: false };
        let mut facts = gathered.facts();
        facts.held = held;
        facts.naming = self.naming.clone();
        make(&facts, &self.levels)
    }

    async fn follow_nodes(self: Arc<Self>, api: Api<Node>) {
        let mut listed: Option<BTreeMap<String, Arc<Node>>> = None;
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed = Some(BTreeMap::new()),
                Ok(watcher::Event::InitApply(node)) => {
                    if let (Some(listed), Some(name)) = (&mut listed, node.metadata.name.clone()) {
                        listed.insert(name, Arc::new(least(node)));
                    }
                }
                Ok(watcher::Event::InitDone) => {
                    *self.nodes.write().unwrap_or_else(PoisonError::into_inner) =
                        listed.take().unwrap_or_default();
                    self.heard(None);
                    self.changed.notify_one();
                }
                Ok(watcher::Event::Apply(node)) => {
                    let Some(name) = node.metadata.name.clone() else { continue };
                    let node = Arc::new(least(node));
                    let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
                    // Heartbeats change a node without changing anything.
                    if nodes.insert(name, Arc::clone(&node)).is_none_or(|before| before != node) {
                        self.changed.notify_one();
                    }
                }
                Ok(watcher::Event::Delete(node)) => {
                    let name = node.metadata.name.unwrap_or_default();
                    self.nodes.write().unwrap_or_else(PoisonError::into_inner).remove(&name);
                    self.changed.notify_one();
                }
                Err(error) => tracing::warn!(error = in_full(&error), "cannot watch the nodes"),
            }
        }
    }

    async fn follow(self: Arc<Self>, source: Source, api: Api<DynamicObject>) {
        let mut listed: Option<Objects> = None;
        loop {
            let mut events = watcher(api.clone(), watcher::Config::default()).default_backoff().boxed();
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Init) => listed = Some(Objects::new()),
                    Ok(watcher::Event::InitApply(object)) => {
                        if let (Some(listed), Some((name, value))) = (&mut listed, named(object)) {
                            listed.insert(name, value);
                        }
                    }
                    Ok(watcher::Event::InitDone) => self.set(source, Some(listed.take().unwrap_or_default())),
                    Ok(watcher::Event::Apply(object)) => self.change(source, named(object), true),
                    Ok(watcher::Event::Delete(object)) => self.change(source, named(object), false),
                    Err(error) if is_absent(&error) => {
                        tracing::debug!(?source, "a source is not installed, or may not be read");
                        self.set(source, None);
                        break;
                    }
                    Err(error) => tracing::warn!(error = in_full(&error), ?source, "cannot watch a source"),
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn set(&self, source: Source, objects: Option<Objects>) {
        let Some(slot) = self.others.get(&source) else { return };
        let mut slot = slot.write().unwrap_or_else(PoisonError::into_inner);
        if *slot != objects {
            *slot = objects;
            self.changed.notify_one();
        }
        drop(slot);
        self.heard(Some(source));
    }

    fn change(&self, source: Source, object: Option<(String, Arc<Value>)>, is_there: bool) {
        let (Some(slot), Some((name, value))) = (self.others.get(&source), object) else { return };
        let mut slot = slot.write().unwrap_or_else(PoisonError::into_inner);
        let objects = slot.get_or_insert_default();
        let before = if is_there { objects.insert(name, Arc::clone(&value)) } else { objects.remove(&name) };
        if !is_there || before.as_ref() != Some(&value) {
            self.changed.notify_one();
        }
    }
}

/// By namespace and name: some sources are namespaced.
fn named(mut object: DynamicObject) -> Option<(String, Arc<Value>)> {
    object.metadata.managed_fields = None;
    object.metadata.resource_version = None;
    let name = object.metadata.name.clone()?;
    let key = format!("{}/{name}", object.metadata.namespace.as_deref().unwrap_or_default());
    Some((key, Arc::new(serde_json::to_value(object).ok()?)))
}

/// A node without what no plan depends on: a cluster has thousands, and they are told of all the time.
fn least(mut node: Node) -> Node {
    let meta = &mut node.metadata;
    meta.managed_fields = None;
    meta.resource_version = None;
    if let Some(notes) = &mut meta.annotations {
        notes.retain(|name, _| name == names::ANNOTATION_QUARANTINE);
    }
    if let Some(status) = &mut node.status {
        status.images = None;
        status.volumes_in_use = None;
        status.volumes_attached = None;
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
    }
    node
}

/// The kind is not served, or not to us.
fn is_absent(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(inner)
    | watcher::Error::WatchStartFailed(inner)
    | watcher::Error::WatchFailed(inner)) = error
    else {
        return false;
    };
    is_not_served(inner)
}
