"""How fast the gates of a gang are lifted: `launcher serve` beside a bare HTTP client, against one API server.

In each round a job of ours gets its gates lifted; then a plain Job with the very same pods gets the very same patches
from curl, which does nothing else: what it reaches is the API server's own ceiling at that time. Scheduler, Job
controller and kwok work beside both in the same way. `benches/run gates` brings the cluster up and calls this.
"""

import argparse
import base64
import http.client
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import host, table, write_json

OURS, BARE, JOB = "gates-ours", "gates-bare", "gang"
GATE, HOSTNAME, INDEX = "slipway.dev/placement", "kubernetes.io/hostname", "batch.kubernetes.io/job-completion-index"
# Requests at a time: what launcher/src/backend/kubernetes/controller/api.rs keeps to (CALLS_MAX).
CONNECTIONS = 32
RACK_NODES = 32
PLACES = 'slipway_api_calls_total{purpose="Place"}'
# Seconds until pods are there, gates lifted, or all gone, on busy cores.
WAIT_MAX = 400


class Api:
    """The API server, as a kubeconfig with certificates says."""

    def __init__(self, kubeconfig, folder):
        view = subprocess.run(
            ["kubectl", "--kubeconfig", kubeconfig, "config", "view", "--raw", "--flatten", "-o", "json"],
            check=True, capture_output=True,
        )
        view = json.loads(view.stdout)
        cluster, user = view["clusters"][0]["cluster"], view["users"][0]["user"]
        self.url = cluster["server"]
        self.files = {}
        for name, text in [
            ("cacert", cluster["certificate-authority-data"]),
            ("cert", user["client-certificate-data"]),
            ("key", user["client-key-data"]),
        ]:
            path = Path(folder) / name
            path.write_bytes(base64.b64decode(text))
            path.chmod(0o600)
            self.files[name] = str(path)
        self.context = ssl.create_default_context(cafile=self.files["cacert"])
        self.context.load_cert_chain(self.files["cert"], self.files["key"])
        self.connection = None

    def call(self, method, path, body=None, fine=(200, 201, 202), accept="application/json"):
        if self.connection is None:
            self.connection = http.client.HTTPSConnection(self.url.removeprefix("https://"), context=self.context)
        data = None if body is None else json.dumps(body)
        self.connection.request(method, path, data, {"Content-Type": "application/json", "Accept": accept})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status not in fine:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:400]!r}")
        return json.loads(text)

    def fork(self):
        other = object.__new__(Api)
        other.__dict__.update(self.__dict__, connection=None)
        return other

    def each(self, calls):
        """Calls at 32 connections; not measured."""
        parts = [calls[start::CONNECTIONS] for start in range(CONNECTIONS)]

        def work(part):
            api = self.fork()
            for call in part:
                api.call(**call)

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(work, parts))

    def pods(self, namespace):
        return self.call("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]

    def count(self, namespace):
        accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
        listed = self.call("GET", f"/api/v1/namespaces/{namespace}/pods?limit=1", accept=accept)
        return len(listed["items"] or []) + listed["metadata"].get("remainingItemCount", 0)

    def wait_for_pods(self, namespace, pods):
        """When the look began that saw them all."""
        until = time.monotonic() + WAIT_MAX
        while True:
            looked = time.monotonic()
            count = self.count(namespace)
            if count == pods:
                return looked
            if looked > until:
                raise RuntimeError(f"{namespace} has {count} pods, not {pods}")
            time.sleep(0.05)


class Serve:
    """`launcher serve`: its metrics, CPU time and memory."""

    def __init__(self, launcher, kubeconfig, address):
        self.http = f"127.0.0.1:{free(socket.SOCK_STREAM, '127.0.0.1')}"
        rendezvous = f"{address}:{free(socket.SOCK_DGRAM, address)}"
        self.process = subprocess.Popen([
            launcher, "serve", "--kubeconfig", kubeconfig, "--http", self.http, "--rendezvous", rendezvous,
            "--advertise", rendezvous, "--sidecar-image", "slipway.test/worker:none", "--child", "job",
        ])
        until = time.monotonic() + WAIT_MAX
        while True:
            try:
                self.get("/readyz")
                return
            except OSError:
                if time.monotonic() > until:
                    raise RuntimeError("launcher serve does not become ready") from None
                time.sleep(0.1)

    def get(self, path):
        if self.process.poll() is not None:
            raise RuntimeError(f"launcher serve has ended ({self.process.returncode})")
        with urllib.request.urlopen(f"http://{self.http}{path}", timeout=60) as answer:
            return answer.read().decode()

    def metrics(self):
        lines = [line.rsplit(" ", 1) for line in self.get("/metrics").splitlines() if line.startswith("slipway_")]
        return {name: float(value) for name, value in lines}

    def cpu(self):
        return cpu(self.process.pid)

    def peak_memory_kib(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def free(kind, address):
    with socket.socket(socket.AF_INET, kind) as found:
        found.bind((address, 0))
        return found.getsockname()[1]


def cpu(pid):
    """Seconds of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def node(number):
    name = f"kwok-{number:05}"
    amounts = {"cpu": "32", "memory": "256Gi", "pods": "110"}
    labels = {
        HOSTNAME: name, "kubernetes.io/os": "linux",
        "cloud.provider.com/topology-rack": f"rack-{number // RACK_NODES}",
    }
    return {
        "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "status": {"allocatable": amounts, "capacity": amounts},
    }


def prepare(api, nodes):
    made = (201, 409)
    for name in [OURS, BARE, "slipway-system"]:
        api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}}, made)
    api.each([dict(method="POST", path="/api/v1/nodes", body=node(n), fine=made) for n in range(nodes)])
    until = time.monotonic() + WAIT_MAX
    while True:
        listed = api.call("GET", "/api/v1/nodes")["items"] or []
        conditions = [condition for one in listed for condition in one["status"].get("conditions", [])]
        ready = sum(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
        if ready >= nodes:
            return
        if time.monotonic() > until:
            raise RuntimeError(f"{ready} of {nodes} nodes are ready: does kwok run?")
        time.sleep(1)


TRAININGS = f"/apis/slipway.dev/v1alpha1/namespaces/{OURS}/trainingjobs"


def places(pods, expected):
    """The host of each pod by its index; all gates must be gone."""
    gated = [pod for pod in pods if pod["spec"].get("schedulingGates")]
    found = {pod["metadata"]["labels"][INDEX]: pod["spec"].get("nodeSelector", {}).get(HOSTNAME) for pod in pods}
    if gated or len(found) != expected or None in found.values():
        raise RuntimeError(f"{len(gated)} pods have gates, {len(found)} of {expected} have places")
    return found


def twin(api):
    """The Job that ours made, as one that is nobody's: the same pods behind the same gate, without our labels."""
    spec = api.call("GET", f"/apis/batch/v1/namespaces/{OURS}/jobs/{JOB}")["spec"]
    spec.pop("selector")
    meta = spec["template"]["metadata"]
    meta["labels"] = {
        name.replace("slipway.dev/", "bare.test/"): value
        for name, value in meta["labels"].items()
        if "job-name" not in name and "controller-uid" not in name
    }
    return {"metadata": {"name": JOB, "namespace": BARE}, "spec": spec}


def clear(api, namespace):
    gone = {"propagationPolicy": "Background"}
    jobs = TRAININGS if namespace == OURS else f"/apis/batch/v1/namespaces/{namespace}/jobs"
    api.call("DELETE", f"{jobs}/{JOB}", gone, (200, 202))
    # With grace, the garbage collector and kwok would take minutes.
    base = f"/api/v1/namespaces/{namespace}/pods"
    names = [pod["metadata"]["name"] for pod in api.pods(namespace)]
    now = {"gracePeriodSeconds": 0}
    api.each([dict(method="DELETE", path=f"{base}/{name}", body=now, fine=(200, 202, 404)) for name in names])
    api.wait_for_pods(namespace, 0)
    until = time.monotonic() + WAIT_MAX
    for path in {jobs, f"/apis/batch/v1/namespaces/{namespace}/jobs"}:
        while api.call("GET", path)["items"]:
            if time.monotonic() > until:
                raise RuntimeError(f"{path} does not become empty")
            time.sleep(0.2)


def ours(api, serve, server, pods):
    before = serve.metrics()
    api.call("POST", TRAININGS, {
        "apiVersion": "slipway.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": JOB},
        "spec": {
            "workers": {"count": pods}, "run": {"command": ["true"]},
            "resources": {"cpus": 1, "memory": "64Mi"}, "pod": {"image": "slipway.test/ranks:none"},
        },
    })
    submitted = time.monotonic()
    visible = api.wait_for_pods(OURS, pods)
    spent, server_spent = serve.cpu(), cpu(server)
    until = time.monotonic() + WAIT_MAX
    while True:
        now = serve.metrics()
        lifted = time.monotonic()
        change = {name: value - before.get(name, 0) for name, value in now.items()}
        if change.get(PLACES, 0) >= pods and change["slipway_gates_seconds_count"] >= 1:
            break
        if lifted > until:
            raise RuntimeError(f"only {change.get(PLACES, 0)} of {pods} gates are lifted")
        time.sleep(0.02)
    result = {
        "wall_s": lifted - visible, "pods_s": visible - submitted,
        "cpu_s": serve.cpu() - spent, "server_cpu_s": cpu(server) - server_spent,
        "told_s": change["slipway_gates_seconds_sum"], "solver_s": change["slipway_solver_seconds_sum"],
        "calls": {name.split('"')[1]: value for name, value in change.items() if name.startswith(PLACES[:23])},
    }
    plan = twin(api), places(api.pods(OURS), pods)
    clear(api, OURS)
    return result, plan


def bare(api, serve, server, pods, plan, folder):
    job, hosts = plan
    api.call("POST", f"/apis/batch/v1/namespaces/{BARE}/jobs", job)
    api.wait_for_pods(BARE, pods)
    config = Path(folder) / "curl"
    config.write_text("next\n".join(patch(api, pod["metadata"], hosts) for pod in api.pods(BARE)))
    spent, server_spent, idle = os.times(), cpu(server), serve.cpu()
    begun = time.monotonic()
    curl = subprocess.run(
        ["curl", "--parallel", "--parallel-max", str(CONNECTIONS), "--config", str(config)],
        check=True, capture_output=True, text=True,
    )
    wall = time.monotonic() - begun
    after = os.times()
    if curl.stdout.split() != ["200"] * pods:
        raise RuntimeError(f"a patch was refused: {set(curl.stdout.split())} {curl.stderr[:400]}")
    result = {
        "wall_s": wall, "server_cpu_s": cpu(server) - server_spent, "serve_cpu_s": serve.cpu() - idle,
        "cpu_s": after.children_user + after.children_system - spent.children_user - spent.children_system,
    }
    places(api.pods(BARE), pods)
    clear(api, BARE)
    return result


def patch(api, meta, hosts):
    """The very patch of launcher/src/backend/kubernetes/controller/api.rs, as curl's configuration has it."""
    place = hosts[meta["labels"][INDEX]]
    note = json.dumps({"gpu": None, "host": place, "nic": None, "numaNode": None}, separators=(",", ":"))
    body = {
        "metadata": {"uid": meta["uid"], "annotations": {"slipway.dev/placed": note}},
        "spec": {"nodeSelector": {HOSTNAME: place}, "schedulingGates": [{"$patch": "delete", "name": GATE}]},
    }
    quote = json.dumps  # Both escape quotes and backslashes in the same way.
    options = {
        "url": f"{api.url}/api/v1/namespaces/{BARE}/pods/{meta['name']}?fieldManager=slipway",
        "request": "PATCH", "output": "/dev/null", "write-out": "%{http_code}\n",
        "data-raw": json.dumps(body, separators=(",", ":")), **api.files,
    }
    lines = [f"{name} = {quote(value)}" for name, value in options.items()]
    lines += [
        'header = "Content-Type: application/strategic-merge-patch+json"',
        'header = "Accept: application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"',
        "http1.1", "silent", "show-error",
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launcher", required=True)
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--address", required=True, help="this host's address for sidecars")
    parser.add_argument("--apiserver", required=True, type=int, help="its pid")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        api = Api(options.kubeconfig, folder)
        say(f"making {options.nodes} nodes")
        prepare(api, options.nodes)
        serve = Serve(options.launcher, options.kubeconfig, options.address)
        rounds = []
        try:
            for number in range(options.rounds):
                mine, plan = ours(api, serve, options.apiserver, options.pods)
                say(f"round {number + 1}: ours {json.dumps(mine)}")
                its = bare(api, serve, options.apiserver, options.pods, plan, folder)
                say(f"round {number + 1}: bare {json.dumps(its)}; ratio {its['wall_s'] / mine['wall_s']:.2f}")
                rounds.append((mine, its))
            report(options, rounds, serve)
        finally:
            serve.process.kill()
    write_json(options.json, {"host": host(), "nodes": options.nodes, "pods": options.pods, "rounds": rounds})


def report(options, rounds, serve):
    def median(number):
        return statistics.median(number(*one) for one in rounds)

    def pair(key):
        return median(lambda mine, _: mine[key]), median(lambda _, its: its[key])

    walls, clients, servers = pair("wall_s"), pair("cpu_s"), pair("server_cpu_s")
    ratio = median(lambda mine, its: its["wall_s"] / mine["wall_s"])
    calls = median(lambda mine, _: sum(mine["calls"].values()) / options.pods)
    print(f"\n{options.nodes} nodes, {options.pods} pods, medians of {len(rounds)} rounds:\n")
    print(table(["", "slipway", "bare client", "ratio"], [
        ["all gates lifted, s", f"{walls[0]:.2f}", f"{walls[1]:.2f}", ""],
        ["pods/s", f"{options.pods / walls[0]:.0f}", f"{options.pods / walls[1]:.0f}", f"{ratio:.2f}"],
        ["client CPU, s", f"{clients[0]:.2f}", f"{clients[1]:.2f}", ""],
        ["API server CPU, s", f"{servers[0]:.2f}", f"{servers[1]:.2f}", ""],
        ["calls per pod", f"{calls:.3f}", "1", ""],
    ]))
    print(f"\nslipway_gates_seconds: {median(lambda mine, _: mine['told_s']):.2f} s")
    print(f"solver: {median(lambda mine, _: mine['solver_s']) * 1000:.1f} ms a job")
    print(f"launcher serve: VmHWM {serve.peak_memory_kib() / 1024:.0f} MiB")
    print("\nGoal: at least 0.8 of the bare client's pods/s, at most 2 calls per pod.")


def say(text):
    print(f"gates: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
