"""An ordinary DistributedDataParallel script: it knows torchrun's environment and nothing of Slipway.

Rank 0 prints one JSON line per step ({"step": 12, "loss": 0.5}) and a last one with the test accuracy, so that two runs
can be compared line by line.
"""

import gc
import json
import pathlib
import tarfile

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

SEED = 7
EPOCHS = 5
GLOBAL_BATCH = 64
LEARNING_RATE = 0.1
DATA = pathlib.Path(__file__).resolve().parent.parent / "digits"


def main():
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    # One thread and one seed: the same numbers on every run, whoever started it.
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)

    train = read("shards")
    sampler = DistributedSampler(train, seed=SEED, drop_last=True)
    loader = DataLoader(train, batch_size=GLOBAL_BATCH // world_size, sampler=sampler, drop_last=True)
    model = DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)

    step = 0
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            say(rank, step=step, loss=mean(loss.detach(), world_size))
            step += 1

    images, labels = read("test")[rank::world_size]
    with torch.no_grad():
        hits = (model.module(images).argmax(1) == labels).sum().double()
    counts = torch.stack([hits, torch.tensor(float(len(labels)), dtype=torch.double)])
    dist.all_reduce(counts)
    say(rank, steps=step, accuracy=(counts[0] / counts[1]).item())
    # DDP keeps the process group, and with it gloo's threads: one that still holds a tensor when Python ends aborts the
    # process ("terminate called without an active exception", pytorch/pytorch#190489).
    del loss, model, optimizer
    gc.collect()
    dist.destroy_process_group()


def mean(value, world_size):
    """The mean of a scalar over all ranks."""
    total = value.clone()
    dist.all_reduce(total)
    return (total / world_size).item()


def say(rank, **values):
    if rank == 0:
        print(json.dumps(values), flush=True)


def read(folder):
    """All images (n, 64) and digits (n) of the tars in a folder, in the order of their names."""
    images, labels = {}, {}
    for path in sorted((DATA / folder).glob("*.tar")):
        with tarfile.open(path) as tar:
            for entry in tar:
                key, field = entry.name.split(".")
                payload = tar.extractfile(entry).read()
                if field == "img":
                    images[key] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
                else:
                    labels[key] = int(payload)
    keys = sorted(images)
    return TensorDataset(torch.stack([images[key] for key in keys]).float() / 16, torch.tensor([labels[key] for key in keys]))


if __name__ == "__main__":
    main()
