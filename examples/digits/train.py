"""Softmax regression on 8×8 images of handwritten digits, in plain Python on as many workers as the job has.

Each rank computes the gradient of its share of the global batch, the job's store averages, and every rank takes the
same step. A checkpoint after each epoch is committed; a restart, at any number of workers, goes on there.
"""

import json
import math
import os
import pathlib
import tarfile
from operator import mul

import slipway

PIXELS, DIGITS = 64, 10
LEARNING_RATE = 0.5
CHECKPOINTS_KEPT = 2  # The newest may not be committed yet when the job dies, so the one before it is still needed.
SCALED = [value / 16 for value in range(17)]
TEST = pathlib.Path(__file__).resolve().parent / "test" / "digits-test.tar"


def main():
    job = slipway.job
    test = read_test()[job.rank :: job.world_size]
    with slipway.loader() as loader:
        weights = load(loader.start_step)
        for batch in loader:
            samples = [(scale(sample["img"]), int(bytes(sample["cls"]))) for sample in batch.samples[: batch.real]]
            gradient, loss = gradient_of(weights, samples)
            *gradient, loss = slipway.average("gradient", [*gradient, loss], weight=len(samples))
            weights = [weight - LEARNING_RATE * slope for weight, slope in zip(weights, gradient)]
            if loader.step % loader.steps_per_epoch == 0:
                if job.rank == 0:
                    save(loader.step, weights)
                # Also tells the other ranks that the checkpoint is stored: only then may they commit.
                accuracy = accuracy_of(weights, test)
                loader.commit()
                if job.rank == 0:
                    slipway.report(loss=loss, accuracy=accuracy)
                    print(f"epoch {batch.epoch}: loss {loss:.4f}, test accuracy {accuracy:.4f}", flush=True)
        accuracy = accuracy_of(weights, test)
        if job.rank == 0:
            slipway.report(accuracy=accuracy)
            print(f"test accuracy {accuracy:.4f} after {loader.step} steps", flush=True)


def gradient_of(weights, samples):
    """The mean gradient over `samples` (bias last in each digit's row, rows one after the other), and the mean loss."""
    rows = split(weights)
    slopes = [[0.0] * (PIXELS + 1) for _ in rows]
    loss = 0.0
    for image, label in samples:
        chances = softmax(rows, image)
        loss -= math.log(max(chances[label], 1e-300))
        chances[label] -= 1.0
        slopes = [[s + c * x for s, x in zip(row, image)] for row, c in zip(slopes, chances)]
    count = max(len(samples), 1)
    return [slope / count for row in slopes for slope in row], loss / count


def accuracy_of(weights, test):
    """The share of the test images, over all ranks, that are recognised."""
    rows = split(weights)
    hits = 0
    for image, label in test:
        chances = softmax(rows, image)
        hits += chances.index(max(chances)) == label
    (accuracy,) = slipway.average("accuracy", [hits / max(len(test), 1)], weight=len(test))
    return accuracy


def softmax(rows, image):
    scores = [sum(map(mul, row, image)) for row in rows]
    highest = max(scores)
    powers = [math.exp(score - highest) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def split(weights):
    return [weights[start : start + PIXELS + 1] for start in range(0, len(weights), PIXELS + 1)]


def scale(pixels):
    """Pixels of 0…16 as numbers up to 1, and a 1 for the bias."""
    return [*map(SCALED.__getitem__, pixels), 1.0]


def read_test():
    fields = {"img": {}, "cls": {}}
    with tarfile.open(TEST) as tar:
        for entry in tar:
            key, field = entry.name.split(".")
            fields[field][key] = tar.extractfile(entry).read()
    return [(scale(image), int(fields["cls"][key])) for key, image in sorted(fields["img"].items())]


def checkpoint(step):
    return slipway.job.checkpoint_dir / f"step-{step:06}.json"


def load(step):
    if step == 0:
        return [0.0] * (DIGITS * (PIXELS + 1))
    return json.loads(checkpoint(step).read_text())["weights"]


def save(step, weights):
    """Writes beside and renames, so that a checkpoint is whole or not there."""
    path = checkpoint(step)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "w") as file:
        json.dump({"step": step, "weights": weights}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    for old in sorted(path.parent.glob("step-*.json"))[:-CHECKPOINTS_KEPT]:
        old.unlink()


if __name__ == "__main__":
    main()
