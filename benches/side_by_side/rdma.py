"""perftest beside ours, between software devices of one emulated machine, interleaved rounds.

    rdma.py --verbs PROGRAM --feed PROGRAM --fabric SCRIPT [--only raw|feed|rails] [--rounds 5] [--json FILE]
                                                                                        in the guest of tests/rig/rdma

raw: reads and writes of 4 KiB, 64 KiB and 1 MiB, as many under way on both sides. feed: samples of those sizes from another plane's
cache into a trainer's slots, checked, beside reads of as many bytes; and the same over QUIC, on the same cable. rails: two cables
beside one. CPU is that of the whole guest, the kernel's work for the devices included: there is no hardware that would do it. So
nothing here says how fast RDMA is, only what our layers add to reads that bring the same bytes.
"""

import concurrent.futures
import json
import subprocess
import sys
import time

from common import host, interleave, medians, note, parser, table, write_json

# Bytes, how many, and how many under way.
SHAPES = [(4 << 10, 6000, 64), (64 << 10, 800, 16), (1 << 20, 64, 16)]
# The same for a feed: no more than a lane has under way itself, which is a mebibyte in reads of 256 KiB at the most, and 64 reads. Of
# reads of 1 MiB perftest has four of them under way, four times the bytes.
FEEDS = [(4 << 10, 12000, 64), (64 << 10, 1600, 16), (1 << 20, 96, 4)]
# What two rails are compared with, and by: a device at the near end, at the far end, and the far address.
RAILS = [("rxe_a", "rxe_b", "10.9.0.2"), ("rxe_c", "rxe_d", "10.9.1.2")]
# perftest's own port; each rail takes one.
PORT = 18515
# A guest without a clock's interrupts for a moment hangs on for minutes otherwise.
PATIENCE = 90
WARNING = """Devices made of software: they are slower than TCP over the same cable, so nothing follows for RDMA from QUIC's column, nor
for adapters from any other. What counts is our share of what perftest gets through the same devices in the same boot."""


def main():
    options = parser(__doc__)
    options.add_argument("--verbs", required=True)
    options.add_argument("--feed", required=True)
    options.add_argument("--fabric", required=True)
    options.add_argument("--only", choices=["raw", "feed", "rails"])
    options = options.parse_args()
    report = {"host": host(), "shapes": {}}
    for name, part in (("raw", raw), ("feed", feeds), ("rails", rails)):
        if options.only in (None, name):
            part(options, report["shapes"])
    print(WARNING)
    write_json(options.json, report)


def raw(options, shapes):
    """Reads and writes of one layer above verbs."""
    rows = []
    for verb in ("read", "write"):
        for size, count, depth in SHAPES:
            sides = {
                "perftest": lambda: perftest(verb, size, count, depth),
                "ours": lambda: ours(options.verbs, verb, size, count, depth),
            }
            results = interleave(options.rounds, sides)
            middle = medians(results)
            shapes[f"{verb} {size}"] = {"rounds": results, "medians": middle}
            peer, own = middle["perftest"], middle["ours"]
            rows.append(
                [
                    f"{verb}, {size >> 10} KiB, {depth} under way",
                    f"{own['mib_per_s']:.1f}",
                    f"{peer['mib_per_s']:.1f}",
                    f"{own['mib_per_s'] / peer['mib_per_s']:.2f}",
                    f"{own['cpu_s']:.2f}",
                    f"{peer['cpu_s']:.2f}",
                    each(results["ours"]),
                    each(results["perftest"]),
                ]
            )
    header = ["what", "ours, MiB/s", "perftest's", "ratio", "ours, CPU-s", "perftest's", "our rounds", "its rounds"]
    print(table(header, rows))
    print("Goals: at least 0.90 times perftest's MiB/s at 64 KiB and 1 MiB, 0.75 times at 4 KiB.\n")


def feeds(options, shapes):
    """From a cache into slots, beside reads of as many bytes."""
    rows = []
    for size, count, depth in FEEDS:
        sides = {
            "perftest": lambda: perftest("read", size, count, depth),
            "verbs": lambda: feed(options.feed, size, "require-rdma"),
            "quic": lambda: feed(options.feed, size, "quic"),
        }
        results = interleave(options.rounds, sides)
        middle = medians(results)
        shapes[f"feed {size}"] = {"rounds": results, "medians": middle}
        peer, own, quic = middle["perftest"], middle["verbs"], middle["quic"]
        rows.append(
            [
                f"{size >> 10} KiB; perftest has {depth} under way",
                f"{own['mib_per_s']:.1f}",
                f"{peer['mib_per_s']:.1f}",
                f"{own['mib_per_s'] / peer['mib_per_s']:.2f}",
                f"{own['samples_per_s']:.0f}",
                f"{peer['mib_per_s'] * (1 << 20) / size:.0f}",
                *(f"{side['cpu_s'] / side['mib'] * 100:.2f}" for side in (own, peer)),
                f"{own['asker_cpu_s'] / own['mib'] * 100:.2f}, {own['owner_cpu_s'] / own['mib'] * 100:.2f}",
                f"{quic['mib_per_s']:.1f}",
                f"{quic['cpu_s'] / quic['mib'] * 100:.2f}",
                each(results["verbs"]),
                each(results["perftest"]),
            ]
        )
    header = ["samples", "into slots, MiB/s", "perftest's reads", "ratio", "samples/s", "its messages/s"]
    header += ["CPU-s of 100 MiB", "perftest's", "our asker's, owner's", "over QUIC, MiB/s", "QUIC's CPU-s of 100 MiB"]
    print(table([*header, "our rounds", "its rounds"], rows))
    print("Goals: at least 0.75 times perftest's.\n")


def rails(options, shapes):
    """Two cables at once beside one."""
    size, count, depth = FEEDS[1]
    subprocess.run([options.fabric, str(len(RAILS))], check=True)
    near, far = ",".join(rail[0] for rail in RAILS), ",".join(rail[1] for rail in RAILS)
    sides = {
        "perftest, one": lambda: perftest("read", size, count, depth),
        "perftest, two": lambda: all_rails(lambda rail: perftest("read", size, count, depth, rail)),
        "ours, one": lambda: feed(options.feed, size, "require-rdma"),
        "ours, two": lambda: feed(options.feed, size, "require-rdma", "--devices", near, "--peers", far),
    }
    results = interleave(options.rounds, sides)
    middle = medians(results)
    shapes[f"rails {size}"] = {"rounds": results, "medians": middle}
    rows = []
    for who in ("ours", "perftest"):
        one, two = middle[f"{who}, one"], middle[f"{who}, two"]
        rows.append(
            [
                f"{who}, {size >> 10} KiB",
                f"{two['mib_per_s']:.1f}",
                f"{one['mib_per_s']:.1f}",
                f"{two['mib_per_s'] / one['mib_per_s']:.2f}",
                f"{two['devices']:.0f}",
                each(results[f"{who}, two"]),
                each(results[f"{who}, one"]),
            ]
        )
    header = ["two cables beside one", "two, MiB/s", "one, MiB/s", "ratio", "devices used", "rounds of two", "rounds of one"]
    print(table(header, rows))
    print("Goal: at least 1.0 times one, on two processors that do the devices' work, too.\n")


def each(rounds):
    return " ".join(f"{one['mib_per_s']:.0f}" for one in rounds)


def all_rails(run):
    """What runs at once has done together; the slowest ends it."""
    before = busy()
    with concurrent.futures.ThreadPoolExecutor() as threads:
        done = list(threads.map(run, range(len(RAILS))))
    return {
        "mib_per_s": sum(one["mib_per_s"] for one in done),
        "mib": sum(one["mib"] for one in done),
        "cpu_s": busy() - before,
        "devices": len(done),
    }


def busy():
    """Seconds that all processors of the guest have worked."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _wait, irq, softirq = map(int, file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / 100


def perftest(verb, size, count, depth, rail=0):
    """Its average, and the CPU of all that it took, its start included."""
    before = busy()
    near, far, address = RAILS[rail]
    port = str(PORT + rail)
    program = [f"ib_{verb}_bw", "-F", "-x", "1", "-s", str(size), "-n", str(count), "-t", str(depth), "-p", port]
    server = subprocess.Popen([*program, "-d", far], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(50):
            # Until it listens: it says nothing of that before its buffers are through.
            if f":{port} " in subprocess.run(["ss", "-ltn"], capture_output=True, text=True, check=True).stdout:
                break
            time.sleep(0.1)
        done = subprocess.run(
            [*program, "-d", near, address], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        server.wait(PATIENCE)
    finally:
        server.kill()
        server.wait()
    for line in done.stdout.splitlines():
        words = line.split()
        # Bytes, iterations, peak, average, messages.
        if len(words) == 5 and words[0] == str(size):
            mib = size * count / (1 << 20)
            return {"mib_per_s": float(words[3]), "mib": mib, "cpu_s": busy() - before, "devices": 1}
    sys.exit(f"{' '.join(program)} measured nothing:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def ours(program, verb, size, count, depth):
    before = busy()
    speed = float(output([program, verb, str(size), str(count), str(depth)]))
    return {"mib_per_s": speed, "cpu_s": busy() - before}


def feed(program, size, policy, *options):
    """What the program says of all epochs but the first, with the CPU of that time."""
    told = json.loads(output([program, "/tmp/slipway-feed", str(size), policy, *options]))
    note(f"  {policy} {size >> 10} KiB: {told}")
    return {**told, "cpu_s": told["guest_cpu_s"]}


def output(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
