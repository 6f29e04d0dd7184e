"""Ours, as the command of a job with one worker: `slipway_loader.py --result FILE [--views yes|no]`.

With `--views yes` (the default) every sample's fields are looked at as views, as the peers hand out every sample's
bytes; with `no` only the batch as a whole. The sidecar is this process's parent and the launcher its grandparent: their
CPU time counts since their start, so what was read ahead is not missed.
"""

import os

from measure import Pass, arguments, cpu_seconds, parent

import slipway


def main():
    options = arguments(__doc__)
    views = options.get("views", "yes") == "yes"
    # Resolves what is imported late before the clock starts, as the peers' imports are not counted either.
    slipway.Loader
    measured = Pass()
    measured.begin()
    with slipway.loader() as loader:
        for batch in loader:
            if views:
                measured.batch([len(sample["bin"]) for sample in batch.samples])
            else:
                measured.batch([batch.nbytes])
                measured.samples += len(batch) - 1
    sidecar, launcher = os.getppid(), parent(os.getppid())
    sidecar_cpu, launcher_cpu = cpu_seconds(sidecar), cpu_seconds(launcher)
    measured.end(
        options["result"],
        other_cpu_s=sidecar_cpu + launcher_cpu,
        sidecar_cpu_s=sidecar_cpu,
        launcher_cpu_s=launcher_cpu,
    )


if __name__ == "__main__":
    main()
