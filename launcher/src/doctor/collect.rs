//! Fills a report from a cluster. Only reads (a SelfSubjectAccessReview is a question that is asked by creating it).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, GetParams, ListParams, PostParams};
use kube::core::Request;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{ADMISSION_POLICY, Access, CONTROLLER, Controller, Lease, NAMESPACE, RENDEZVOUS, Report, Source};
use crate::backend::kubernetes::client::refused;
use crate::backend::kubernetes::names::{GROUP, PLURAL};
use crate::error::{ExitCode, Failure};
use crate::topology::levels::Levels;

/// Objects of one page: what the API server answers without strain.
const PAGE_OBJECTS: u32 = 500;
/// Pages of one list: 100,000 objects are more than any cluster has of what is listed here.
const PAGES_MAX: usize = 200;
/// How long an answer may take: long enough for a page from a busy server.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// Requests that are under way at the same time: half of what a client without a FlowSchema is commonly given.
const CONCURRENT_REQUESTS: usize = 8;
/// Kubelets that are asked for their configuration: enough to find what differs between kinds of hosts.
const KUBELETS_MAX: usize = 64;
/// How often a lease is looked at.
const LEASE_PERIOD: Duration = Duration::from_secs(1);
/// How long a lease is watched at the most, in seconds, whatever it says of itself.
const LEASE_WATCH_SECONDS_MAX: u64 = 30;

/// What a submitter does: (verb, group, resource, subresource).
const SUBMITTER: [(&str, &str, &str, &str); 9] = [
    ("create", GROUP, PLURAL, ""),
    ("get", GROUP, PLURAL, ""),
    ("list", GROUP, PLURAL, ""),
    ("watch", GROUP, PLURAL, ""),
    ("patch", GROUP, PLURAL, ""),
    ("delete", GROUP, PLURAL, ""),
    ("get", "", "pods", ""),
    ("list", "", "pods", ""),
    ("get", "", "pods", "log"),
];

/// Looks at everything that may be looked at.
///
/// # Errors
/// When the API server cannot be reached or accepts nothing from us. Single refusals are part of the report.
pub async fn collect(client: &Client, namespace: &str, levels: Levels) -> Result<Report, Failure> {
    let version = tokio::time::timeout(ANSWER_MAX, client.apiserver_version()).await;
    let version = version
        .map_err(|_| {
            Failure::new(ExitCode::Temporary, "failed to reach the API server: it does not answer")
                .hint("is the address in the kubeconfig right, and the network up?")
        })?
        .map_err(|error| refused("reach the API server", &error))?;
    let groups = client.list_api_groups().await.map_err(|error| refused("list what is served", &error))?;
    let versions = groups.groups.into_iter().flat_map(|group| group.versions);
    let served: BTreeSet<String> = versions.map(|version| version.group_version).collect();
    let cluster = Reader { client, served: &served };
    // First, so that it is watched while all the rest is read.
    let lease = cluster.lease().await;
    let mut report = Report {
        namespace: namespace.to_owned(),
        version: (number(&version.major), number(&version.minor)),
        levels,
        ..Report::default()
    };
    cluster.control_plane(&mut report).await;
    cluster.topology(&mut report).await;
    report.kubelets = cluster.kubelets(report.nodes.known().map(Vec::as_slice).unwrap_or_default()).await;
    report.controller.lease = cluster.watch(lease).await;
    report.served = served;
    Ok(report)
}

/// `34` or `34+`.
fn number(text: &str) -> u32 {
    text.trim_end_matches(|char: char| !char.is_ascii_digit()).parse().unwrap_or(0)
}

struct Reader<'a> {
    client: &'a Client,
    served: &'a BTreeSet<String>,
}

impl Reader<'_> {
    async fn control_plane(&self, report: &mut Report) {
        let here = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments");
        let services = format!("/api/v1/namespaces/{NAMESPACE}/services");
        let flows = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
        let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
        let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let crd = format!("{PLURAL}.{GROUP}");
        let (deployment, service, flow_schema, admission_policy, crd, own) = tokio::join!(
            self.get(&here, CONTROLLER),
            self.get(&services, RENDEZVOUS),
            self.get(flows, CONTROLLER),
            self.get(policies, ADMISSION_POLICY),
            self.get(crds, &crd),
            self.get::<Value>("/api/v1/namespaces", &report.namespace),
        );
        report.controller =
            Controller { deployment, service, flow_schema, admission_policy, lease: Source::Absent };
        report.crd = crd;
        report.namespace_labels = match own {
            Source::Known(namespace) => {
                let labels = namespace.pointer("/metadata/labels").cloned().unwrap_or_default();
                Source::Known(serde_json::from_value(labels).unwrap_or_default())
            }
            Source::Absent => Source::Absent,
            Source::Refused(why) => Source::Refused(why),
        };
        report.access = self.access(&report.namespace).await;
    }

    async fn topology(&self, report: &mut Report) {
        const RESOURCE: (&str, &[&str]) = ("resource.k8s.io", &["v1", "v1beta2", "v1beta1", "v1alpha3"]);
        const SRIOV: (&str, &[&str]) = ("sriovnetwork.openshift.io", &["v1"]);
        let nodes = self.pages::<Node>("/api/v1/nodes");
        let nrt = self.list(("topology.node.k8s.io", &["v1alpha2"]), "noderesourcetopologies");
        let states = self.list(SRIOV, "sriovnetworknodestates");
        let policies = self.list(SRIOV, "sriovnetworknodepolicies");
        let kueue = self.list(("kueue.x-k8s.io", &["v1beta2", "v1beta1", "v1alpha1"]), "topologies");
        (
            report.nodes,
            report.node_topologies,
            report.sriov_states,
            report.sriov_policies,
            report.kueue_topologies,
        ) = tokio::join!(nodes, nrt, states, policies, kueue);
        let slices = self.list(RESOURCE, "resourceslices");
        let claims = self.list(RESOURCE, "resourceclaims");
        let rules = self.list(RESOURCE, "devicetaintrules");
        let classes = self.list(RESOURCE, "deviceclasses");
        let networks = self.networks(&report.namespace);
        (report.slices, report.claims, report.device_taint_rules, report.device_classes, report.networks) =
            tokio::join!(slices, claims, rules, classes, networks);
    }

    /// Networks of all namespaces, or else those of ours.
    async fn networks(&self, namespace: &str) -> Source<Vec<Value>> {
        let kind = ("k8s.cni.cncf.io", &["v1"][..]);
        match self.list(kind, "network-attachment-definitions").await {
            Source::Refused(_) => {
                self.pages(&format!(
                    "/apis/k8s.cni.cncf.io/v1/namespaces/{namespace}/network-attachment-definitions"
                ))
                .await
            }
            found => found,
        }
    }

    /// All objects of a kind, in the first version that is served and has it.
    async fn list(&self, (group, versions): (&str, &[&str]), plural: &str) -> Source<Vec<Value>> {
        for version in versions {
            let group_version = format!("{group}/{version}");
            if self.served.contains(&group_version) {
                match self.pages(&format!("/apis/{group_version}/{plural}")).await {
                    Source::Absent => {}
                    found => return found,
                }
            }
        }
        Source::Absent
    }

    async fn pages<T: DeserializeOwned>(&self, path: &str) -> Source<Vec<T>> {
        let mut params = ListParams::default().limit(PAGE_OBJECTS);
        let mut items = Vec::new();
        for _ in 0..PAGES_MAX {
            let Ok(request) = Request::new(path).list(&params) else {
                return Source::Refused("the request cannot be made".to_owned());
            };
            let answer = tokio::time::timeout(ANSWER_MAX, self.client.request::<Page<T>>(request)).await;
            let page = match source(answer) {
                Source::Known(page) => page,
                Source::Absent => return Source::Absent,
                Source::Refused(why) => return Source::Refused(why),
            };
            items.extend(page.items);
            match page.metadata.next.filter(|next| !next.is_empty()) {
                Some(next) => params = params.continue_token(&next),
                None => return Source::Known(items),
            }
        }
        Source::Refused(format!("more than {PAGES_MAX} pages"))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, name: &str) -> Source<T> {
        match Request::new(path).get(name, &GetParams::default()) {
            Ok(request) => source(tokio::time::timeout(ANSWER_MAX, self.client.request(request)).await),
            Err(error) => Source::Refused(error.to_string()),
        }
    }

    async fn access(&self, namespace: &str) -> Vec<Access> {
        let reviews: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let questions = SUBMITTER.map(|(verb, group, resource, subresource)| {
            let reviews = reviews.clone();
            async move {
                let attributes = ResourceAttributes {
                    group: Some(group.to_owned()),
                    namespace: Some(namespace.to_owned()),
                    resource: Some(resource.to_owned()),
                    subresource: (!subresource.is_empty()).then(|| subresource.to_owned()),
                    verb: Some(verb.to_owned()),
                    ..ResourceAttributes::default()
                };
                let spec = SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(attributes),
                    ..SelfSubjectAccessReviewSpec::default()
                };
                let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
                // Who cannot even ask is told nothing about it.
                // The library's future is large, and there are several at once.
                let answer = Box::pin(reviews.create(&PostParams::default(), &review)).await.ok()?;
                let resource = [resource, subresource].into_iter().filter(|part| !part.is_empty());
                let resource = resource.collect::<Vec<_>>().join("/");
                Some(Access { verb: verb.to_owned(), resource, allowed: answer.status?.allowed })
            }
        });
        let answers = stream::iter(questions).buffered(CONCURRENT_REQUESTS);
        answers.filter_map(|answer| async move { answer }).collect().await
    }

    /// The configuration of kubelets, those with devices first; whoever may not ask one may ask none.
    async fn kubelets(&self, nodes: &[Node]) -> BTreeMap<String, Value> {
        let devices = |node: &Node| {
            let capacity = node.status.as_ref().and_then(|status| status.capacity.as_ref());
            capacity.is_some_and(|capacity| capacity.keys().any(|name| name.contains('/')))
        };
        let mut nodes: Vec<&Node> = nodes.iter().collect();
        nodes.sort_by_key(|node| !devices(node));
        let names = nodes.into_iter().take(KUBELETS_MAX).filter_map(|node| node.metadata.name.clone());
        let mut names = names.collect::<Vec<_>>().into_iter();
        let mut configs = BTreeMap::new();
        let Some(first) = names.next() else { return configs };
        let ask = |name: String| async move {
            let config = self.get::<Value>(&format!("/api/v1/nodes/{name}/proxy"), "configz").await;
            let config = config.known().and_then(|config| config.get("kubeletconfig")).cloned();
            config.map(|config| (name, config))
        };
        let Some((name, config)) = ask(first).await else { return configs };
        configs.insert(name, config);
        let rest = stream::iter(names.map(ask)).buffer_unordered(CONCURRENT_REQUESTS);
        configs.extend(rest.filter_map(|one| async move { one }).collect::<Vec<_>>().await);
        configs
    }

    async fn lease(&self) -> Source<Value> {
        self.get(&format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"), CONTROLLER).await
    }

    /// Looks at the lease until it is renewed, or for as long as it lasts.
    async fn watch(&self, first: Source<Value>) -> Source<Lease> {
        let first = match first {
            Source::Known(first) => first,
            Source::Absent => return Source::Absent,
            Source::Refused(why) => return Source::Refused(why),
        };
        let text = |lease: &Value, path: &str| {
            lease.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let holder = text(&first, "/spec/holderIdentity");
        let lasts = first.pointer("/spec/leaseDurationSeconds").and_then(Value::as_u64).unwrap_or(0);
        let before = text(&first, "/spec/renewTime");
        let mut lease = Lease { holder, watched_seconds: 0, renewed: false };
        while !lease.holder.is_empty() && lease.watched_seconds < lasts.min(LEASE_WATCH_SECONDS_MAX) {
            if let Source::Known(now) = self.lease().await
                && text(&now, "/spec/renewTime") != before
            {
                lease.renewed = true;
                break;
            }
            tokio::time::sleep(LEASE_PERIOD).await;
            lease.watched_seconds += LEASE_PERIOD.as_secs();
        }
        Source::Known(lease)
    }
}

#[derive(serde::Deserialize)]
struct Page<T> {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Default, serde::Deserialize)]
struct PageMetadata {
    #[serde(rename = "continue")]
    next: Option<String>,
}

fn source<T>(answer: Result<Result<T, kube::Error>, tokio::time::error::Elapsed>) -> Source<T> {
    match answer {
        Ok(Ok(known)) => Source::Known(known),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Source::Absent,
        Ok(Err(kube::Error::Api(status))) => Source::Refused(status.message.clone()),
        Ok(Err(error)) => Source::Refused(error.to_string()),
        Err(_) => Source::Refused(format!("no answer in {} s", ANSWER_MAX.as_secs())),
    }
}

#[cfg(test)]
mod tests;
