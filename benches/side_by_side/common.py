"""What the side-by-side benches share: interleaved rounds, medians, ratios, and what the host was like."""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time


def interleave(rounds, sides):
    """Runs `sides` (name → function that returns numbers by name) one after the other, `rounds` times.

    The order turns with each round, so that no side always runs first. Returns name → list of results.
    """
    names = list(sides)
    results = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.monotonic()
            results[name].append(sides[name]())
            note(f"round {number + 1} of {rounds}: {name} ({time.monotonic() - started:.1f} s)")
    return results


def medians(results):
    """name → the median of every number over the rounds."""
    return {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0] if is_number(runs[0][key])}
        for name, runs in results.items()
        if runs
    }


def host():
    """What the numbers depend on."""
    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def parser(description):
    """The options that every bench has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--json", type=pathlib.Path)
    return options


def table(header, rows):
    """A table for Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join("---" for _ in header) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def run(command, **options):
    """Runs a command that must succeed; returns its standard output, shows the rest when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False, **options)
    if done.returncode != 0:
        sys.exit(f"failed ({done.returncode}): {' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def write_json(path, value):
    if path:
        with open(path, "w") as file:
            json.dump(value, file, indent=1)
            file.write("\n")


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def note(message):
    """Progress, on standard error."""
    print(message, file=sys.stderr, flush=True)
