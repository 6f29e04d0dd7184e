//! A cluster that lacks nothing: two hosts with device plugins, two with drivers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::doctor::{Access, Controller, Lease, Report, Source};

/// The report of it.
pub(super) fn report() -> Report {
    let served = ["slipway.dev/v1alpha1", "jobset.x-k8s.io/v1alpha2", "resource.k8s.io/v1"];
    let lease = Lease { holder: "slipway-controller-0".to_owned(), watched_seconds: 2, renewed: true };
    let hosts = ["d1", "d2"];
    let slices = hosts.iter().flat_map(|host| [slice("gpu.nvidia.com", host), slice("dra.net", host)]);
    let plugins = json!({"nvidia.com/gpu": "4", "openshift.io/rdma_a": "4"});
    Report {
        namespace: "team".to_owned(),
        version: (1, 34),
        served: served.iter().map(|group| (*group).to_owned()).collect::<BTreeSet<_>>(),
        crd: Source::Known(crd()),
        access: vec![Access {
            verb: "create".to_owned(),
            resource: "trainingjobs".to_owned(),
            allowed: true,
        }],
        namespace_labels: Source::Known(BTreeMap::new()),
        controller: Controller {
            deployment: Source::Known(json!({"spec": {"replicas": 2}, "status": {"readyReplicas": 1}})),
            lease: Source::Known(lease),
            service: Source::Known(json!({})),
            flow_schema: Source::Known(json!({})),
            admission_policy: Source::Known(json!({})),
        },
        nodes: Source::Known(
            [node("p1", &plugins), node("p2", &plugins), node("d1", &json!({})), node("d2", &json!({}))]
                .into_iter()
                .map(|node| serde_json::from_value(node).unwrap())
                .collect(),
        ),
        kubelets: BTreeMap::from([("p1".to_owned(), kubelet()), ("d1".to_owned(), kubelet())]),
        node_topologies: Source::Known(
            [("p1", 2), ("p2", 2), ("d1", 0), ("d2", 0)]
                .map(|(host, devices)| topology(host, devices))
                .into(),
        ),
        slices: Source::Known(slices.collect()),
        claims: Source::Known(Vec::new()),
        device_taint_rules: Source::Absent,
        device_classes: Source::Known(vec![class("gpu.nvidia.com"), class("dra.net")]),
        networks: Source::Known(vec![json!({"metadata": {"name": "rdma-a", "annotations": {
            "k8s.v1.cni.cncf.io/resourceName": "openshift.io/rdma_a"
        }}})]),
        ..Report::default()
    }
}

/// The custom resource as this launcher speaks it.
fn crd() -> Value {
    let spec = crate::job::schema::SCHEMA.pointer("/properties/spec").cloned().unwrap();
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}});
    json!({"spec": {"versions": [{"name": "v1alpha1", "served": true, "schema": schema}]}})
}

fn node(name: &str, devices: &Value) -> Value {
    let mut amounts = json!({"cpu": "64", "memory": "512Gi", "hugepages-2Mi": "16Gi", "pods": "110"});
    for (key, value) in devices.as_object().unwrap() {
        amounts[key] = value.clone();
    }
    json!({
        "metadata": {"name": name, "labels": {
            "fabric.topograph.run/tier-0": "leaf-1", "fabric.topograph.run/tier-1": "spine-1", "nvidia.com/gpu.product": "H100"
        }},
        "status": {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
    })
}

fn topology(name: &str, devices: u32) -> Value {
    let zone = |id: u32| {
        let resource = |name: &str, amount: String| json!({"name": name, "capacity": amount, "allocatable": amount, "available": amount});
        let mut resources = vec![resource("cpu", "32".to_owned()), resource("memory", "256Gi".to_owned())];
        if devices > 0 {
            resources.push(resource("nvidia.com/gpu", devices.to_string()));
            resources.push(resource("openshift.io/rdma_a", devices.to_string()));
        }
        json!({"name": format!("node-{id}"), "type": "Node", "resources": resources})
    };
    json!({"metadata": {"name": name}, "zones": [zone(0), zone(1)], "attributes": [
        {"name": "topologyManagerPolicy", "value": "single-numa-node"}, {"name": "topologyManagerScope", "value": "pod"}
    ]})
}

/// Four devices, two behind each root, a root on each NUMA node.
fn slice(driver: &str, node: &str) -> Value {
    let device = |number: u32| {
        json!({"name": format!("dev-{number}"), "attributes": {
            "resource.kubernetes.io/pcieRoot": {"string": format!("pci0000:{}0", number / 2)},
            "resource.kubernetes.io/numaNode": {"int": number / 2}, "dra.net/rdma": {"bool": true}
        }})
    };
    let devices: Vec<Value> = (0..4)
        .map(|number| {
            let mut device = device(number);
            if driver != "dra.net" {
                device["attributes"].as_object_mut().unwrap().remove("dra.net/rdma");
            }
            device
        })
        .collect();
    json!({"spec": {"driver": driver, "nodeName": node, "devices": devices,
        "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}}})
}

fn class(driver: &str) -> Value {
    let expression = format!("device.driver == '{driver}'");
    json!({"metadata": {"name": driver}, "spec": {"selectors": [{"cel": {"expression": expression}}]}})
}

fn kubelet() -> Value {
    json!({"topologyManagerPolicy": "single-numa-node", "topologyManagerScope": "pod", "cpuManagerPolicy": "static",
        "memoryManagerPolicy": "Static"})
}
