//! One fault at a time in a cluster that lacks nothing: exactly that one is found.

use serde_json::json;

use super::*;

mod healthy;

use Severity::{Error, Note, Warning};

/// A code, how bad it is, and what is done to the cluster that lacks nothing.
type Plant = (&'static str, Severity, fn(&mut Report));

fn values(source: &mut Source<Vec<Value>>) -> &mut Vec<Value> {
    match source {
        Source::Known(values) => values,
        _ => panic!("it is there"),
    }
}

/// Changes the Nodes of these names.
fn nodes(report: &mut Report, names: &[&str], change: impl Fn(&mut Value)) {
    let Source::Known(nodes) = &mut report.nodes else { panic!("they are there") };
    for node in nodes {
        if node.metadata.name.as_deref().is_some_and(|name| names.is_empty() || names.contains(&name)) {
            let mut value = serde_json::to_value(&*node).unwrap();
            change(&mut value);
            *node = serde_json::from_value(value).unwrap();
        }
    }
}

fn label(node: &mut Value, label: &str) {
    node["metadata"]["labels"].as_object_mut().unwrap().remove(label);
}

/// The spec's fields of the cluster's custom resource.
fn fields(report: &mut Report) -> &mut serde_json::Map<String, Value> {
    let Source::Known(crd) = &mut report.crd else { panic!("it is there") };
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    crd.pointer_mut(path).unwrap().as_object_mut().unwrap()
}

/// Attributes of a driver's devices on `d1`, or on both hosts.
fn attributes(report: &mut Report, driver: &str, both: bool, change: impl Fn(&mut Value)) {
    for slice in values(&mut report.slices) {
        if slice["spec"]["driver"] == driver && (both || slice["spec"]["nodeName"] == "d1") {
            slice["spec"]["devices"]
                .as_array_mut()
                .unwrap()
                .iter_mut()
                .for_each(|device| change(&mut device["attributes"]));
        }
    }
}

fn kubelet(report: &mut Report, field: &str, value: &str) {
    report.kubelets.get_mut("p1").unwrap()[field] = json!(value);
}

const CONTROL: &[Plant] = &[
    ("server-too-old", Error, |report| report.version = (1, 28)),
    ("sidecars-unstable", Warning, |report| report.version = (1, 30)),
    ("kind-missing", Error, |report| {
        report.served.remove("slipway.dev/v1alpha1");
    }),
    ("kind-older", Warning, |report| {
        fields(report).remove("suspend");
    }),
    ("kind-newer", Note, |report| {
        fields(report).insert("moon".to_owned(), json!({}));
    }),
    ("access-denied", Error, |report| report.access[0].allowed = false),
    ("controller-missing", Error, |report| {
        report.controller = Controller::default();
    }),
    ("controller-not-ready", Error, |report| {
        report.controller.deployment = Source::Known(json!({"spec": {"replicas": 2}}));
        report.controller.lease = Source::Known(Lease::default());
    }),
    ("lease-missing", Error, |report| report.controller.lease = Source::Absent),
    ("lease-stale", Error, |report| {
        report.controller.lease =
            Source::Known(Lease { holder: "a".to_owned(), watched_seconds: 15, renewed: false });
    }),
    ("service-missing", Error, |report| report.controller.service = Source::Absent),
    ("flow-schema-missing", Warning, |report| report.controller.flow_schema = Source::Absent),
    ("admission-policy-missing", Warning, |report| report.controller.admission_policy = Source::Absent),
    ("jobset-missing", Note, |report| {
        report.served.remove("jobset.x-k8s.io/v1alpha2");
    }),
    ("pod-security", Warning, |report| {
        let level = ("pod-security.kubernetes.io/enforce".to_owned(), "restricted".to_owned());
        report.namespace_labels = Source::Known(BTreeMap::from([level]));
    }),
];

const HOSTS: &[Plant] = &[
    ("nodes-unreadable", Note, |report| report.nodes = Source::Refused("forbidden".to_owned())),
    ("no-hosts", Error, |report| report.nodes = Source::Known(Vec::new())),
    ("host-closed", Warning, |report| {
        nodes(report, &["p1"], |node| node["spec"]["unschedulable"] = json!(true))
    }),
    ("host-closed", Error, |report| nodes(report, &[], |node| node["status"]["conditions"] = json!([]))),
    ("gpus-lost", Warning, |report| {
        nodes(report, &["p1"], |node| node["status"]["allocatable"]["nvidia.com/gpu"] = json!("3"));
    }),
    ("gpus-lost", Warning, |report| {
        for slice in values(&mut report.slices).iter_mut().take(1) {
            slice["spec"]["devices"].as_array_mut().unwrap().pop();
        }
    }),
    ("gpu-model-unknown", Note, |report| {
        nodes(report, &["p1"], |node| label(node, "nvidia.com/gpu.product"))
    }),
    ("hugepages-missing", Note, |report| {
        nodes(report, &["d2"], |node| node["status"]["allocatable"]["hugepages-2Mi"] = json!("0"));
    }),
    ("racks-unknown", Note, |report| nodes(report, &[], |node| label(node, "fabric.topograph.run/tier-0"))),
    ("rack-missing", Note, |report| {
        nodes(report, &["p2"], |node| label(node, "fabric.topograph.run/tier-0"))
    }),
    ("kueue-levels-unused", Warning, |report| {
        let topology =
            json!({"metadata": {"name": "t"}, "spec": {"levels": [{"nodeLabel": "example.com/rack"}]}});
        report.kueue_topologies = Source::Known(vec![topology]);
    }),
    ("numa-unknown", Warning, |report| report.node_topologies = Source::Absent),
    ("kubelet-policy", Warning, |report| {
        values(&mut report.node_topologies)[0]["attributes"][0]["value"] = json!("best-effort");
    }),
    ("kubelet-policy", Error, |report| {
        for topology in values(&mut report.node_topologies) {
            topology["attributes"] = json!([]);
        }
        nodes(report, &["p2"], |node| {
            for amounts in ["capacity", "allocatable"] {
                for device in ["nvidia.com/gpu", "openshift.io/rdma_a"] {
                    node["status"][amounts].as_object_mut().unwrap().remove(device);
                }
            }
            label(node, "nvidia.com/gpu.product");
        });
        values(&mut report.node_topologies).retain(|topology| topology["metadata"]["name"] != "p2");
        kubelet(report, "topologyManagerPolicy", "none");
    }),
    ("kubelet-scope", Warning, |report| {
        values(&mut report.node_topologies)[0]["attributes"][1]["value"] = json!("container");
    }),
    ("cpu-manager", Warning, |report| kubelet(report, "cpuManagerPolicy", "none")),
    ("memory-manager", Note, |report| kubelet(report, "memoryManagerPolicy", "None")),
    ("topology-stale", Warning, |report| {
        values(&mut report.node_topologies)[0]["zones"][0]["resources"][2]["capacity"] = json!("3");
    }),
];

/// VFs without NUMA hints on both hosts that have them from a plugin.
fn without_hints(report: &mut Report) {
    for topology in values(&mut report.node_topologies).iter_mut().take(2) {
        for zone in topology["zones"].as_array_mut().unwrap() {
            zone["resources"].as_array_mut().unwrap().pop();
        }
    }
}

const DEVICES: &[Plant] = &[
    ("hints-missing", Warning, without_hints),
    ("topology-excluded", Warning, |report| {
        without_hints(report);
        let policy = json!({"spec": {"resourceName": "rdma_a", "excludeTopology": true}});
        report.sriov_policies = Source::Known(vec![policy]);
    }),
    ("driver-without-numa", Warning, |report| {
        attributes(report, "gpu.nvidia.com", false, |attributes| {
            attributes.as_object_mut().unwrap().remove("resource.kubernetes.io/numaNode");
        });
    }),
    ("driver-without-root", Warning, |report| {
        attributes(report, "dra.net", false, |attributes| {
            attributes.as_object_mut().unwrap().remove("resource.kubernetes.io/pcieRoot");
        });
    }),
    ("class-missing", Warning, |report| {
        values(&mut report.device_classes).pop();
    }),
    ("slices-incomplete", Warning, |report| {
        values(&mut report.slices)[1]["spec"]["pool"]["resourceSliceCount"] = json!(2);
    }),
    ("no-pairs", Error, |report| {
        report.slices = Source::Known(Vec::new());
        report.node_topologies = Source::Absent;
        nodes(report, &["p1", "p2"], |node| {
            for amounts in ["capacity", "allocatable"] {
                node["status"][amounts]
                    .as_object_mut()
                    .unwrap()
                    .retain(|name, _| !name.contains(".com/") && !name.contains(".io/"));
            }
        });
    }),
    ("roots-unknown", Error, |report| {
        report.slices = Source::Absent;
        nodes(report, &["d1", "d2"], |node| label(node, "nvidia.com/gpu.product"));
    }),
    ("roots-apart", Error, |report| {
        attributes(report, "dra.net", true, |attributes| {
            attributes["resource.kubernetes.io/pcieRoot"] = json!({"string": "pci0000:ff"});
        });
    }),
    ("sriov-not-synced", Warning, |report| {
        let state =
            json!({"metadata": {"name": "p1"}, "status": {"syncStatus": "Failed", "lastSyncError": "busy"}});
        report.sriov_states = Source::Known(vec![state]);
    }),
    ("multus-missing", Warning, |report| report.networks = Source::Absent),
    ("network-missing", Warning, |report| values(&mut report.networks).clear()),
];

#[test]
fn a_cluster_that_lacks_nothing_has_no_findings() {
    let findings = examine(&healthy::report());
    assert!(findings.is_empty(), "{findings:#?}");
    assert!(verdicts(&findings).iter().all(|verdict| verdict.works));
}

#[test]
fn each_planted_fault_is_found_and_nothing_else() {
    let mut codes = BTreeSet::new();
    let mut wrong = Vec::new();
    for (code, severity, plant) in CONTROL.iter().chain(HOSTS).chain(DEVICES) {
        let mut report = healthy::report();
        plant(&mut report);
        let found: Vec<_> = examine(&report)
            .into_iter()
            .map(|finding| (finding.code, finding.severity, finding.what))
            .collect();
        if found.len() != 1 || found[0].0 != *code || found[0].1 != *severity {
            wrong.push(format!("{code} {severity:?}: {found:#?}"));
        }
        codes.insert(*code);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(codes.len() >= 40, "{} codes", codes.len());
}

#[test]
fn only_an_error_keeps_a_locality_from_working() {
    for (code, severity, plant) in CONTROL.iter().chain(HOSTS).chain(DEVICES) {
        let mut report = healthy::report();
        plant(&mut report);
        let findings = examine(&report);
        for verdict in verdicts(&findings) {
            let concerns = findings[0].localities.contains(&verdict.locality);
            assert_eq!(verdict.works, *severity != Error || !concerns, "{code} {:?}", verdict.locality);
        }
    }
}

#[test]
fn what_may_not_be_read_is_not_missing() {
    fn refused<T>() -> Source<T> {
        Source::Refused("forbidden".to_owned())
    }
    let mut report = healthy::report();
    report.crd = refused();
    report.namespace_labels = refused();
    report.controller = Controller {
        deployment: refused(),
        lease: refused(),
        service: refused(),
        flow_schema: refused(),
        admission_policy: refused(),
    };
    report.kubelets.clear();
    report.device_classes = refused();
    report.networks = refused();
    report.claims = refused();
    assert_eq!(examine(&report), []);
}

#[test]
fn a_diagnosis_reads_from_what_concerns_every_job_to_what_concerns_few() {
    let mut report = healthy::report();
    for code in ["lease-stale", "kubelet-policy", "roots-apart", "jobset-missing", "hints-missing"] {
        let (_, _, plant) =
            CONTROL.iter().chain(HOSTS).chain(DEVICES).find(|(one, ..)| *one == code).unwrap();
        plant(&mut report);
    }
    let findings = examine(&report);
    let (_, chosen) = report.cluster();
    insta::assert_snapshot!(text::render(&findings, &verdicts(&findings), &chosen.to_string()));
}
