"""The loader: one batch per step, in the job's order, from wherever the job last committed.

The position is one number, the step. Asking for the next batch acknowledges the one before it; ``commit`` says that a
checkpoint covers every step so far. A job that is restarted resumes at its last committed step, at any number of workers.
"""

from __future__ import annotations

import atexit
import os
import typing

from . import handoff
from .batch import Batch, Layout
from .environment import DATA_SOCKET
from .errors import NotUnderSlipway, ProtocolError, StateMismatch
from .handoff import Connection, whole_number

STATE_VERSION = 1
_IDENTITY = ("dataset", "seed", "global_batch")
"""What fixes the order of the samples: a position means the same only where all of these are equal."""

_open: typing.Optional[Connection] = None


class Loader:
    """An iterator over the remaining steps of the job. One per process; not shared between threads or with children."""

    def __init__(self, connection: Connection) -> None:
        """Takes the connection over, also when it fails."""
        global _open
        welcome = connection.welcome
        self._connection = connection
        self._batch: typing.Optional[Batch] = None
        self._ended = False
        try:
            self.steps_per_epoch = whole_number(welcome, "steps_per_epoch")
            self.start_step = whole_number(welcome, "start_step")
            self.end_step = whole_number(welcome, "end_step")
            self.epochs = whole_number(welcome, "epochs")
            self.global_batch = whole_number(welcome, "global_batch")
            self.consumer = whole_number(welcome, "consumer")
            self.consumers = whole_number(welcome, "consumers")
            self.sample_count = whole_number(welcome, "samples")
            if self.steps_per_epoch == 0:
                raise ProtocolError("the sidecar sent a feed without steps")
            self._layout = Layout(
                tuple(str(name) for name in welcome.get("fields", ())),
                welcome.get("dtype"),
                None if welcome.get("items") is None else whole_number(welcome, "items"),
            )
        except BaseException:
            connection.close()
            raise
        self.welcome = welcome
        self.dataset = str(welcome.get("dataset", ""))
        self.format = str(welcome.get("format", ""))
        self.fields = self._layout.fields
        self._next = self.start_step
        _open = connection

    @classmethod
    def open(cls, socket_name: typing.Optional[str] = None) -> Loader:
        """Connects to the sidecar at ``socket_name``, by default the one that the environment names."""
        name = socket_name or os.environ.get(DATA_SOCKET)
        if not name:
            raise NotUnderSlipway(
                f"{DATA_SOCKET} is not set: this process is not a rank of a Slipway job that has data",
                "run it as `launcher job submit --workers 1 --data SOURCE -- python3 train.py`, or name the data under "
                "spec.data of the job file",
            )
        # The sidecar serves one trainer at a time: a loader that was forgotten must not keep this one waiting.
        close_open_connection()
        return cls(Connection.open(name))

    def __iter__(self) -> Loader:
        """Itself: a loop that was left goes on where it stopped."""
        return self

    def __next__(self) -> Batch:
        connection = self._connection
        if os.getpid() != connection.pid:
            connection.check_process()
        batch = self._batch
        if batch is not None:
            self._batch = None
            batch.give_back(connection, handoff.ACKNOWLEDGE)
        if self._ended:
            raise StopIteration
        kind, slot, generation, step, _ = connection.receive_fields()
        if kind != handoff.READY:
            if kind != handoff.END:
                raise ProtocolError(f"the sidecar sent a descriptor of kind {kind} where a batch was due")
            self._ended = True
            raise StopIteration
        if step != self._next:
            raise ProtocolError(f"the sidecar sent step {step} where step {self._next} was due")
        self._batch = batch = Batch(connection, self._layout, slot, generation, step)
        self._next = step + 1
        return batch

    def __len__(self) -> int:
        """Steps that are left."""
        return max(self.end_step - self._next, 0)

    @property
    def step(self) -> int:
        """Steps that were handed out: the number of the next one."""
        return self._next

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 0."""
        return self._next // self.steps_per_epoch

    def epochs_left(self) -> typing.Iterator[typing.Tuple[int, typing.Iterator[Batch]]]:
        """The rest of the job epoch by epoch: ``for epoch, batches in loader.epochs_left(): …``"""
        while self._next < self.end_step and not self._ended:
            epoch = self.epoch
            yield epoch, self._until((epoch + 1) * self.steps_per_epoch)
            if self.epoch == epoch and not self._ended:
                return  # The caller broke out of the epoch.

    def acknowledge(self) -> None:
        """Gives the current batch back now rather than with the next one: its views end, its slot is filled again."""
        self._connection.check_process()
        if self._batch is not None:
            batch, self._batch = self._batch, None
            batch.give_back(self._connection, handoff.ACKNOWLEDGE)

    def commit(self, step: typing.Optional[int] = None) -> None:
        """A checkpoint that covers the first ``step`` steps is safely stored: a restart resumes after them.

        By default that is every step handed out so far, and the current batch is acknowledged first. Call it on every
        rank, after the checkpoint cannot be lost any more; the job resumes at the smallest step of its ranks.
        """
        self._connection.check_process()
        steps_done = self._next if step is None else step
        if not self.start_step <= steps_done <= self._next:
            raise ValueError(f"cannot commit {steps_done} steps: this loader handed out {self.start_step} to {self._next}")
        if steps_done == self._next:
            self.acknowledge()
        self._connection.send(handoff.COMMIT, 0, 0, steps_done)

    def seek(self, step: int) -> None:
        """Goes on with ``step``; the current batch is dropped without being acknowledged."""
        self._connection.check_process()
        if not 0 <= step <= self.end_step:
            raise ValueError(f"cannot seek to step {step}: the job has steps 0 to {self.end_step}")
        connection = self._connection
        if self._batch is not None:
            batch, self._batch = self._batch, None
            batch.give_back(connection, handoff.DROP)
        connection.send(handoff.SEEK, 0, 0, step)
        while True:
            # What was under way before the sidecar saw the request still arrives, and goes back.
            descriptor = connection.receive()
            if descriptor.kind == handoff.READY:
                connection.send(handoff.DROP, descriptor.slot, descriptor.generation, descriptor.step)
            elif descriptor.kind == handoff.SOUGHT:
                break
            elif descriptor.kind != handoff.END:
                raise ProtocolError(f"the sidecar answered a seek by a descriptor of kind {descriptor.kind}")
        if descriptor.step != step:
            raise ProtocolError(f"the sidecar went to step {descriptor.step}, not to {step}")
        self._next = step
        self.start_step = min(self.start_step, step)
        self._ended = False

    def state_dict(self) -> typing.Dict[str, typing.Any]:
        """The position as plain values, for a checkpoint: everything handed out so far counts as done."""
        state: typing.Dict[str, typing.Any] = {"version": STATE_VERSION, "step": self._next}
        state.update((key, self.welcome.get(key)) for key in _IDENTITY)
        return state

    def load_state_dict(self, state: typing.Mapping[str, typing.Any]) -> None:
        """Goes to a saved position. Raises ``StateMismatch`` if it was saved under another order of the samples."""
        if state.get("version") != STATE_VERSION:
            raise StateMismatch(f"the state has version {state.get('version')!r}, this package writes {STATE_VERSION}")
        for key in _IDENTITY:
            if state.get(key) != self.welcome.get(key):
                raise StateMismatch(
                    f"the state was saved with {key} {state.get(key)!r}, this job has {self.welcome.get(key)!r}",
                    "a position means the same only with the same data set, seed and global batch",
                )
        step = whole_number(state, "step")
        if step != self._next:
            self.seek(step)

    def report(self, values: typing.Mapping[str, float]) -> None:
        """Sends metrics to the launcher."""
        self._connection.check_process()
        self._connection.send_object({"report": dict(values)})

    def close(self) -> None:
        """Ends the feed. A batch that was not acknowledged stays so."""
        global _open
        if self._batch is not None:
            self._batch = None
        self._ended = True
        if _open is self._connection:
            _open = None
        self._connection.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        # A body that ran through has used its last batch; one that raised has not.
        if exception[0] is None and not self._connection.closed and os.getpid() == self._connection.pid:
            self.acknowledge()
        self.close()

    def __repr__(self) -> str:
        return f"<Loader of {self.dataset[:12]}: step {self._next} of {self.end_step}, rank {self.consumer} of {self.consumers}>"

    def _until(self, step: int) -> typing.Iterator[Batch]:
        while self._next < step:
            try:
                batch = next(self)
            except StopIteration:
                return
            yield batch


def open_connection() -> typing.Optional[Connection]:
    """The connection of this process's loader, if one is open."""
    return _open


def close_open_connection() -> None:
    """Closes it, so that the sidecar has the last acknowledgement also where nobody closed the loader."""
    global _open
    connection, _open = _open, None
    if connection is not None:
        connection.close()


atexit.register(close_open_connection)
