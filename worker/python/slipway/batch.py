"""One step's samples, as views into a slot of the ring: nothing is copied, and nothing is done per sample unless asked.

A slot begins with a header of 64 bytes, then ``u64 sample_id[n]``, then the table ``(u64 offset, u64 length)[n × fields]``
(offsets from the slot's start; length 2⁶⁴−1: the sample lacks the field), then the payload.

The views are valid until the step is acknowledged, which asking for the next batch does. Views that this class gave out
raise ``ValueError`` afterwards; an array or tensor made from one cannot be taken back and would show a later batch: copy
what must live longer (``array.copy()``, ``tensor.clone()``, ``bytes(view)``).
"""

from __future__ import annotations

import struct
import typing

from .errors import BatchReleased, ProtocolError, SlipwayError
from .handoff import Connection

if typing.TYPE_CHECKING:
    import numpy
    import torch

MAGIC = 0x53574C50
VERSION = 1
HEADER = struct.Struct("<IIQQQIIIIQQ")
FIELD_ABSENT = (1 << 64) - 1

Sample = typing.Dict[str, memoryview]
"""One sample: its fields by name, those that it has."""


class Batch:
    """The samples of one step that belong to this rank.

    ``step`` counts over all epochs, ``epoch`` from 0. ``real`` samples come first; the rest, up to ``len(batch)``, is
    padding that a job asked for by ``remainder: pad``. ``position`` is the place of the first sample in the global batch.
    """

    step: int
    epoch: int
    real: int
    position: int
    _count: int
    _columns: int
    _payload_offset: int
    _payload_bytes: int

    __slots__ = (
        "step", "epoch", "real", "position", "_count", "_columns", "_slot", "_generation", "_base",
        "_payload_offset", "_payload_bytes", "_connection", "_layout", "_views", "_samples", "_released",
    )

    def __init__(self, connection: Connection, layout: Layout, slot: int, generation: int, step: int) -> None:
        base = slot * connection.slot_bytes
        if slot >= connection.slots:
            raise ProtocolError(f"the sidecar named slot {slot} of a ring of {connection.slots}")
        (magic, version, written_generation, self.step, self.epoch, self._count, self.real, self._columns, self.position,
         self._payload_offset, self._payload_bytes) = HEADER.unpack_from(connection.ring, base)
        if magic != MAGIC or version != VERSION or written_generation != generation or self.step != step:
            raise ProtocolError(
                f"slot {slot} holds step {self.step} of generation {written_generation} (magic {magic:#x}, version "
                f"{version}) where step {step} of generation {generation} was announced"
            )
        if (
            self._payload_offset + self._payload_bytes > connection.slot_bytes
            or HEADER.size + self._count * (8 + 16 * self._columns) > self._payload_offset
            or self.real > self._count
        ):
            raise ProtocolError(f"slot {slot} claims more than its {connection.slot_bytes} bytes hold")
        self._slot = slot
        self._generation = generation
        self._base = base
        self._connection = connection
        self._layout = layout
        self._views: typing.Optional[typing.List[memoryview]] = None
        self._samples: typing.Optional[typing.List[Sample]] = None
        self._released = False

    def __len__(self) -> int:
        """Samples, padding included."""
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of payload."""
        return self._payload_bytes

    @property
    def mask(self) -> typing.List[bool]:
        """Per sample: true for a real one, false for padding."""
        return [True] * self.real + [False] * (self._count - self.real)

    @property
    def sample_ids(self) -> memoryview:
        """The samples' numbers in the data set, as a view of unsigned 64-bit integers."""
        return self._view(HEADER.size, 8 * self._count, "Q")

    @property
    def payload(self) -> memoryview:
        """The payload as bytes: for records, the records one after the other; for tars, the fields, each 8-byte aligned."""
        return self._view(self._payload_offset, self._payload_bytes)

    @property
    def samples(self) -> typing.List[Sample]:
        """Every sample as ``{field: view}``; a field that a sample lacks is left out."""
        if self._samples is None or self._released:
            names = self._layout.fields
            columns = [self._column(index) for index in range(self._columns)]
            self._samples = [
                {name: view for name, view in zip(names, row) if view is not None} for row in zip(*columns)
            ]
        return self._samples

    def field(self, name: str) -> typing.List[typing.Optional[memoryview]]:
        """One field of every sample, in order; ``None`` where a sample lacks it."""
        try:
            index = self._layout.fields.index(name)
        except ValueError:
            raise SlipwayError(
                f"the data set has no field {name!r}", f"its fields are {', '.join(self._layout.fields)}"
            ) from None
        return self._column(index)

    def numpy(self) -> numpy.ndarray[typing.Any, typing.Any]:
        """Records as a read-only array of shape (samples, items), without a copy. See the module for how long it lives."""
        import numpy

        dtype, items = self._record()
        return numpy.frombuffer(self.payload, dtype=dtype).reshape(self._count, items)

    def torch(self) -> torch.Tensor:
        """Records as a tensor of shape (samples, items), without a copy. Read it, do not write to it."""
        import torch

        dtype, items = self._record()
        kind = getattr(torch, dtype, None)
        if kind is None:
            raise SlipwayError(f"this torch has no type {dtype}", "use batch.numpy() and convert, or a newer torch")
        _hush_torch()
        return torch.frombuffer(self.payload, dtype=kind).view(self._count, items)

    def give_back(self, connection: Connection, kind: int) -> None:
        """For the loader: ends the views and gives the slot back."""
        self._released = True
        if self._views is not None:
            for view in self._views:
                try:
                    view.release()
                except BufferError:
                    # An array or a tensor was made from it, which cannot be taken back.
                    pass
            self._views = self._samples = None
        connection.send(kind, self._slot, self._generation, self.step)

    def _view(self, offset: int, length: int, code: typing.Literal["B", "Q"] = "B") -> memoryview:
        if self._released:
            raise BatchReleased(
                f"the batch of step {self.step} was acknowledged: its memory may hold another batch by now",
                "read or copy what you need before asking for the next batch",
            )
        start = self._base + offset
        with memoryview(self._connection.ring) as ring:
            view = ring[start : start + length]
        if code != "B":
            with view as raw:
                view = raw.cast(code)
        if self._views is None:
            self._views = []
        self._views.append(view)
        return view

    def _column(self, index: int) -> typing.List[typing.Optional[memoryview]]:
        if index >= self._columns:
            return [None] * self._count
        slot_bytes = self._connection.slot_bytes
        whole = self._view(0, slot_bytes)
        start = HEADER.size + 8 * self._count
        with whole[start : start + 16 * self._count * self._columns] as raw, raw.cast("Q") as table:
            offsets = table[2 * index :: 2 * self._columns].tolist()
            lengths = table[2 * index + 1 :: 2 * self._columns].tolist()
        views: typing.List[typing.Optional[memoryview]] = []
        for offset, length in zip(offsets, lengths):
            if length == FIELD_ABSENT:
                views.append(None)
            elif offset + length > slot_bytes:
                raise ProtocolError(f"a field of step {self.step} lies outside of its slot")
            else:
                views.append(whole[offset : offset + length])
        assert self._views is not None
        self._views.extend(view for view in views if view is not None)
        return views

    def _record(self) -> typing.Tuple[str, int]:
        dtype, items = self._layout.dtype, self._layout.items
        if dtype is None or items is None:
            raise SlipwayError(
                "the samples of this data set are files, not records of one size",
                f"read them with batch.samples or batch.field(…); fields: {', '.join(self._layout.fields)}",
            )
        return dtype, items

    def __repr__(self) -> str:
        state = ", released" if self._released else ""
        return f"<Batch step {self.step}, epoch {self.epoch}: {self._count} samples, {self._payload_bytes} bytes{state}>"


class Layout(typing.NamedTuple):
    """What all batches of a feed have in common."""

    fields: typing.Tuple[str, ...]
    dtype: typing.Optional[str]
    items: typing.Optional[int]


_torch_is_hushed = False


def _hush_torch() -> None:
    # torch warns once that the memory is read-only, which is what we want it to be.
    global _torch_is_hushed
    if not _torch_is_hushed:
        import warnings

        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        _torch_is_hushed = True
