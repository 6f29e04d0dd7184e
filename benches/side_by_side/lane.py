"""Bulk data from process to process: our lane beside quinn, rustls over TCP, Mooncake and NIXL, interleaved rounds.

    lane.py --lane PROGRAM --peers-python PYTHON [--rounds 5] [--mtu 9000] [--mib 2048] [--json FILE]

Two processes on one host, each pair in a network namespace whose loopback has that MTU. One asks the other, which has
128 MiB in memory, for MIB in requests of 4 MiB (8 under way) and again of 64 KiB (64 under way). CPU is that of both.
What the sides are is said in benches/src/bin/lane/main.rs and benches/peers/lane_peer.py.
"""

import json
import os
import pathlib
import sys
import tempfile

from common import host, interleave, medians, note, parser, run, table, write_json

BENCHES = pathlib.Path(__file__).resolve().parent.parent
IN_NAMESPACE = BENCHES.parent / "tests/rig/loopback.py"
DATA_BYTES = 128 << 20
KINDS = {"4 MiB": (4 << 20, 8), "64 KiB": (64 << 10, 64)}
OURS = "our lane"
SIDES = {
    OURS: "ours",
    "quinn, our tuning": "raw",
    "quinn, our tuning, copied": "copied",
    "quinn, defaults": "default",
    "rustls/TCP, 1 connection": "tls1",
    "rustls/TCP, 4 connections": "tls4",
}
ENGINES = {"Mooncake, TCP": "mooncake", "NIXL, UCX over TCP": "nixl"}
# A side that takes longer has stalled.
LIMIT_S = 300
GOALS = """Goals at 4 MiB: at least 0.90 times quinn with our tuning, at most 1.15 times its CPU when it copies too; 2.5 times quinn's
defaults at MTU 8952 and more; 1.0 times rustls/TCP; 2 times Mooncake and NIXL at half their CPU."""


def main():
    options = arguments()
    report = {"host": host(), "mtu": options.mtu, "rounds": options.rounds, "kinds": {}}
    with tempfile.TemporaryDirectory(prefix="slipway-bench-", dir="/dev/shm") as folder:
        (pathlib.Path(folder) / "records.bin").write_bytes(os.urandom(DATA_BYTES))
        for name, (request, depth) in KINDS.items():
            results = compare(options, folder, request, depth)
            report["kinds"][name] = {"runs": results, "medians": medians(results)}
            print(f"\nRequests of {name}, MTU {options.mtu}:\n")
            print(as_table(results))
            for side, runs in results.items():
                print(f"{side}: " + " ".join(f"{one['gb_per_s']:.2f}" for one in runs) + " GB/s")
            sys.stdout.flush()
    report["load_after"] = os.getloadavg()
    note(f"load {report['host']['load']} before, {report['load_after']} after")
    print("\n" + GOALS)
    write_json(options.json, report)


def compare(options, folder, request, depth):
    work = [folder, request, (options.mib << 20) // request, depth]
    programs = {name: [options.lane, "run", side] for name, side in SIDES.items()}
    peer = [options.peers_python, BENCHES / "peers/lane_peer.py", "run"]
    programs |= {name: [*peer, engine] for name, engine in ENGINES.items()}
    return interleave(
        options.rounds, {name: lambda program=program: measure(options, program, work) for name, program in programs.items()}
    )


def measure(options, program, work):
    command = [sys.executable, IN_NAMESPACE, options.mtu, *program, *work]
    # Engines say more than their result, which is marked.
    text = run([str(word) for word in command], timeout=LIMIT_S)
    return json.loads(text.rpartition("lane: ")[2])


def as_table(results):
    """Medians, and ours as a ratio of each."""
    of = medians(results)
    ours = of[OURS]
    rows = [
        [
            name,
            f"{side['gb_per_s']:.2f}",
            f"{side['client_cpu_s_per_gb']:.2f} + {side['server_cpu_s_per_gb']:.2f}",
            f"{side['packet_bytes']:.0f}" if "packet_bytes" in side else "",
            f"{ours['gb_per_s'] / side['gb_per_s']:.2f}",
            f"{ours['cpu_s_per_gb'] / side['cpu_s_per_gb']:.2f}",
        ]
        for name, side in of.items()
    ]
    return table(["side", "GB/s", "CPU-s/GB, asking + serving", "packet, bytes", "ours ÷ its GB/s", "ours ÷ its CPU"], rows)


def arguments():
    options = parser(__doc__)
    options.add_argument("--lane", required=True, type=pathlib.Path)
    options.add_argument("--peers-python", required=True, type=pathlib.Path)
    options.add_argument("--mtu", type=int, default=9000)
    options.add_argument("--mib", type=int, default=2048, help="moved by each side in each round")
    return options.parse_args()


if __name__ == "__main__":
    main()
