"""A trainer that trains nothing: compares every sample, byte by byte, with the file that it is from.

Environment: DATA_FOLDER (record files, numbered in the order of their names), RECORD_BYTES, COMPARED_FOLDER (one `rank-<r>` per
rank, with a line per step: how many samples were right), STEP_MS (time of a step).
"""

import os
import time

import slipway

RECORD_BYTES = int(os.environ["RECORD_BYTES"])
STEP_MS = float(os.environ.get("STEP_MS", "0"))


def main():
    folder = os.environ["DATA_FOLDER"]
    everything = b""
    for name in sorted(os.listdir(folder)):
        if name.endswith(".bin"):
            with open(os.path.join(folder, name), "rb") as file:
                everything += file.read()
    compared = 0
    with open(os.path.join(os.environ["COMPARED_FOLDER"], f"rank-{slipway.job.rank}"), "w") as record:
        for batch in slipway.loader():
            for place, sample in enumerate(batch.sample_ids[: batch.real]):
                got = batch.payload[place * RECORD_BYTES : (place + 1) * RECORD_BYTES]
                if got != everything[sample * RECORD_BYTES : (sample + 1) * RECORD_BYTES]:
                    raise RuntimeError(f"step {batch.step}: sample {sample} has other bytes than its file")
            compared += batch.real
            print(compared, file=record, flush=True)
            time.sleep(STEP_MS / 1000)
    if slipway.job.rank == 0:
        slipway.report(compared=compared)


main()
