//! Locality on machines that have it: emulated ones with two NUMA nodes and real virtual functions, whose kubelets align by
//! them. What is asked together lies together and is used, what cannot is refused, and where the plan was wrong the kubelet
//! says `TopologyAffinityError` and the job goes elsewhere.
//!
//! Others' software is real: Multus and `host-device` move functions into pods, NFD tells what is free where. GPUs are
//! stand-ins: names that a device plugin hands out.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tests::kube::{Namespace, PYTHON_IMAGE, Rig, Training, VM_LABEL};

use crate::Story;
use crate::jobs::{committed_beyond, file};

pub(crate) const STORIES: &[Story] = &[
    ("locality_job_has_gpu_function_cpus_and_memory_of_one_node_and_its_data_goes_by_it", together),
    ("locality_what_no_numa_node_holds_is_refused_before_anything_is_made", refused),
    ("locality_where_the_kubelet_refuses_the_job_goes_elsewhere", elsewhere),
];

/// The emulated machines' numbers among the rig's nodes.
const FIRST: u32 = 8;
const SECOND: u32 = 9;
/// Of them the devices are looked at, which takes half a minute of this slow machine.
const EPOCHS: u64 = 16;
/// The network of the functions, which only they are on.
const FABRIC: &str = "10.99.0.";

/// The stories have the machines in turn: each counts on all devices being free.
fn in_turn() -> MutexGuard<'static, ()> {
    static MACHINES: Mutex<()> = Mutex::new(());
    MACHINES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn together() {
    let _turn = in_turn();
    let rig = Rig::shared().with_vm(FIRST);
    let training = rig.training("together", "job");
    fabric(&training.space);
    training.space.apply(&training.digits("digits", |spec| {
        spec["data"]["epochs"] = json!(EPOCHS);
        local(spec, 2, 1, &node_name(FIRST));
    }));
    committed_beyond(&training, 0);
    let pods = training.pods("digits");
    let mut nodes: Vec<u64> = pods.iter().map(|pod| check_together(&training, pod)).collect();
    let placed = training.space.get(&["trainingjob", "digits"]).unwrap()["status"]["placement"].clone();
    let placed = placed.as_array().unwrap().iter().map(|place| place["numaNode"].as_u64().unwrap());
    let mut placed: Vec<u64> = placed.collect();
    let end = training.end("digits");
    assert_eq!(end["phase"], "Succeeded", "{end}");
    // Which of two equal nodes of a host a pod gets is the kubelet's choice: the pod that it admits first has the lower.
    placed.sort_unstable();
    nodes.sort_unstable();
    assert_eq!(placed, [0, 1], "each node was planned for one worker");
    assert_eq!(nodes, [0, 1], "and each worker was given one");
    training.delete_and_look("digits");
}

/// Looks at what a worker was given, from inside its pod; returns its NUMA node.
fn check_together(training: &Training<'_>, pod: &Value) -> u64 {
    let name = pod["metadata"]["name"].as_str().unwrap();
    let run = |words: &[&str]| {
        let words = [&["exec", name, "--container", "ranks", "--"], words].concat();
        training.space.kubectl(&words).code(0).stdout
    };
    let text = run(&["/slipway/bin/worker", "probe", "--output", "json"]);
    let probe: Value = serde_json::from_str(&text).unwrap();
    let node = probe["verdict"]["node"].as_u64().unwrap_or_else(|| panic!("not on one NUMA node: {text}"));
    assert_eq!(probe["cpu_nodes"], json!([node]), "{text}");
    assert_eq!(probe["memory_nodes"], json!([node]), "{text}");
    let granted = |kind: &str| {
        let all = probe[kind].as_array().unwrap().iter();
        all.filter(|device| device["granted"] == true).cloned().collect::<Vec<_>>()
    };
    let (gpus, nics) = (granted("gpus"), granted("nics"));
    assert!(gpus.len() == 1 && nics.len() == 1, "one of each: {text}");
    assert!(nics[0]["vf_of"].is_string() && nics[0]["interface"].is_string(), "{text}");
    assert!(nics[0]["addresses"][0].as_str().unwrap().starts_with(FABRIC), "{text}");
    let interface = nics[0]["interface"].as_str().unwrap();
    let counted = run(&["python3", "-c", COUNTED]);
    let bytes = after(&counted, &format!("{interface}:"));
    let samples = after(&counted, "slipway_worker_quic_in_bytes_total");
    show(&format!(
        "worker on NUMA node {node}: {bytes} bytes came by {interface}, {samples} of them samples"
    ));
    assert!(samples > 0 && bytes >= samples, "{samples} bytes of samples of {bytes} on {interface}");
    node
}

/// Prints what a worker's sidecar has counted, then what its interfaces have: more may come in between.
const COUNTED: &str = "
import urllib.request
print(urllib.request.urlopen('http://127.0.0.1:7070/metrics').read().decode())
print(open('/proc/net/dev').read())
";

/// The first number of the line that begins with this word; /proc/net/dev has received bytes there.
fn after(text: &str, word: &str) -> u64 {
    let mut lines = text.lines().map(str::split_whitespace);
    let mut line = lines.find(|line| line.clone().next() == Some(word)).unwrap_or_else(|| panic!("{text}"));
    line.nth(1).unwrap().parse().unwrap()
}

fn refused() {
    let _turn = in_turn();
    let rig = Rig::shared().with_vm(FIRST);
    let training = rig.training("refused", "job");
    fabric(&training.space);
    rig.wait_for("what is free on the NUMA nodes", || {
        let known = rig.kubectl(["get", "noderesourcetopology", &node_name(FIRST)]);
        (known.code == 0).then_some(())
    });
    // Four are free on the machine, and two on each NUMA node.
    let file = file(&training.digits("wide", |spec| local(spec, 1, 3, &node_name(FIRST))));
    let said = training.launcher(&["submit", file.path().to_str().unwrap()]).code(69);
    said.says("none of its 2 NUMA nodes has 3 together").says("would not fit if nothing else ran");
    training.space.kubectl(&["delete", "network-attachment-definitions", "fabric"]).code(0);
    training.space.assert_empty();
}

fn elsewhere() {
    let _turn = in_turn();
    let rig = Rig::shared().with_vm(FIRST).with_vm(SECOND);
    let training = rig.training("elsewhere", "job");
    fabric(&training.space);
    // By what is told, both nodes of the first machine have two functions. One of each is taken while nobody tells.
    rig.script(["vm-told", &FIRST.to_string(), "no"]);
    for name in ["one", "two"] {
        training.space.apply(&taker(name).to_string());
    }
    for name in ["one", "two"] {
        training.space.wait_for("pod", name, |pod| (pod["status"]["phase"] == "Running").then_some(()));
    }
    training.space.apply(&training.digits("digits", |spec| {
        spec["data"]["epochs"] = json!(1);
        local(spec, 1, 2, "");
    }));
    let said = training.until("digits", |status| {
        let reasons = status["reasons"].as_array()?.iter().filter_map(Value::as_str);
        reasons.map(str::to_owned).find(|reason| reason.contains("TopologyAffinityError"))
    });
    assert!(said.contains(&node_name(FIRST)), "{said}");
    let end = training.end("digits");
    assert_eq!(end["phase"], "Succeeded", "{end}");
    let place = &end["placement"][0];
    assert!(place["host"] == node_name(SECOND).as_str() && place["numaNode"].is_u64(), "{end}");
    rig.script(["vm-told", &FIRST.to_string(), "yes"]);
    training.space.kubectl(&["delete", "pod", "one", "two"]).code(0);
    training.delete_and_look("digits");
}

fn node_name(number: u32) -> String {
    format!("node{number}")
}

/// So many workers with one GPU and so many functions each, on one NUMA node, on that machine or (`""`) any.
fn local(spec: &mut Value, workers: u32, functions: u32, node: &str) {
    spec["workers"]["count"] = json!(workers);
    spec["resources"] =
        json!({"gpus": 1, "nics": functions, "cpus": 1, "memory": "256Mi", "locality": "numa"});
    let pod = &mut spec["pod"];
    pod["sidecar"] = json!({"memory": "256Mi"});
    pod["devices"] = json!({"gpu": "slipway.test/gpu", "nic": "slipway.test/vf", "networks": ["fabric"]});
    pod["tolerations"] = json!([{"key": VM_LABEL, "operator": "Exists"}]);
    pod["nodeSelector"] = json!({VM_LABEL: "true"});
    if !node.is_empty() {
        pod["nodeSelector"]["kubernetes.io/hostname"] = json!(node);
    }
}

/// The network of the functions, as Multus is told of it: its plugin moves the function that the kubelet gave into the pod.
fn fabric(space: &Namespace<'_>) {
    let plugin = json!({
        "cniVersion": "0.4.0",
        "type": "host-device",
        "ipam": {"type": "host-local", "dataDir": "/node/fabric", "ranges": [[{"subnet": format!("{FABRIC}0/24")}]]},
    });
    let network = json!({
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": "fabric", "annotations": {"k8s.v1.cni.cncf.io/resourceName": "slipway.test/vf"}},
        "spec": {"config": plugin.to_string()},
    });
    space.apply(&network.to_string());
}

/// Somebody else's pod on the first machine, with one function and more than half of a NUMA node's GPUs: two of them are on
/// two nodes.
fn taker(name: &str) -> Value {
    let amounts = json!({"cpu": "1", "memory": "64Mi", "slipway.test/gpu": "2", "slipway.test/vf": "1"});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "nodeSelector": {"kubernetes.io/hostname": node_name(FIRST)},
            // Of everything: a held-up machine may be called lost for a moment, and this is about something else.
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "main", "image": PYTHON_IMAGE, "resources": {"requests": amounts, "limits": amounts},
                "command": ["python3", "-c", "import signal; signal.pause()"],
            }],
        },
    })
}

#[expect(clippy::print_stderr, reason = "what was measured is a result of the story")]
fn show(line: &str) {
    eprintln!("{line}");
}
