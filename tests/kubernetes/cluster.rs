//! The cluster itself is what the other stories take it for: gated pods wait, sidecars come first, and pods reach each
//! other and the host.

use std::net::UdpSocket;

use serde_json::{Value, json};
use tests::kube::{PATIENCE, PYTHON_IMAGE, Rig};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[(
    "cluster_gated_gang_runs_behind_its_sidecars_and_talks",
    gated_gang_runs_behind_its_sidecars_and_talks,
)];

const WORKERS: u32 = 2;
/// Larger than an Ethernet frame: what is routed between nodes is not cut to its size.
const PACKET_BYTES: usize = 4000;

/// Ready one second after it has started, and tells by a file that it was there before the ranks.
const SIDECAR: &str = r"
import http.server, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
open('/slipway/first', 'w').close()
began = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.monotonic() - began > 1 else 503)
        self.end_headers()
http.server.HTTPServer(('', 7070), Handler).serve_forever()
";

/// Sends its number to the host until the address of another worker comes back, then meets that worker.
const RANKS: &str = r"
import os, socket, time
assert os.path.exists('/slipway/first'), 'the sidecar was not first'
me, host, port, size = os.environ['JOB_COMPLETION_INDEX'], *os.environ['HOST'].split()
meet = socket.create_server(('', 5000))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(1)
while True:
    udp.sendto(me.encode().ljust(int(size)), (host, int(port)))
    try:
        peer = udp.recv(100).decode()
        break
    except TimeoutError:
        continue
socket.create_connection((peer, 5000), timeout=30).sendall(me.encode())
print('met', meet.accept()[0].recv(10).decode(), flush=True)
";

fn gated_gang_runs_behind_its_sidecars_and_talks() {
    let rig = Rig::shared().nodes(WORKERS).with_python_image();
    let space = rig.namespace("cluster");
    let host = UdpSocket::bind((rig.host_address(), 0)).unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    space.apply(&gang(&host).to_string());

    // Born with the gate, pods stay where they are until it is lifted.
    let pods = rig.wait_for("gated pods", || {
        let pods = space.pods("job-name=gang");
        let gated =
            pods.iter().filter(|pod| pod["spec"]["schedulingGates"][0]["name"] == "slipway.dev/placement");
        (gated.count() == 2).then_some(pods)
    });
    for (pod, node) in pods.iter().zip(1..) {
        let patch = json!([
            {"op": "remove", "path": "/spec/schedulingGates"},
            {"op": "add", "path": "/spec/nodeSelector", "value": {"kubernetes.io/hostname": format!("node{node}")}},
        ]);
        let name = pod["metadata"]["name"].as_str().unwrap();
        space.kubectl(&["patch", "pod", name, "--type", "json", "--patch", &patch.to_string()]).code(0);
    }

    introduce(&host);
    space.wait_for("job", "gang", |job| (job["status"]["succeeded"] == WORKERS).then_some(()));
    for pod in &pods {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let me = &pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"];
        let other = if me == "0" { "met 1\n" } else { "met 0\n" };
        assert_eq!(space.kubectl(&["logs", name, "--container", "ranks"]).code(0).stdout, other);
    }
    space.kubectl(&["delete", "job", "gang"]).code(0);
    space.assert_empty();
}

/// Tells each of two workers the other one's address: the source of its packet, since nothing translates it.
fn introduce(host: &UdpSocket) {
    let mut buffer = [0; 2 * PACKET_BYTES];
    let mut known = std::collections::BTreeMap::new();
    while known.len() < 2 {
        let (length, from) = host.recv_from(&mut buffer).unwrap();
        assert_eq!(length, PACKET_BYTES, "packets arrive whole");
        known.insert(buffer[0], from);
    }
    let (first, second) = (known[&b'0'], known[&b'1']);
    assert_ne!(first.ip(), second.ip());
    host.send_to(first.ip().to_string().as_bytes(), second).unwrap();
    host.send_to(second.ip().to_string().as_bytes(), first).unwrap();
}

/// Pods in the form that a job's have: an Indexed Job, gated, with a native sidecar whose start-up probe is the barrier.
fn gang(host: &UdpSocket) -> Value {
    let address = host.local_addr().unwrap();
    let contact = format!("{} {} {PACKET_BYTES}", address.ip(), address.port());
    let mounts = json!([{"name": "shared", "mountPath": "/slipway"}]);
    let pod = json!({
        "restartPolicy": "Never",
        "enableServiceLinks": false,
        "automountServiceAccountToken": false,
        "schedulingGates": [{"name": "slipway.dev/placement"}],
        "securityContext": {"runAsUser": 65532, "runAsNonRoot": true},
        "volumes": [{"name": "shared", "emptyDir": {}}],
        "initContainers": [{
            "name": "sidecar", "image": PYTHON_IMAGE, "restartPolicy": "Always", "volumeMounts": mounts,
            "command": ["python3", "-c", SIDECAR],
            "startupProbe": {"httpGet": {"path": "/ready", "port": 7070}, "periodSeconds": 1, "failureThreshold": 60},
        }],
        "containers": [{
            "name": "ranks", "image": PYTHON_IMAGE, "volumeMounts": mounts,
            "command": ["python3", "-c", RANKS], "env": [{"name": "HOST", "value": contact}],
        }],
    });
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "gang"},
        "spec": {
            "completions": WORKERS, "parallelism": WORKERS, "completionMode": "Indexed",
            "backoffLimit": 2_147_483_647, "podReplacementPolicy": "Failed", "template": {"spec": pod},
        },
    })
}
