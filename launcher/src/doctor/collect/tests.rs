//! What is read of an API server, over HTTP: pages, older versions, refusals, a lease that is renewed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::{Request as Asked, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::*;
use crate::backend::kubernetes::client::connect;
use crate::cli::cluster::ClusterFlags;

/// How often the lease was read; it is renewed between two reads when that is said.
struct Server {
    reads: AtomicU64,
    renews: bool,
}

async fn answer(State(server): State<Arc<Server>>, request: Asked) -> Response {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    if request.method() == Method::POST {
        let body = axum::body::to_bytes(request.into_body(), 1 << 16).await.unwrap();
        let mut review: Value = serde_json::from_slice(&body).unwrap();
        let asked = review["spec"]["resourceAttributes"].clone();
        review["status"] = json!({"allowed": asked["verb"] != "delete" && asked["namespace"] == "team"});
        return (StatusCode::CREATED, review.to_string()).into_response();
    }
    let document = match path.as_str() {
        "/version" => {
            json!({"major": "1", "minor": "33+", "gitVersion": "", "gitCommit": "", "gitTreeState": "",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": ""})
        }
        "/apis" => {
            let group = |name: &str, versions: &[&str]| {
                let version =
                    |version: &&str| json!({"groupVersion": format!("{name}/{version}"), "version": version});
                json!({"name": name, "versions": versions.iter().map(version).collect::<Vec<_>>()})
            };
            json!({"kind": "APIGroupList", "groups": [
                group("slipway.dev", &["v1alpha1"]), group("resource.k8s.io", &["v1beta1", "v1alpha3"]),
                group("k8s.cni.cncf.io", &["v1"]), group("topology.node.k8s.io", &["v1alpha2"]),
            ]})
        }
        "/api/v1/nodes" if query.contains("continue=more") => {
            json!({"metadata": {}, "items": [{"metadata": {"name": "b"}, "status": {"capacity": {"x.y/z": "1"}}}]})
        }
        "/api/v1/nodes" => json!({"metadata": {"continue": "more"}, "items": [{"metadata": {"name": "a"}}]}),
        "/api/v1/nodes/b/proxy/configz" => json!({"kubeletconfig": {"cpuManagerPolicy": "static"}}),
        "/apis/resource.k8s.io/v1beta1/resourceslices" => json!({"items": [{"spec": {"driver": "d"}}]}),
        "/apis/resource.k8s.io/v1alpha3/devicetaintrules" => json!({"items": []}),
        "/apis/k8s.cni.cncf.io/v1/namespaces/team/network-attachment-definitions" => json!({"items": [{}]}),
        "/apis/coordination.k8s.io/v1/namespaces/slipway-system/leases/slipway-controller" => {
            let reads = server.reads.fetch_add(1, Ordering::Relaxed);
            let time = if server.renews { reads / 2 } else { 0 };
            json!({"spec": {"holderIdentity": "me", "leaseDurationSeconds": 2, "renewTime": time.to_string()}})
        }
        "/apis/topology.node.k8s.io/v1alpha2/noderesourcetopologies"
        | "/apis/k8s.cni.cncf.io/v1/network-attachment-definitions" => {
            return status(StatusCode::FORBIDDEN, "you may not");
        }
        _ => return status(StatusCode::NOT_FOUND, "the server could not find the requested resource"),
    };
    document.to_string().into_response()
}

fn status(code: StatusCode, message: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code.as_u16()});
    (code, body.to_string()).into_response()
}

async fn collected(renews: bool) -> Report {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Arc::new(Server { reads: AtomicU64::new(0), renews });
    let router = Router::new().fallback(answer).with_state(server);
    let task = tokio::spawn(async move { axum::serve(listener, router).await });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "a",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "users": [{"name": "u", "user": {}}]});
    std::fs::write(&path, config.to_string()).unwrap();
    let flags = ClusterFlags { kubeconfig: Some(path), ..ClusterFlags::default() };
    let (client, namespace) = connect(&flags).await.unwrap();
    let report = collect(&client, &namespace, Levels::new()).await.unwrap();
    task.abort();
    report
}

#[tokio::test]
async fn everything_that_may_be_read_is_and_the_rest_is_told_apart() {
    let report = collected(true).await;
    assert_eq!((report.version, report.namespace.as_str()), ((1, 33), "team"));
    let names = report.nodes.known().unwrap().iter().filter_map(|node| node.metadata.name.as_deref());
    assert_eq!(names.collect::<Vec<_>>(), ["a", "b"], "both pages");
    assert_eq!(report.node_topologies, Source::Refused("you may not".to_owned()));
    assert_eq!(report.sriov_states, Source::Absent, "the group is not served");
    assert_eq!(report.claims, Source::Absent, "no version has it");
    assert_eq!(report.slices.known().map(Vec::len), Some(1), "an older version has it");
    assert_eq!(report.device_taint_rules, Source::Known(Vec::new()), "the oldest version has it");
    assert_eq!(report.networks.known().map(Vec::len), Some(1), "those of the namespace may be read");
    assert_eq!(report.controller.deployment, Source::Absent);
    assert!(report.controller.lease.known().unwrap().renewed);
    assert_eq!(report.kubelets.keys().collect::<Vec<_>>(), ["b"], "the one with devices is asked first");
    let denied: Vec<_> = report.access.iter().filter(|access| !access.allowed).collect();
    assert_eq!(report.access.len(), SUBMITTER.len());
    assert_eq!(denied.iter().map(|access| access.resource.as_str()).collect::<Vec<_>>(), ["trainingjobs"]);
    assert!(report.access.iter().any(|access| access.resource == "pods/log"));
}

#[tokio::test]
async fn a_lease_that_nobody_renews_is_watched_for_as_long_as_it_lasts() {
    let lease = Lease { holder: "me".to_owned(), watched_seconds: 2, renewed: false };
    assert_eq!(collected(false).await.controller.lease, Source::Known(lease));
}
