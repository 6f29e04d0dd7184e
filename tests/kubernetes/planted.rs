//! A cluster that lacks nothing, as far as an API server can show it: two hosts with device plugins, two with DRA drivers,
//! and what the software around them would write.

use serde_json::{Value, json};
use tests::kube::Rig;
use tests::kube::played::{definition, list, node};

/// Labels that all hosts have: one rack, one model.
const RACK: &str = "fabric.topograph.run/tier-0";

/// Plants all of it.
pub(crate) fn plant(rig: &Rig) {
    rig.with_kwok();
    rig.define(&definitions());
    rig.create(&hosts());
    rig.apply(&list(&sources()));
}

/// Everything but the hosts as it was in the beginning, whatever became of it.
pub(crate) fn replant(rig: &Rig) {
    rig.define(&definitions());
    rig.apply(&list(&sources()));
}

fn definitions() -> Vec<Value> {
    [
        ("topology.node.k8s.io/v1alpha2", "NodeResourceTopology", "noderesourcetopologies", "Cluster"),
        ("sriovnetwork.openshift.io/v1", "SriovNetworkNodeState", "sriovnetworknodestates", "Namespaced"),
        ("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", "network-attachment-definitions", "Namespaced"),
    ]
    .map(|(api, kind, plural, scope)| definition(api, kind, plural, scope))
    .into()
}

fn hosts() -> Vec<Value> {
    let plugins = json!({"nvidia.com/gpu": "4", "openshift.io/rdma_a": "4"});
    [("p1", &plugins), ("p2", &plugins), ("d1", &json!({})), ("d2", &json!({}))]
        .map(|(name, devices)| host(name, devices))
        .into()
}

/// A host with these devices beside its CPUs and memory.
pub(crate) fn host(name: &str, devices: &Value) -> Value {
    let mut amounts = json!({"cpu": "64", "memory": "512Gi", "hugepages-2Mi": "16Gi", "pods": "110"});
    for (name, count) in devices.as_object().unwrap() {
        amounts[name] = count.clone();
    }
    node(
        name,
        &amounts,
        &json!({RACK: "leaf-1", "fabric.topograph.run/tier-1": "spine-1", "nvidia.com/gpu.product": "H100"}),
    )
}

fn sources() -> Vec<Value> {
    let mut sources = ["gpu.nvidia.com", "dra.net"]
        .map(|driver| class(driver, &format!("device.driver == '{driver}'")))
        .to_vec();
    sources.push(network());
    sources
        .extend([("p1", 2), ("p2", 2), ("d1", 0), ("d2", 0)].map(|(host, devices)| topology(host, devices)));
    sources.extend(
        ["d1", "d2"].iter().flat_map(|host| [slice("gpu.nvidia.com", host, 4), slice("dra.net", host, 4)]),
    );
    sources
}

fn network() -> Value {
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {
            "name": "rdma-a",
            "namespace": "default",
            "annotations": {"k8s.v1.cni.cncf.io/resourceName": "openshift.io/rdma_a"},
        },
        "spec": {"config": "{}"},
    })
}

/// Two NUMA nodes with so many devices of each plugin.
fn topology(host: &str, devices: u32) -> Value {
    let zone = |id: u32| {
        let resource = |name: &str, amount: String| json!({"name": name, "capacity": amount, "allocatable": amount, "available": amount});
        let mut resources = vec![
            resource("cpu", "32".to_owned()),
            resource("memory", "256Gi".to_owned()),
            resource("hugepages-2Mi", "8Gi".to_owned()),
        ];
        if devices > 0 {
            resources.push(resource("nvidia.com/gpu", devices.to_string()));
            resources.push(resource("openshift.io/rdma_a", devices.to_string()));
        }
        json!({"name": format!("node-{id}"), "type": "Node", "resources": resources})
    };
    json!({
        "apiVersion": "topology.node.k8s.io/v1alpha2",
        "kind": "NodeResourceTopology",
        "metadata": {"name": host},
        "zones": [zone(0), zone(1)],
        "attributes": [
            {"name": "topologyManagerPolicy", "value": "single-numa-node"},
            {"name": "topologyManagerScope", "value": "pod"},
        ],
    })
}

/// The devices of a driver: two behind each root, a root on each NUMA node.
fn slice(driver: &str, host: &str, count: u32) -> Value {
    let device = |number: u32| {
        let (root, numa) = (format!("pci0000:{}0", number / 2), number / 2);
        let mut attributes = json!({
            "resource.kubernetes.io/pcieRoot": {"string": root}, "resource.kubernetes.io/numaNode": {"int": numa},
        });
        if driver == "dra.net" {
            attributes["rdma"] = json!({"bool": true});
        } else {
            attributes["productName"] = json!({"string": "H100"});
        }
        json!({"name": format!("dev-{number}"), "attributes": attributes})
    };
    slice_of(driver, host, &(0..count).map(device).collect())
}

/// A pool of one slice.
pub(crate) fn slice_of(driver: &str, host: &str, devices: &Value) -> Value {
    let pool = json!({"name": host, "generation": 1, "resourceSliceCount": 1});
    json!({
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": format!("{host}-{driver}")},
        "spec": {"driver": driver, "nodeName": host, "pool": pool, "devices": devices},
    })
}

/// A class of the devices of which this is true.
pub(crate) fn class(name: &str, expression: &str) -> Value {
    json!({
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": name},
        "spec": {"selectors": [{"cel": {"expression": expression}}]},
    })
}
