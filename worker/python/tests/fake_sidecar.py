"""A double of the sidecar's end of the handoff, for tests of the protocol only: the real one is tested end to end.

It keeps the rules that a trainer relies on (a slot is refilled only after it came back, a seek is answered), records
what it was told, and misbehaves where a test asks for it.
"""

from __future__ import annotations

import array
import fcntl
import itertools
import json
import mmap
import os
import socket
import struct
import threading
import typing

from slipway import batch, handoff

_F_ADD_SEALS, _F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_FUTURE_WRITE = 1033, 2, 4, 16
_names = itertools.count()

Fields = typing.Sequence[typing.Optional[bytes]]


class FakeSidecar:
    """Serves one trainer after the other on ``name``."""

    def __init__(self, sample: typing.Optional[typing.Callable[[int], Fields]] = None, **welcome: object) -> None:
        self.name = f"slipway-test-{os.getpid()}-{next(_names)}"
        self.welcome: typing.Dict[str, typing.Any] = {
            "version": 1, "slots": 3, "slot_bytes": 4096, "fields": ["img", "cls"], "format": "tar", "dtype": None,
            "items": None, "samples": 40, "dataset": "ab" * 32, "steps_per_epoch": 10, "epochs": 2, "start_step": 0,
            "end_step": 20, "global_batch": 4, "consumer": 0, "consumers": 1, "generation": 1, "seed": 7,
        }
        self.welcome.update(welcome)
        self.sample = sample or (lambda number: [b"image %d" % number, b"%d" % (number % 10)])
        self.batch_size = 4
        self.real = 4
        self.received: typing.List[typing.Tuple[int, int, int]] = []
        """(kind, slot, step) of every descriptor from the trainer."""
        self.objects: typing.List[typing.Dict[str, typing.Any]] = []
        self.faults: typing.List[str] = []
        """What the trainer did that the protocol forbids."""
        self.hello: typing.Callable[[socket.socket, int], bool] = self._welcome
        """Answers the trainer's hello; false ends the connection."""
        self.before_batch: typing.Callable[[socket.socket, int], bool] = lambda endpoint, step: True
        """Runs before a batch is announced; false ends the connection."""
        self.corrupt: typing.Callable[[bytearray], None] = lambda slot: None
        """Changes a slot before it is written."""
        self.detached = threading.Semaphore(0)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind("\0" + self.name)
        self._listener.listen(4)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening and waits for the thread."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                endpoint, _ = self._listener.accept()
            except OSError:
                return
            try:
                with endpoint:
                    self._one(endpoint)
                    # Ends the connection also where a child that a test forked holds a copy of this end.
                    endpoint.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # The trainer is gone, which is its right.
            self.detached.release()

    def _one(self, endpoint: socket.socket) -> None:
        greeting = json.loads(endpoint.recv(handoff.PACKET_BYTES_MAX))
        assert greeting["version"] == 1 and greeting["pid"] > 0, greeting
        size = self.welcome["slots"] * self.welcome["slot_bytes"]
        ring = os.memfd_create("ring", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            os.ftruncate(ring, size)
            memory = mmap.mmap(ring, size)
            fcntl.fcntl(ring, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_FUTURE_WRITE)
            going_on = self.hello(endpoint, ring)
        finally:
            os.close(ring)
        if going_on:
            _Feed(self, endpoint, memory).run()

    def _welcome(self, endpoint: socket.socket, ring: int) -> bool:
        send_with_descriptors(endpoint, json.dumps(self.welcome).encode(), [ring])
        return True


class _Feed:
    """The batches of one connection."""

    def __init__(self, sidecar: FakeSidecar, endpoint: socket.socket, memory: mmap.mmap) -> None:
        self.sidecar = sidecar
        self.endpoint = endpoint
        self.memory = memory
        self.slot_bytes: int = sidecar.welcome["slot_bytes"]
        self.free: typing.List[int] = list(range(sidecar.welcome["slots"]))
        self.held: typing.Dict[int, typing.Tuple[int, int]] = {}
        self.generation = 0
        self.step: int = sidecar.welcome["start_step"]
        self.ended = False

    def run(self) -> None:
        while True:
            while self.free and self.step < self.sidecar.welcome["end_step"]:
                if not self._announce():
                    return
            if self.step >= self.sidecar.welcome["end_step"] and not self.ended:
                self.ended = True
                self.endpoint.send(handoff.DESCRIPTOR.pack(handoff.END, 0, 0, self.step, 0))
            try:
                packet = self.endpoint.recv(handoff.PACKET_BYTES_MAX)
            except ConnectionResetError:
                continue  # The trainer closed over unread packets; what it sent before is still to be read.
            if not packet:
                return
            self._handle(packet)

    def _announce(self) -> bool:
        if not self.sidecar.before_batch(self.endpoint, self.step):
            return False
        slot = self.free.pop(0)
        self.generation += 1
        self.held[slot] = (self.generation, self.step)
        raw = self._slot(self.step)
        self.sidecar.corrupt(raw)
        start = slot * self.slot_bytes
        self.memory[start : start + len(raw)] = bytes(raw)
        self.endpoint.send(handoff.DESCRIPTOR.pack(handoff.READY, slot, self.generation, self.step, len(raw)))
        self.step += 1
        return True

    def _slot(self, step: int) -> bytearray:
        count, columns = self.sidecar.batch_size, len(self.sidecar.welcome["fields"])
        records = self.sidecar.welcome["format"] == "records"
        payload_offset = -(-(64 + count * (8 + 16 * columns)) // 64) * 64
        ids, table, payload = bytearray(), bytearray(), bytearray()
        for number in range(step * count, (step + 1) * count):
            ids += struct.pack("<Q", number)
            for field in self.sidecar.sample(number):
                if field is None:
                    table += struct.pack("<QQ", 0, batch.FIELD_ABSENT)
                    continue
                if not records:
                    payload += bytes(-len(payload) % 8)
                table += struct.pack("<QQ", payload_offset + len(payload), len(field))
                payload += field
        header = batch.HEADER.pack(
            batch.MAGIC, 1, self.generation, step, step // self.sidecar.welcome["steps_per_epoch"], count,
            self.sidecar.real, columns, 0, payload_offset, len(payload),
        )
        raw = bytearray(header + ids + table)
        return raw + bytes(payload_offset - len(raw)) + payload

    def _handle(self, packet: bytes) -> None:
        if packet[:1] == b"{":
            self.sidecar.objects.append(json.loads(packet))
            return
        kind, slot, generation, step, _ = handoff.DESCRIPTOR.unpack(packet)
        self.sidecar.received.append((kind, slot, step))
        if kind in (handoff.ACKNOWLEDGE, handoff.DROP):
            if self.held.pop(slot, None) != (generation, step):
                self.sidecar.faults.append(f"slot {slot} of step {step} came back twice or changed")
            self.free.append(slot)
        elif kind == handoff.SEEK:
            self.step = step
            self.ended = False
            self.endpoint.send(handoff.DESCRIPTOR.pack(handoff.SOUGHT, 0, 0, step, 0))
        elif kind != handoff.COMMIT:
            self.sidecar.faults.append(f"kind {kind}")


def send_with_descriptors(endpoint: socket.socket, packet: bytes, descriptors: typing.Sequence[int]) -> None:
    """One packet with file descriptors."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())] if descriptors else []
    endpoint.sendmsg([packet], rights)
