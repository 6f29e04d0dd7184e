"""A trainer that trains nothing: consumes its share, commits now and then, and writes down what it saw.

Environment: RECORD_FOLDER (one `rank-<r>.jsonl` per rank: {"generation", "step", "ids"}), COMMIT_EVERY (steps),
STEP_MS (time of a step), FAIL_AT_STEP (rank 0 raises there, once per job),
LOCKSTEP (ranks wait for each other in every step, as training does).
"""

import json
import os
import time

import slipway

COMMIT_EVERY = int(os.environ.get("COMMIT_EVERY", "0"))
STEP_MS = float(os.environ.get("STEP_MS", "0"))
FAIL_AT_STEP = int(os.environ.get("FAIL_AT_STEP", "-1"))


def main():
    record = None
    if "RECORD_FOLDER" in os.environ:
        record = open(os.path.join(os.environ["RECORD_FOLDER"], f"rank-{slipway.job.rank}.jsonl"), "a")
    loader = slipway.loader()
    for batch in loader:
        if batch.step == FAIL_AT_STEP and slipway.job.rank == 0 and slipway.job.restarts == 0:
            raise RuntimeError(f"planted failure at step {batch.step}")
        if record is not None:
            ids = [int(sample) for sample in batch.sample_ids[: batch.real]]
            record.write(json.dumps({"generation": slipway.job.generation, "step": batch.step, "ids": ids}) + "\n")
            record.flush()
        if "LOCKSTEP" in os.environ:
            slipway.average("step", [1.0])
        if STEP_MS:
            time.sleep(STEP_MS / 1000)
        done = batch.step + 1
        if COMMIT_EVERY and done % COMMIT_EVERY == 0:
            loader.commit(done)
    slipway.report(rank_count=slipway.job.world_size)


main()
