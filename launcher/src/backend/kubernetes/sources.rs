//! The kinds of objects that say what a cluster consists of, and reading them once.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Client, Error};
use serde_json::Value;

use crate::topology::kubernetes::Facts;

/// The group of JobSet's API.
pub(crate) const JOBSET_GROUP: &str = "jobset.x-k8s.io";
/// Objects that are listed at a time.
const PAGE: u32 = 500;

/// A source beside the nodes; each may be absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    NodeTopologies,
    SriovStates,
    Slices,
    Claims,
    DeviceTaintRules,
    KueueTopologies,
    DeviceClasses,
}

impl Source {
    pub(super) const ALL: [Self; 7] = [
        Self::NodeTopologies,
        Self::SriovStates,
        Self::Slices,
        Self::Claims,
        Self::DeviceTaintRules,
        Self::KueueTopologies,
        Self::DeviceClasses,
    ];

    fn kind(self) -> GroupVersionKind {
        match self {
            Self::NodeTopologies => {
                GroupVersionKind::gvk("topology.node.k8s.io", "v1alpha2", "NodeResourceTopology")
            }
            Self::SriovStates => {
                GroupVersionKind::gvk("sriovnetwork.openshift.io", "v1", "SriovNetworkNodeState")
            }
            Self::Slices => GroupVersionKind::gvk("resource.k8s.io", "v1", "ResourceSlice"),
            Self::Claims => GroupVersionKind::gvk("resource.k8s.io", "v1", "ResourceClaim"),
            Self::DeviceTaintRules => GroupVersionKind::gvk("resource.k8s.io", "v1alpha3", "DeviceTaintRule"),
            Self::KueueTopologies => GroupVersionKind::gvk("kueue.x-k8s.io", "v1beta2", "Topology"),
            Self::DeviceClasses => GroupVersionKind::gvk("resource.k8s.io", "v1", "DeviceClass"),
        }
    }

    pub(super) fn resource(self) -> ApiResource {
        let kind = self.kind();
        match self {
            // Its plural is not what the usual rule makes of its kind.
            Self::NodeTopologies => ApiResource::from_gvk_with_plural(&kind, "noderesourcetopologies"),
            Self::KueueTopologies => ApiResource::from_gvk_with_plural(&kind, "topologies"),
            Self::DeviceClasses => ApiResource::from_gvk_with_plural(&kind, "deviceclasses"),
            _ => ApiResource::from_gvk(&kind),
        }
    }
}

/// What was read of a cluster.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) nodes: Vec<Arc<Node>>,
    /// None: not installed, or not for us to read.
    pub(super) others: BTreeMap<Source, Option<Vec<Arc<Value>>>>,
    /// JobSet is installed.
    pub(super) has_job_sets: bool,
}

impl Gathered {
    /// Reads all of it once.
    pub(super) async fn read(client: &Client) -> Result<Self, Error> {
        let nodes = list(&Api::<Node>::all(client.clone())).await?;
        let mut others = BTreeMap::new();
        for source in Source::ALL {
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &source.resource());
            let found = match list(&api).await {
                Ok(objects) => Some(objects.into_iter().filter_map(value).collect()),
                Err(error) if is_not_served(&error) => None,
                Err(error) => return Err(error),
            };
            others.insert(source, found);
        }
        let groups = client.list_api_groups().await?.groups;
        let has_job_sets = groups.iter().any(|group| group.name == JOBSET_GROUP);
        Ok(Self { nodes: nodes.into_iter().map(Arc::new).collect(), others, has_job_sets })
    }

    /// The same, as a cluster is made of it; nothing is held.
    pub(super) fn facts(&self) -> Facts<'_> {
        let of = |source| {
            let objects = self.others.get(&source)?.as_ref()?;
            Some(objects.iter().map(AsRef::as_ref).collect())
        };
        Facts {
            nodes: self.nodes.iter().map(AsRef::as_ref).collect(),
            node_topologies: of(Source::NodeTopologies),
            sriov_states: of(Source::SriovStates),
            slices: of(Source::Slices),
            claims: of(Source::Claims),
            device_taint_rules: of(Source::DeviceTaintRules),
            kueue_topologies: of(Source::KueueTopologies),
            ..Facts::default()
        }
    }

    /// The objects of one source.
    pub(super) fn of(&self, source: Source) -> Vec<&Value> {
        self.others.get(&source).into_iter().flatten().flatten().map(AsRef::as_ref).collect()
    }
}

fn value(object: DynamicObject) -> Option<Arc<Value>> {
    serde_json::to_value(object).ok().map(Arc::new)
}

/// All objects, a page at a time.
pub(super) async fn list<K>(api: &Api<K>) -> Result<Vec<K>, Error>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let mut all = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// The kind is not served, or not to us.
pub(super) fn is_not_served(error: &Error) -> bool {
    matches!(error, Error::Api(status) if matches!(status.code, 403 | 404))
}
