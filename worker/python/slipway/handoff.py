"""The connection to the sidecar: a SOCK_SEQPACKET unix socket for small messages, and the ring of batches, a memfd that
comes with the first answer and is mapped read-only.

Integers are little-endian; descriptors in both directions are 32 bytes: ``u32 kind, u32 slot, u64 slot_generation,
u64 step, u64 bytes``; anything else is one JSON object per packet. When either side dies, the socket and the ring die
with it and nothing is left behind.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import struct
import time
import typing
import weakref

from .errors import DataFault, ForkedProcess, ProtocolError, SidecarGone, SlipwayError

VERSION = 1
PACKET_BYTES_MAX = 64 << 10
"""Bytes of one packet at the most, in both directions."""
RING_BYTES_MAX = 1 << 40
"""Bytes of a ring at the most: a bound on what a broken sidecar can make us map."""
CLOSE_TIMEOUT_S = 2.0
"""Seconds for the sidecar to take what was sent before the close; it reads at once unless the host is overwhelmed."""

DESCRIPTOR = struct.Struct("<IIQQQ")
# From the sidecar.
READY, END, FAULT, SOUGHT = 1, 2, 3, 4
# To the sidecar.
ACKNOWLEDGE, COMMIT, SEEK, DROP = 1, 2, 3, 5

_LAST_PACKETS_MAX = 4096
"""Packets to look through for a last word: more than any ring has slots."""
_CREDENTIALS = struct.Struct("3i")
_ROOT = 0


class Descriptor(typing.NamedTuple):
    """What the sidecar says about one slot (or, for other kinds than ``READY``, only ``kind`` and ``step``)."""

    kind: int
    slot: int
    generation: int
    step: int
    bytes: int


class Connection:
    """One trainer's connection. Not for use by several threads, nor by a forked child."""

    def __init__(self, endpoint: socket.socket) -> None:
        """Says hello over ``endpoint`` and maps the ring; takes the socket over, also when it fails."""
        self.pid = os.getpid()
        self._socket = endpoint
        # One byte more than is allowed: a longer packet, which the kernel cuts, is seen by its length.
        self._packet = bytearray(PACKET_BYTES_MAX + 1)
        try:
            self.welcome, ring = self._greet()
            try:
                self.slots, self.slot_bytes, self.ring = _map(self.welcome, ring)
            finally:
                os.close(ring)
        except BaseException:
            endpoint.close()
            raise
        _open.add(self)

    @classmethod
    def open(cls, name: str) -> Connection:
        """Connects to the abstract unix socket ``name`` (without the leading NUL)."""
        endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            endpoint.connect("\0" + name)
            _check_owner(endpoint)
        except OSError as error:
            endpoint.close()
            raise SidecarGone(
                f"cannot reach the sidecar at the abstract socket {name!r}: {error.strerror or error}",
                "it ended, or another process of this rank holds the feed; see `launcher job logs`",
            ) from error
        except BaseException:
            endpoint.close()
            raise
        return cls(endpoint)

    def receive(self) -> Descriptor:
        """Waits for the next descriptor. Raises ``DataFault`` when the sidecar reports one."""
        return Descriptor._make(self.receive_fields())

    def receive_fields(self) -> typing.Tuple[int, int, int, int, int]:
        """As ``receive``, without the cost of naming the fields: this runs once per batch."""
        length = self._read()
        if length != DESCRIPTOR.size:
            if length == 0:
                raise self._gone(None)
            raise ProtocolError(
                f"the sidecar sent a packet of {length} bytes where a descriptor has {DESCRIPTOR.size}", _VERSION_HINT
            )
        fields = DESCRIPTOR.unpack_from(self._packet)
        if fields[0] == FAULT:
            raise self._read_fault()
        return fields

    def send(self, kind: int, slot: int, generation: int, step: int) -> None:
        """Sends one descriptor: a release, an acknowledgement, a commit or a seek."""
        try:
            self._socket.send(DESCRIPTOR.pack(kind, slot, generation, step, 0))
        except OSError as error:
            raise self._gone(error) from error

    def send_object(self, value: typing.Mapping[str, object]) -> None:
        """Sends one JSON object."""
        packet = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        if len(packet) > PACKET_BYTES_MAX:
            raise ProtocolError(
                f"a message of {len(packet)} bytes is longer than the {PACKET_BYTES_MAX} that a packet may have",
                "report fewer values at once",
            )
        try:
            self._socket.send(packet)
        except OSError as error:
            raise self._gone(error) from error

    def check_process(self) -> None:
        """Refuses a forked child: two processes that read one feed would each get a part of it."""
        if os.getpid() != self.pid:
            raise ForkedProcess(
                f"the loader was opened by process {self.pid} and is used by its child {os.getpid()}",
                "batches arrive ready-made, so worker processes only cost time: use DataLoader(…, num_workers=0, "
                "batch_size=None), or open the loader after the fork",
            )

    def close(self) -> None:
        """Ends the connection once the sidecar has read everything; views that are still held keep the ring mapped."""
        if not self.closed and os.getpid() == self.pid:
            self._drain()
        self._socket.close()
        try:
            self.ring.close()
        except BufferError:
            # Somebody still has a view: the mapping goes with the last one.
            pass

    def forget_socket(self) -> None:
        """Closes this process's descriptor of the socket and leaves the ring mapped."""
        self._socket.close()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._socket.fileno() < 0

    def _drain(self) -> None:
        # Closing over unread packets would reset the connection, and the sidecar might miss the last acknowledgement
        # or commit; so we say that no more comes, and read until the sidecar has closed its end.
        give_up = time.monotonic() + CLOSE_TIMEOUT_S
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while True:
                self._socket.settimeout(max(give_up - time.monotonic(), 0.001))
                if self._socket.recv_into(self._packet) == 0:
                    return
        except OSError:
            return

    def _greet(self) -> typing.Tuple[typing.Dict[str, typing.Any], int]:
        self.send_object({"version": VERSION, "pid": self.pid})
        # Room for several, so that a sidecar that sends more than one is seen and leaks nothing.
        room = socket.CMSG_SPACE(4 * array.array("i").itemsize)
        try:
            packet, ancillary, flags, _ = self._socket.recvmsg(PACKET_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise self._gone(error) from error
        descriptors = _received_descriptors(ancillary)
        try:
            if not packet:
                raise self._gone(None)
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ProtocolError("the sidecar's first packet was cut short", _VERSION_HINT)
            welcome = _decode(packet)
            if "error" in welcome:
                raise _as_fault(welcome)
            if welcome.get("version") != VERSION:
                raise ProtocolError(
                    f"the sidecar speaks version {welcome.get('version')!r} of the handoff, this package {VERSION}",
                    "use the package that the launcher puts on PYTHONPATH, or install the one of the same release",
                )
            if len(descriptors) != 1:
                raise ProtocolError(f"the sidecar passed {len(descriptors)} file descriptors, not one", _VERSION_HINT)
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return welcome, descriptors[0]

    def _read_fault(self) -> SlipwayError:
        """The fault whose descriptor has just been read."""
        try:
            length = self._read()
            return _as_fault(_decode(bytes(self._packet[:length]))) if length else self._gone(None)
        except SlipwayError as error:
            return error

    def _read(self) -> int:
        """Reads one packet and returns its bytes; 0 at the end of the connection."""
        try:
            return self._receive_packet()
        except OSError as error:
            raise self._gone(error) from error

    def _receive_packet(self) -> int:
        try:
            return self._socket.recv_into(self._packet)
        except ConnectionResetError:
            # A peer that closes over unread packets resets the connection; the error comes once, before what it sent.
            return self._socket.recv_into(self._packet)

    def _gone(self, cause: typing.Optional[OSError]) -> SlipwayError:
        """Why the connection ended: the sidecar's last word, if there is one among the packets that still wait."""
        if self.closed:
            return SidecarGone("the loader was closed", "a process has one loader at a time: opening another closes it")
        if cause is not None:
            try:
                self._socket.setblocking(False)
                for _ in range(_LAST_PACKETS_MAX):
                    length = self._receive_packet()
                    if length == 0:
                        break
                    if length == DESCRIPTOR.size and DESCRIPTOR.unpack_from(self._packet)[0] == FAULT:
                        return self._read_fault()
            except OSError:
                pass
        detail = f": {cause.strerror or cause}" if cause is not None else ""
        return SidecarGone(
            f"the sidecar closed the connection before the end of the data{detail}",
            "its log says why: `launcher job logs`; under a restart policy the job goes on in a new generation",
        )


_open: weakref.WeakSet[Connection] = weakref.WeakSet()


def _close_in_child() -> None:
    # A child that held the socket would hide its parent's death from the sidecar. The ring stays: reading is harmless.
    for connection in list(_open):
        connection.forget_socket()


os.register_at_fork(after_in_child=_close_in_child)

_VERSION_HINT = "the launcher and this package are of different releases: use the package that the launcher provides"


def _check_owner(endpoint: socket.socket) -> None:
    # Abstract names have no permissions: a stranger could have bound the name of a sidecar that died.
    raw = endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    owner = _CREDENTIALS.unpack(raw)[1]
    if owner not in (os.getuid(), _ROOT):
        raise ProtocolError(
            f"the sidecar's socket belongs to user {owner}, this process to {os.getuid()}",
            "run the trainer and the sidecar as the same user",
        )


def _received_descriptors(ancillary: typing.Iterable[typing.Tuple[int, int, bytes]]) -> typing.List[int]:
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return list(descriptors)


def _map(welcome: typing.Mapping[str, typing.Any], descriptor: int) -> typing.Tuple[int, int, mmap.mmap]:
    slots, slot_bytes = whole_number(welcome, "slots"), whole_number(welcome, "slot_bytes")
    size = os.fstat(descriptor).st_size
    if not 0 < slots * slot_bytes <= min(size, RING_BYTES_MAX):
        raise ProtocolError(
            f"the ring has {size} bytes, which do not fit {slots} slots of {slot_bytes} bytes", _VERSION_HINT
        )
    return slots, slot_bytes, mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)


def whole_number(source: typing.Mapping[str, typing.Any], key: str) -> int:
    """The number at ``key`` of a message; raises ``ProtocolError`` for anything but a whole number ≥ 0."""
    value = source.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ProtocolError(f"the sidecar sent {key} = {value!r}, not a whole number", _VERSION_HINT)
    return value


def _decode(packet: bytes) -> typing.Dict[str, typing.Any]:
    try:
        value = json.loads(packet)
    except ValueError as error:
        raise ProtocolError(f"the sidecar sent {len(packet)} bytes that are not JSON", _VERSION_HINT) from error
    if not isinstance(value, dict):
        raise ProtocolError("the sidecar sent JSON that is not an object", _VERSION_HINT)
    return value


def _as_fault(message: typing.Mapping[str, typing.Any]) -> DataFault:
    return DataFault(str(message.get("error", "the sidecar reports a fault")), str(message.get("hint", "")))
