"""The trainer's side of Slipway.

    import slipway

    with slipway.loader() as loader:              # starts where the job last committed
        for batch in loader:                      # one batch per step, in shared memory
            for sample in batch.samples: ...      # or batch.numpy(), batch.torch(), batch.field("png")
            if batch.step % 100 == 99:
                save(slipway.job.checkpoint_dir)
                loader.commit()                   # a restart resumes after this step
    slipway.report(accuracy=0.95)

Standard library only; numpy and torch are used where they are asked for. Names are loaded at their first use, so the
import itself costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing

    from .batch import Batch as Batch
    from .dataset import IterableDataset as IterableDataset
    from .environment import Job
    from .errors import SlipwayError as SlipwayError
    from .feed import Loader as Loader
    from .tcp_store import Store as Store

    job: Job

__version__ = "0.1.0"
__all__ = [
    "Batch", "IterableDataset", "Loader", "SlipwayError", "Store",
    "average", "job", "loader", "report", "store",
]

_HOME = {
    "Batch": "batch",
    "IterableDataset": "dataset",
    "Loader": "feed",
    "SlipwayError": "errors",
    "Store": "tcp_store",
}


def loader(socket_name: str | None = None) -> Loader:
    """Opens this rank's feed of batches. One loader at a time, in the process that trains."""
    from .feed import Loader

    return Loader.open(socket_name)


def report(**values: float) -> None:
    """Tells the launcher about metrics, for its live view and the job's summary; the newest value of a name counts."""
    from .reporting import report

    report(values)


def store() -> Store:
    """The job's key-value store, connected at the first call and kept for the life of the process."""
    from .collective import default_store

    return default_store()


def average(name: str, vector: typing.Sequence[float], weight: float = 1.0) -> list[float]:
    """The mean over all ranks of ``vector``, each weighted by ``weight``: an all-reduce for small vectors of doubles."""
    from .collective import default_collective

    return default_collective().average(name, vector, weight)


def __getattr__(name: str) -> object:
    import importlib

    value: object
    if name == "job":
        value = importlib.import_module(".environment", __name__).Job()
    elif name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
