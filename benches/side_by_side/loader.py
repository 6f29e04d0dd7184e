"""Our loader beside mosaicml-streaming and webdataset: the same bytes, one process that trains, interleaved rounds.

    loader.py --launcher BINARY --peers-python PYTHON [--rounds 5] [--json FILE] [--quick] [--folder /dev/shm/…]
              [--cluster FOLDER]

Two data sets of 1.07 GB in memory (tmpfs): 8,192 samples of 128 KiB in batches of 16, and 262,144 of 4 KiB in batches
of 256. webdataset and Slipway read the same tar shards, mosaicml its own format of the same samples. All shuffle. With a
cluster (tests/rig/ceph/ceph-rig) Slipway reads the same shards also from there; the peers have no reader for it.
"""

import io
import json
import os
import pathlib
import random
import shutil
import sys
import tarfile
import tempfile

from common import host, interleave, medians, note, parser, run, table, write_json

PEERS = pathlib.Path(__file__).resolve().parent.parent / "peers"
SHARD_BYTES = 128 << 20
KINDS = {
    "128 KiB": {"sample": 128 << 10, "count": 8192, "batch": 16},
    "4 KiB": {"sample": 4 << 10, "count": 262144, "batch": 256},
}
GOALS = """Goals: trainer's CPU per GB at most 1/10 of either peer's; all CPU per GB at most 0.6 of mosaicml's (128 KiB);
at least 10 times mosaicml's samples/s at 4 KiB."""


def main():
    options = arguments()
    folder = pathlib.Path(options.folder or tempfile.mkdtemp(prefix="slipway-bench-", dir="/dev/shm"))
    report = {"host": host(), "rounds": options.rounds, "kinds": {}}
    try:
        for name, kind in KINDS.items():
            if options.quick:
                kind = {**kind, "count": kind["count"] // 16}
            results = compare(options, folder / name.replace(" ", ""), kind)
            report["kinds"][name] = {"runs": results, "medians": medians(results)}
            print(f"\n{name} samples, {kind['count']} of them, batches of {kind['batch']}:\n")
            print(as_table(results), flush=True)
    finally:
        if not options.folder:
            shutil.rmtree(folder, ignore_errors=True)
    print("\n" + GOALS)
    write_json(options.json, report)


def compare(options, folder, kind):
    tars, mds = folder / "tar", folder / "mds"
    make(options, kind, tars, mds)
    sides = {
        "slipway": lambda: slipway(options, tars, kind, "yes"),
        "slipway, batches only": lambda: slipway(options, tars, kind, "no"),
    }
    if options.cluster:
        place = f"conf={options.cluster}/ceph.conf&credentials={options.cluster}/secret/writer"
        url = f"rados://shards/{folder.name}?{place}"
        note(f"copying {tars} to rados://shards/{folder.name}")
        run([options.launcher, "data", "put", tars, url])
        sides["slipway, from Ceph"] = lambda: slipway(options, url, kind, "yes")
    sides |= {
        "mosaicml": lambda: peer(options, "mosaicml_loader.py", mds, kind),
        "webdataset": lambda: peer(options, "webdataset_loader.py", tars, kind),
    }
    results = interleave(options.rounds, sides)
    for name, runs in results.items():
        for one in runs:
            if one["samples"] != kind["count"] or one["bytes"] != kind["count"] * kind["sample"]:
                sys.exit(f"{name} delivered {one['samples']} samples of {kind['count']}: {one}")
    return results


def slipway(options, data, kind, views):
    with tempfile.TemporaryDirectory() as home:
        result = pathlib.Path(home) / "result.json"
        run(
            [options.launcher, "job", "submit", "--workers", "1", "--data", data, "--global-batch", str(kind["batch"]),
             "--seed", "1", "--max-restarts", "0", "--name", "bench", "--",
             sys.executable, PEERS / "slipway_loader.py", "--result", result, "--views", views],
            env={**os.environ, "SLIPWAY_HOME": home},
        )
        return json.loads(result.read_text())


def peer(options, script, data, kind):
    command = [options.peers_python, PEERS / script, "--data", data, "--batch", str(kind["batch"])]
    return json.loads(run(command).splitlines()[-1])


def make(options, kind, tars, mds):
    """The same samples twice: tar shards with a manifest, and an MDS folder. Bytes follow from the sample's number."""
    if not tars.exists():
        note(f"making {kind['count']} samples of {kind['sample']} bytes in {tars.parent}")
        tars.mkdir(parents=True)
        per_shard = max(SHARD_BYTES // kind["sample"], 1)
        for shard, first in enumerate(range(0, kind["count"], per_shard)):
            with tarfile.open(tars / f"shard-{shard:04}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                for number in range(first, min(first + per_shard, kind["count"])):
                    entry = tarfile.TarInfo(f"sample-{number:08}.bin")
                    entry.size = kind["sample"]
                    tar.addfile(entry, io.BytesIO(random.Random(number).randbytes(kind["sample"])))
        run([options.launcher, "data", "index", tars])
    if not mds.exists():
        run([options.peers_python, PEERS / "mosaicml_loader.py", "--make", mds, "--from", tars])


def as_table(results):
    """Medians; in brackets the cheapest round, since a busy host makes some rounds dear (mosaicml's above all)."""
    of = medians(results)
    ours = of["slipway"]
    rows = []
    for name, numbers in of.items():
        least = min(run["whole_cpu_s_per_gb"] for run in results[name])
        rows.append([
            name,
            f"{numbers['samples_per_s']:,.0f}",
            f"{numbers['gb_per_s']:.2f}",
            f"{numbers['first_batch_ms']:.0f}",
            f"{numbers['trainer_cpu_s_per_gb']:.3f}",
            f"{numbers['whole_cpu_s_per_gb']:.2f} ({least:.2f})",
            f"{ours['samples_per_s'] / numbers['samples_per_s']:.1f}",
            f"{ours['trainer_cpu_s_per_gb'] / numbers['trainer_cpu_s_per_gb']:.3f}",
            f"{ours['whole_cpu_s_per_gb'] / numbers['whole_cpu_s_per_gb']:.2f}",
        ])
    return table(
        ["loader", "samples/s", "GB/s", "first batch ms", "trainer CPU-s/GB", "all CPU-s/GB", "ours ÷ its samples/s",
         "ours ÷ its trainer CPU", "ours ÷ its whole CPU"],
        rows,
    )


def arguments():
    options = parser(__doc__)
    options.add_argument("--launcher", required=True, type=pathlib.Path)
    options.add_argument("--peers-python", required=True, type=pathlib.Path)
    options.add_argument("--folder", help="keep the data sets here and use them again")
    options.add_argument("--cluster", type=pathlib.Path, help="a Ceph to read from, too")
    options.add_argument("--quick", action="store_true", help="a sixteenth of the samples: to see whether it works")
    return options.parse_args()


if __name__ == "__main__":
    main()
