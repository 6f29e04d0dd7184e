"""Everything that this package raises, and the shape of a message: what failed, then a hint of what to do."""

from __future__ import annotations

import typing


class SlipwayError(Exception):
    """The base of all errors here. ``hint`` says what to do about it; it may be empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class NotUnderSlipway(SlipwayError):
    """Something was asked for that only a rank of a Slipway job has."""


class ForkedProcess(SlipwayError):
    """A loader was used in a child of the process that opened it."""


class ProtocolError(SlipwayError):
    """The other side broke the protocol: a wrong version, a packet cut short, a slot that contradicts its descriptor."""


class SidecarGone(SlipwayError):
    """The sidecar ended or closed the connection while batches were still due."""


class DataFault(SlipwayError):
    """The data path found a fault that it could not repair, a corrupt sample for example."""


class BatchReleased(SlipwayError):
    """A batch was read after its step had been acknowledged: its memory may hold another batch by now."""


class StateMismatch(SlipwayError):
    """A saved state belongs to another data set, seed or batch size: the order of its samples was another one."""


class StoreError(SlipwayError):
    """The job's key-value store cannot be reached, or closed the connection."""


class StoreTimeout(StoreError, TimeoutError):
    """Keys did not appear, or ranks did not arrive at a barrier, in time."""


class StoreProtocolError(StoreError):
    """The store answered something that the protocol does not have."""


Json = typing.Any
"""A decoded JSON value."""
