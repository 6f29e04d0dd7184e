"""How every loader is measured: one pass over the data, each sample's bytes looked at, CPU and wall time from before the
loader is made (imports are over) until the last sample. Prints one JSON object.
"""

import json
import os
import sys
import time

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Pass:
    """One pass. `begin` → `first` at the first batch → `end`."""

    def begin(self):
        self.cpu = time.process_time()
        self.wall = time.monotonic()
        self.first_batch = None
        self.samples = self.bytes = 0

    def batch(self, lengths):
        """Counts a batch by the lengths of its samples."""
        if self.first_batch is None:
            self.first_batch = time.monotonic() - self.wall
        for length in lengths:
            self.samples += 1
            self.bytes += length

    def end(self, result=None, **more):
        """Writes the result to the file `result`, or to standard output; `more` is added."""
        wall, cpu = time.monotonic() - self.wall, time.process_time() - self.cpu
        gigabytes = self.bytes / 1e9
        text = json.dumps({
            "samples": self.samples,
            "bytes": self.bytes,
            "wall_s": wall,
            "first_batch_ms": self.first_batch * 1e3,
            "samples_per_s": self.samples / wall,
            "gb_per_s": gigabytes / wall,
            "trainer_cpu_s_per_gb": cpu / gigabytes,
            # Without helpers the trainer's process is the whole loader.
            "whole_cpu_s_per_gb": (cpu + more.pop("other_cpu_s", 0.0)) / gigabytes,
            **more,
        })
        if result is None:
            print(text)
        else:
            with open(result, "w") as file:
                file.write(text)


def cpu_seconds(pid):
    """CPU time of another process since its start, all of its threads; in steps of a clock tick (10 ms)."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def parent(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def arguments(usage):
    """`--name value` pairs as a dictionary."""
    values = sys.argv[1:]
    if len(values) % 2 or not all(name.startswith("--") for name in values[::2]):
        sys.exit(f"usage: {usage}")
    return {name[2:].replace("-", "_"): value for name, value in zip(values[::2], values[1::2])}
