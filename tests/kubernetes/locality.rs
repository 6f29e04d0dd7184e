//! A kubelet's own word on locality, in an emulated machine with two NUMA nodes and real virtual functions: what is asked
//! together lies together, and what cannot is refused with `TopologyAffinityError`.

use serde_json::{Value, json};
use tests::kube::{Namespace, PYTHON_IMAGE, Rig, VM_LABEL};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[
    (
        "locality_gpu_function_and_cpus_of_a_pod_share_a_numa_node",
        gpu_function_and_cpus_of_a_pod_share_a_numa_node,
    ),
    ("locality_what_no_numa_node_holds_is_refused", what_no_numa_node_holds_is_refused),
];

/// The emulated machine's number among the rig's nodes.
const VM: u32 = 9;

/// Prints the NUMA nodes of the GPU, of the virtual function (as sysfs has it), and of the CPUs that it may run on.
const SHOW: &str = r"
import glob, os
function = os.environ['PCIDEVICE_SLIPWAY_TEST_VF']
cpus = os.sched_getaffinity(0)
numa = {int(path.split('node')[-1]) for cpu in cpus for path in glob.glob(f'/sys/devices/system/cpu/cpu{cpu}/node[0-9]*')}
print(os.environ['SLIPWAY_TEST_GPU'].split('-')[1], open(f'/sys/bus/pci/devices/{function}/numa_node').read().strip(), *numa, len(cpus))
";

fn gpu_function_and_cpus_of_a_pod_share_a_numa_node() {
    let rig = Rig::shared().with_python_image().with_vm(VM);
    let space = rig.namespace("locality");
    // Two pods fill both NUMA nodes, whichever comes first.
    for name in ["one", "two"] {
        space.apply(&pod(name, 1, 2).to_string());
    }
    let mut numa_nodes: Vec<String> = ["one", "two"].map(|name| numa_node(&space, name)).into();
    numa_nodes.sort();
    assert_eq!(numa_nodes, ["0", "1"]);
}

/// The NUMA node of everything that the pod was given.
fn numa_node(space: &Namespace<'_>, name: &str) -> String {
    space.wait_for("pod", name, |pod| {
        let phase = pod["status"]["phase"].as_str();
        assert_ne!(phase, Some("Failed"), "{}", pod["status"]);
        (phase == Some("Running") && space.kubectl(&["logs", name]).stdout.ends_with('\n')).then_some(())
    });
    let said = space.kubectl(&["logs", name]).code(0).stdout;
    let words: Vec<_> = said.split_whitespace().collect();
    let [gpu, function, cpus, count] = words[..] else { panic!("CPUs of more than one NUMA node: {said}") };
    assert!(gpu == function && function == cpus, "GPU, function and CPUs on NUMA nodes {said}");
    assert_eq!(count, "2", "exclusive CPUs");
    gpu.to_owned()
}

fn what_no_numa_node_holds_is_refused() {
    let rig = Rig::shared().with_python_image().with_vm(VM);
    let space = rig.namespace("affinity");
    // Each NUMA node has two functions: three are free in sum, and nowhere together.
    space.apply(&pod("wide", 3, 1).to_string());
    let reason = space.wait_for("pod", "wide", |pod| {
        let status = &pod["status"];
        (status["phase"] == "Failed").then(|| status["reason"].as_str().unwrap().to_owned())
    });
    assert_eq!(reason, "TopologyAffinityError");
}

/// A pod of Guaranteed quality with one GPU, so many virtual functions and so many whole CPUs.
fn pod(name: &str, functions: u32, cpus: u32) -> Value {
    let amounts = json!({
        "cpu": cpus.to_string(), "memory": "64Mi",
        "slipway.test/gpu": "1", "slipway.test/vf": functions.to_string(),
    });
    // It stays until it is deleted: the other pod must not get the same devices after it.
    let command =
        ["python3", "-u", "-c", &format!("{SHOW}\nimport signal; signal.pause()")].map(str::to_owned);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "nodeSelector": {VM_LABEL: "true"},
            // Of everything: a held-up machine may be called lost for a moment, and this is about something else.
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "main", "image": PYTHON_IMAGE, "command": command,
                "resources": {"requests": amounts, "limits": amounts},
            }],
        },
    })
}
