"""Ceph's own reader beside ours, on one cluster: `rados bench seq` and Slipway, interleaved rounds.

    ceph.py --cluster FOLDER --programs FOLDER [--rounds 5] [--objects 320] [--json FILE]

Five sides read as many objects of 4 MiB each round as the same user:
- `rados bench seq --no-verify -t 16`, 16 at a time (without that flag it compares every byte, which flatters whoever is measured beside it);
- our store alone: the very same objects, 16 at a time, into memory that is used again;
- our whole loader: shards of as many bytes, striped over such objects, through cache, CRC-32C and slot to a trainer;
- the same loader for three epochs in one go, since a machine's first touch of memory may be what a short run mostly costs;
- the same loader over the same shards in a directory, for what Ceph adds.
CPU is that of the whole process, its start and end included; the OSD's is not.
"""

import json
import os
import pathlib
import resource
import shutil
import tempfile

from common import host, interleave, medians, note, parser, run, table, write_json

OBJECT = 4 << 20
RECORD = 128 << 10
GOALS = "Goals: at least 0.95 times rados bench's speed into slots, at most 1.1 times its CPU per GB."


def main():
    options = arguments()
    cluster = pathlib.Path(options.cluster)
    os.environ["CEPH_CONF"] = str(cluster / "ceph.conf")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slipway-bench-", dir="/dev/shm"))
    try:
        report = compare(options, cluster, folder)
    finally:
        shutil.rmtree(folder)
    write_json(options.json, report)


def compare(options, cluster, folder):
    count = options.objects
    note(f"writing {count} objects of 4 MiB, and as many bytes of shards")
    bench = ["rados", "-p", "shards", "-N", "bench", "bench"]
    run([*bench, "3600", "write", "-t", "8", "-b", str(OBJECT), "--max-objects", str(count), "--no-cleanup"])
    shards(folder, count)
    place = f"conf={cluster}/ceph.conf&credentials={cluster}/secret/writer"
    url = f"rados://shards/train?{place}"
    for name in sorted(os.listdir(folder)):
        run(["rados", "-p", "shards", "--striper", "put", f"train/{name}", str(folder / name)])
    programs = pathlib.Path(options.programs)
    loader = [str(programs / "loader")]
    shape, three = [str(RECORD), "32", "1", "none"], [str(RECORD), "32", "3", "none"]
    # The first run indexes; none of the rounds reads the shards to find out what is in them.
    for source in (url, str(folder)):
        run([*loader, source, *shape])
    sides = {
        "rados bench": lambda: rados_bench(bench, count),
        "our store": lambda: ours([str(programs / "store_read"), f"rados://shards:bench?{place}", "16"]),
        "our loader": lambda: ours([*loader, url, *shape]),
        "our loader, 3 epochs": lambda: ours([*loader, url, *three]),
        "our loader, directory": lambda: ours([*loader, str(folder), *shape]),
    }
    results = interleave(options.rounds, sides)
    middle = medians(results)
    base = middle["rados bench"]
    rows = [
        [
            name,
            f"{side['gb_per_s']:.2f}",
            f"{side['cpu_s_per_gb']:.3f}",
            f"{side['gb_per_s'] / base['gb_per_s']:.2f}",
            f"{side['cpu_s_per_gb'] / base['cpu_s_per_gb']:.2f}",
        ]
        for name, side in middle.items()
    ]
    print(table(["side", "GB/s", "CPU-s/GB", "÷ rados bench's GB/s", "÷ its CPU"], rows))
    print(GOALS)
    for name, runs in results.items():
        print(f"{name}: " + " ".join(f"{one['gb_per_s']:.2f}" for one in runs) + " GB/s")
    return {"host": host(), "rounds": results, "medians": middle}


def shards(folder, count):
    """Shards of 64 MiB, whose bytes are random."""
    left, number = count * OBJECT, 0
    while left > 0:
        size = min(left, 64 << 20)
        with open(folder / f"records-{number:03}.bin", "wb") as file:
            file.write(os.urandom(size))
        left, number = left - size, number + 1


def rados_bench(bench, count):
    """One pass over all objects; its own figures of speed, the kernel's of CPU."""
    text, cpu = timed([*bench, "3600", "seq", "-t", "16", "--no-verify"])
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    reads, seconds = int(fields["Total reads made"]), float(fields["Total time run"])
    assert reads == count, f"{reads} reads of {count} objects"
    gigabytes = reads * OBJECT / 1e9
    return {"gb": gigabytes, "gb_per_s": gigabytes / seconds, "cpu_s_per_gb": cpu / gigabytes}


def ours(command):
    """Speed as the program says it, CPU as the kernel does."""
    text, cpu = timed(command)
    result = json.loads(text)
    result["cpu_s_per_gb"] = cpu / result["gb"]
    return result


def timed(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = run(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return text, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def arguments():
    options = parser(__doc__)
    options.add_argument("--cluster", required=True)
    options.add_argument("--programs", required=True)
    options.add_argument("--objects", type=int, default=640)
    return options.parse_args()


if __name__ == "__main__":
    main()
