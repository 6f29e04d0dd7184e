"""How long until eight workers run their program: `torchrun --standalone` beside `launcher job submit`.

    startup.py --launcher BINARY --torchrun BINARY [--workers 8] [--rounds 5] [--json FILE]

The program is the same for both: a shell that writes the time into a file of its rank. Counted from the start of the
command to the first and to the last of these times, and to the command's end.
"""

import os
import pathlib
import tempfile
import time

from common import host, interleave, medians, parser, run, table, write_json

PROGRAM = ["sh", "-c", 'date +%s%N >"$STAMPS/$RANK"']


def main():
    options = arguments()
    workers = str(options.workers)
    sides = {
        "slipway": lambda: measure(
            options, [options.launcher, "job", "submit", "--workers", workers, "--name", "bench", "--", *PROGRAM]),
        "torchrun": lambda: measure(
            options, [options.torchrun, "--standalone", "--nproc-per-node", workers, "--no-python", *PROGRAM]),
    }
    results = interleave(options.rounds, sides)
    of = medians(results)
    ours = of["slipway"]
    print(f"\n{workers} workers, medians of {options.rounds} rounds:\n")
    print(table(
        ["launcher", "first runs after ms", "last runs after ms", "command ends after ms", "ours ÷ its (last)"],
        [[name, f"{n['first_ms']:.0f}", f"{n['last_ms']:.0f}", f"{n['end_ms']:.0f}", f"{ours['last_ms'] / n['last_ms']:.3f}"]
         for name, n in of.items()],
    ))
    print("\nGoal: at most 1/20 (0.05) of torchrun.")
    write_json(options.json, {"host": host(), "workers": options.workers, "runs": results, "medians": of})


def measure(options, command):
    with tempfile.TemporaryDirectory() as folder:
        stamps, home = pathlib.Path(folder) / "stamps", pathlib.Path(folder) / "home"
        stamps.mkdir()
        home.mkdir()
        environ = {**os.environ, "STAMPS": str(stamps), "SLIPWAY_HOME": str(home)}
        started = time.time_ns()
        run(command, env=environ)
        ended = time.time_ns()
        times = [int(path.read_text()) for path in stamps.iterdir()]
    if len(times) != options.workers:
        raise SystemExit(f"{len(times)} of {options.workers} ranks ran: {command}")
    return {
        "first_ms": (min(times) - started) / 1e6,
        "last_ms": (max(times) - started) / 1e6,
        "end_ms": (ended - started) / 1e6,
    }


def arguments():
    options = parser(__doc__)
    options.add_argument("--launcher", required=True, type=pathlib.Path)
    options.add_argument("--torchrun", required=True, type=pathlib.Path)
    options.add_argument("--workers", type=int, default=8)
    return options.parse_args()


if __name__ == "__main__":
    main()
