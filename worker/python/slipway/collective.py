"""All-reduce for small vectors of doubles through the job's store: for programs that have no communication library.

Every rank sets its own vector, waits for everybody's, and sums in the order of the ranks, so that all ranks get the same
bits. Two round trips per call, N vectors received per rank: meant for gradients of kilobytes and for metrics.
"""

from __future__ import annotations

import array
import sys
import typing

from .environment import Job
from .errors import SlipwayError
from .tcp_store import VALUE_BYTES_MAX, Store

DOUBLES_MAX = VALUE_BYTES_MAX // 8 - 1
"""Doubles in a vector at the most: one value of the store, less the weight."""


class Collective:
    """The ranks of one generation, meeting under names. Every rank calls the same names in the same order."""

    def __init__(self, store: typing.Optional[Store], rank: int, world_size: int) -> None:
        """``store`` may be none when there is only one rank."""
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._rounds: typing.Dict[str, int] = {}

    def average(self, name: str, vector: typing.Sequence[float], weight: float = 1.0) -> typing.List[float]:
        """Σ weight·vector ÷ Σ weight over all ranks. Ranks without samples pass weight 0 and a vector of equal length."""
        totals = self.sum(name, [weight, *(value * weight for value in vector)])
        whole = totals[0]
        if whole == 0.0:
            raise SlipwayError(f"the weights of {name!r} add up to nothing")
        return [value / whole for value in totals[1:]]

    def sum(self, name: str, vector: typing.Sequence[float]) -> typing.List[float]:
        """Σ vector over all ranks."""
        if len(vector) > DOUBLES_MAX:
            raise ValueError(f"{len(vector)} doubles are more than the {DOUBLES_MAX} that one value of the store holds")
        if self._store is None:
            return list(vector)
        round_number = self._rounds[name] = self._rounds.get(name, 0) + 1
        keys = [f"slipway/sum/{name}/{round_number}/{rank}" for rank in range(self._world_size)]
        # Whoever has seen everybody's vector of a round knows that everybody is done with the round before it; so a
        # rank may remove its vector of round r−2 as it begins round r, and the store never holds more than three rounds.
        old = f"slipway/sum/{name}/{round_number - 2}/{self._rank}" if round_number > 2 else None
        self._store.replace_and_wait(old, keys[self._rank], _pack(vector), keys)
        vectors = [_unpack(raw, len(vector), name) for raw in self._store.multi_get_present(keys)]
        return [sum(column) for column in zip(*vectors)]

    def barrier(self, name: str) -> None:
        """Returns once every rank is here."""
        if self._store is not None:
            self._store.barrier(f"slipway/barrier/{name}", self._world_size)


def default_store() -> Store:
    """The process's connection to the job's store."""
    global _store
    if _store is None:
        _store = Store.of_job()
    return _store


def default_collective() -> Collective:
    """All ranks of the job; a program that runs alone needs no store."""
    global _collective
    if _collective is None:
        job = Job()
        _collective = Collective(default_store() if job.world_size > 1 else None, job.rank, job.world_size)
    return _collective


_store: typing.Optional[Store] = None
_collective: typing.Optional[Collective] = None


def _pack(vector: typing.Sequence[float]) -> bytes:
    doubles = array.array("d", vector)
    if sys.byteorder == "big":
        doubles.byteswap()
    return doubles.tobytes()


def _unpack(raw: bytes, length: int, name: str) -> typing.Sequence[float]:
    if len(raw) != 8 * length:
        raise SlipwayError(
            f"a rank brought {len(raw) // 8} doubles to {name!r}, this one {length}",
            "every rank calls the same reductions in the same order, with vectors of one length",
        )
    doubles = array.array("d")
    doubles.frombytes(raw)
    if sys.byteorder == "big":
        doubles.byteswap()
    return doubles
