"""The feed as a ``torch.utils.data.IterableDataset``, for programs that are built around a ``DataLoader``.

    data = slipway.IterableDataset(decode=lambda batch: batch.torch().long())
    for tensor in DataLoader(data, batch_size=None, num_workers=0): ...
"""

from __future__ import annotations

import typing

import torch.utils.data

from .batch import Batch
from .errors import ForkedProcess
from .feed import Loader

Decode = typing.Callable[[Batch], typing.Any]


class IterableDataset(torch.utils.data.IterableDataset):  # type: ignore[misc]
    """Batches of this rank, ready-made: use it with ``batch_size=None`` and ``num_workers=0``.

    ``decode`` turns a batch into what the training step wants; without it the ``Batch`` itself is yielded. Has the
    ``state_dict`` and ``load_state_dict`` that torchdata's ``StatefulDataLoader`` looks for.
    """

    def __init__(self, decode: typing.Optional[Decode] = None, loader: typing.Optional[Loader] = None) -> None:
        super().__init__()
        self.loader = loader if loader is not None else Loader.open()
        self._decode = decode

    def __iter__(self) -> typing.Iterator[typing.Any]:
        if torch.utils.data.get_worker_info() is not None:
            raise ForkedProcess(
                "the feed cannot be read by a DataLoader's worker processes",
                "batches arrive ready-made: use DataLoader(…, batch_size=None, num_workers=0)",
            )
        decode = self._decode
        if decode is None:
            yield from self.loader
        else:
            for batch in self.loader:
                yield decode(batch)

    def __len__(self) -> int:
        """Steps that are left."""
        return len(self.loader)

    def commit(self, step: typing.Optional[int] = None) -> None:
        """See ``Loader.commit``."""
        self.loader.commit(step)

    def state_dict(self) -> typing.Dict[str, typing.Any]:
        """See ``Loader.state_dict``."""
        return self.loader.state_dict()

    def load_state_dict(self, state: typing.Mapping[str, typing.Any]) -> None:
        """See ``Loader.load_state_dict``."""
        self.loader.load_state_dict(state)
