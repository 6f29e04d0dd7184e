"""perftest beside ours, from one software device to another in one emulated machine, interleaved rounds.

    rdma.py --verbs PROGRAM [--rounds 5] [--json FILE]     in the guest of tests/rig/rdma

Reads and writes of 4 KiB, 64 KiB and 1 MiB, as many under way on both sides. CPU is that of the whole guest, the kernel's work for
the devices included: there is no hardware that would do it. So nothing here says how fast RDMA is, only what this layer adds.
"""

import subprocess
import sys
import time

from common import host, interleave, medians, parser, table, write_json

# Bytes, how many, and how many under way.
SHAPES = [(4 << 10, 6000, 64), (64 << 10, 800, 16), (1 << 20, 64, 16)]
ADDRESS = "10.9.0.2"
# A guest without a clock's interrupts for a moment hangs on for minutes otherwise.
PATIENCE = 60
GOALS = "Goals: at least 0.90 times perftest's MiB/s at 64 KiB and 1 MiB, 0.75 times at 4 KiB."


def main():
    options = parser(__doc__)
    options.add_argument("--verbs", required=True)
    options = options.parse_args()
    report = {"host": host(), "shapes": {}}
    rows = []
    for verb in ("read", "write"):
        for size, count, depth in SHAPES:
            sides = {
                "perftest": lambda: measured(lambda: perftest(verb, size, count, depth)),
                "ours": lambda: measured(lambda: ours(options.verbs, verb, size, count, depth)),
            }
            results = interleave(options.rounds, sides)
            middle = medians(results)
            report["shapes"][f"{verb} {size}"] = {"rounds": results, "medians": middle}
            peer, own = middle["perftest"], middle["ours"]
            rows.append(
                [
                    f"{verb}, {size >> 10} KiB, {depth} under way",
                    f"{own['mib_per_s']:.1f}",
                    f"{peer['mib_per_s']:.1f}",
                    f"{own['mib_per_s'] / peer['mib_per_s']:.2f}",
                    f"{own['cpu_s']:.2f}",
                    f"{peer['cpu_s']:.2f}",
                    " ".join(f"{one['mib_per_s']:.0f}" for one in results["ours"]),
                    " ".join(f"{one['mib_per_s']:.0f}" for one in results["perftest"]),
                ]
            )
    header = ["what", "ours, MiB/s", "perftest's", "ratio", "ours, CPU-s", "perftest's", "our rounds", "its rounds"]
    print(table(header, rows))
    print(GOALS)
    write_json(options.json, report)


def measured(run):
    before = busy()
    speed = run()
    return {"mib_per_s": speed, "cpu_s": busy() - before}


def busy():
    """Seconds that all processors of the guest have worked."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _wait, irq, softirq = map(int, file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / 100


def perftest(verb, size, count, depth):
    program = [f"ib_{verb}_bw", "-F", "-x", "1", "-s", str(size), "-n", str(count), "-t", str(depth)]
    server = subprocess.Popen([*program, "-d", "rxe_b"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(50):
            # Until it listens: it says nothing of that before its buffers are through.
            if ":18515 " in subprocess.run(["ss", "-ltn"], capture_output=True, text=True, check=True).stdout:
                break
            time.sleep(0.1)
        done = subprocess.run(
            [*program, "-d", "rxe_a", ADDRESS], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        server.wait(PATIENCE)
    finally:
        server.kill()
        server.wait()
    for line in done.stdout.splitlines():
        words = line.split()
        # Bytes, iterations, peak, average, messages.
        if len(words) == 5 and words[0] == str(size):
            return float(words[3])
    sys.exit(f"{' '.join(program)} measured nothing:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def ours(program, verb, size, count, depth):
    command = [program, verb, str(size), str(count), str(depth)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return float(done.stdout)


if __name__ == "__main__":
    main()
