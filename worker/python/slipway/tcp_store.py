"""A client of the job's key-value store: the wire protocol of PyTorch's TCPStore, without PyTorch.

Framing: the client sends ``u8 kind`` and arguments, the server answers without a header, in order; integers are
little-endian; strings and values are ``u64 length`` and the bytes. Every key gets a ``/`` in front on the wire, as
PyTorch's own clients do, so both see the same keys.

A store lives as long as one generation of the job: a restart begins with an empty one.
"""

from __future__ import annotations

import os
import socket
import struct
import time
import typing

from .environment import Job
from .errors import NotUnderSlipway, StoreError, StoreProtocolError, StoreTimeout

TIMEOUT_S = 300.0
"""Seconds that a wait lasts by default, as in PyTorch."""
CONNECT_TIMEOUT_S = 60.0
"""Seconds to keep trying to connect: the store is opened before any rank is started, so this is for a loaded host."""
REPLY_TIMEOUT_S = 60.0
"""Seconds for an answer that waits for nobody: longer means that the server is gone or stuck."""
KEY_BYTES_MAX = 8 << 10
VALUE_BYTES_MAX = 8 << 20
KEYS_MAX = 128 << 10
"""The server's limits: it closes the connection of a client that goes beyond them."""

_VALIDATE_MAGIC = 0x3C85F7CE
_STOP_WAITING, _WAIT_CANCELED = 0, 1
(_VALIDATE, _SET, _COMPARE_SET, _GET, _ADD, _CHECK, _WAIT, _KEY_COUNT, _DELETE, _APPEND, _MULTI_GET, _MULTI_SET,
 _CANCEL_WAIT, _PING) = range(14)
_BARRIER = 18

_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")
_U32 = struct.Struct("<I")
Value = typing.Union[bytes, str]


class Store:
    """A connection to the store. Not for use by several threads; a forked child opens its own."""

    def __init__(self, host: str, port: int, timeout: float = TIMEOUT_S) -> None:
        """Connects, and waits for the server's first answer; ``timeout`` (seconds) is that of later waits."""
        self.timeout = timeout
        self._pid = os.getpid()
        self._rounds: typing.Dict[str, int] = {}
        self._broken = ""
        self._socket = _connect(host, port)
        try:
            nonce = _U32.pack(self._pid & 0xFFFFFFFF)
            self._send(bytes([_VALIDATE]), _U32.pack(_VALIDATE_MAGIC), bytes([_PING]), nonce)
            if self._receive(len(nonce), REPLY_TIMEOUT_S) != nonce:
                raise StoreProtocolError(f"what listens at {host}:{port} is not a store", "MASTER_ADDR and MASTER_PORT")
        except BaseException:
            self._socket.close()
            raise

    @classmethod
    def of_job(cls, timeout: float = TIMEOUT_S) -> Store:
        """Connects to the store that the environment names (``MASTER_ADDR``, ``MASTER_PORT``)."""
        address = Job().store_address
        if address is None:
            raise NotUnderSlipway(
                "MASTER_ADDR is not set: this process is not a rank of a job",
                "run it as `launcher job submit --workers 2 -- python3 train.py`",
            )
        return cls(address[0], address[1], timeout)

    def set(self, key: str, value: Value) -> None:
        """Sets ``key``, and wakes whoever waits for it."""
        self._send(bytes([_SET]), _key(key), _value(value))

    def get(self, key: str, timeout: typing.Optional[float] = None) -> bytes:
        """The value of ``key``, once there is one."""
        self.wait([key], timeout)
        self._send(bytes([_GET]), _key(key))
        return self._receive_bytes()

    def add(self, key: str, amount: int) -> int:
        """Adds to a counter, which begins at 0, and returns the sum."""
        self._send(bytes([_ADD]), _key(key), _I64.pack(amount))
        return self._receive_i64()

    def append(self, key: str, value: Value) -> None:
        """Appends to the value of ``key``."""
        self._send(bytes([_APPEND]), _key(key), _value(value))

    def compare_set(self, key: str, expected: Value, desired: Value) -> bytes:
        """Sets ``key`` to ``desired`` if it is ``expected`` (empty: absent); returns what it is then."""
        self._send(bytes([_COMPARE_SET]), _key(key), _value(expected), _value(desired))
        return self._receive_bytes()

    def delete(self, key: str) -> bool:
        """Removes ``key``; returns whether there was one."""
        self._send(bytes([_DELETE]), _key(key))
        return self._receive_i64() != 0

    def check(self, keys: typing.Sequence[str]) -> bool:
        """Whether all of ``keys`` exist, without waiting."""
        self._send(bytes([_CHECK]), _keys(keys))
        answer = self._receive(1, REPLY_TIMEOUT_S)[0]
        if answer not in (0, 1):
            raise self._break(f"the store answered {answer} to a check")
        return answer == 0

    def key_count(self) -> int:
        """Keys in the store."""
        self._send(bytes([_KEY_COUNT]))
        return self._receive_i64()

    def multi_get(self, keys: typing.Sequence[str], timeout: typing.Optional[float] = None) -> typing.List[bytes]:
        """The values of ``keys``, once all of them have one."""
        if not keys:
            return []
        self.wait(keys, timeout)
        return self.multi_get_present(keys)

    def multi_get_present(self, keys: typing.Sequence[str]) -> typing.List[bytes]:
        """The values of ``keys`` as they are now: empty for a key that does not exist."""
        self._send(bytes([_MULTI_GET]), _keys(keys))
        return [self._receive_bytes() for _ in keys]

    def multi_set(self, items: typing.Mapping[str, Value]) -> None:
        """Sets several keys at once."""
        parts = [bytes([_MULTI_SET]), _count(len(items))]
        for key, value in items.items():
            parts += (_key(key), _value(value))
        self._send(*parts)

    def wait(self, keys: typing.Sequence[str], timeout: typing.Optional[float] = None) -> None:
        """Returns once all of ``keys`` exist. Raises ``StoreTimeout`` after ``timeout`` seconds."""
        if not keys:
            return
        self._send(bytes([_WAIT]), _keys(keys))
        self._await(timeout, lambda: f"{len(keys)} keys ({', '.join(map(repr, keys[:4]))}{', …' if len(keys) > 4 else ''})")

    def barrier(self, name: str, world_size: int, timeout: typing.Optional[float] = None) -> None:
        """Returns once ``world_size`` ranks have called it equally often under this name."""
        # The server counts calls and never starts again, so every round has a key of its own.
        round_number = self._rounds[name] = self._rounds.get(name, 0) + 1
        self._send(bytes([_BARRIER]), _key(f"{name}/{round_number}"), _I64.pack(world_size))
        self._await(timeout, lambda: f"all {world_size} ranks at barrier {name!r}, round {round_number}")

    def replace_and_wait(self, old: typing.Optional[str], key: str, value: Value, awaited: typing.Sequence[str],
                         timeout: typing.Optional[float] = None) -> None:
        """Deletes ``old``, sets ``key``, waits for ``awaited``: three requests in one round trip."""
        parts = [bytes([_DELETE]), _key(old)] if old is not None else []
        self._send(*parts, bytes([_SET]), _key(key), _value(value), bytes([_WAIT]), _keys(awaited))
        if old is not None:
            self._receive_i64()
        self._await(timeout, lambda: f"{len(awaited)} keys like {awaited[0]!r}")

    def close(self) -> None:
        """Closes the connection; keys stay."""
        self._broken = self._broken or "it was closed"
        self._socket.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _await(self, timeout: typing.Optional[float], awaited: typing.Callable[[], str]) -> None:
        seconds = self.timeout if timeout is None else timeout
        try:
            answer = self._receive(1, seconds, breaks=False)[0]
        except TimeoutError:
            self._send(bytes([_CANCEL_WAIT]))
            answer = self._receive(1, REPLY_TIMEOUT_S)[0]
            if answer == _WAIT_CANCELED:
                raise StoreTimeout(
                    f"waited {seconds:g} s for {awaited()}", "a rank is late or has died: `launcher job logs` shows each"
                ) from None
            # The answer and the cancellation crossed: the cancellation is answered all the same.
            if answer != _STOP_WAITING or self._receive(1, REPLY_TIMEOUT_S)[0] != _WAIT_CANCELED:
                raise self._break("the store did not answer a cancelled wait as the protocol has it") from None
            return
        if answer != _STOP_WAITING:
            raise self._break(f"the store answered {answer} to a wait")

    def _send(self, *parts: bytes) -> None:
        if self._broken:
            raise StoreError(f"the connection to the store cannot be used: {self._broken}")
        if os.getpid() != self._pid:
            raise StoreError(f"the store was opened by process {self._pid}", "open one in the child: slipway.Store.of_job()")
        try:
            self._socket.settimeout(REPLY_TIMEOUT_S)
            self._socket.sendall(b"".join(parts))
        except OSError as error:
            raise self._gone(error) from error

    def _receive(self, length: int, seconds: float, breaks: bool = True) -> bytes:
        """Exactly ``length`` bytes. With ``breaks`` false a timeout before the first byte leaves the connection usable."""
        chunks = []
        missing = length
        self._socket.settimeout(max(seconds, 0.001))
        while missing:
            try:
                chunk = self._socket.recv(missing)
            except TimeoutError as error:
                if not breaks and missing == length:
                    raise
                raise self._gone(error) from error
            except OSError as error:
                # Before Python 3.10 a socket's timeout was an OSError of its own.
                if isinstance(error, socket.timeout) and not breaks and missing == length:
                    raise TimeoutError from error
                raise self._gone(error) from error
            if not chunk:
                raise self._gone(None)
            chunks.append(chunk)
            missing -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _receive_i64(self) -> int:
        value: int = _I64.unpack(self._receive(_I64.size, REPLY_TIMEOUT_S))[0]
        return value

    def _receive_bytes(self) -> bytes:
        length: int = _U64.unpack(self._receive(_U64.size, REPLY_TIMEOUT_S))[0]
        if length > VALUE_BYTES_MAX:
            raise self._break(f"the store announced a value of {length} bytes")
        return self._receive(length, REPLY_TIMEOUT_S) if length else b""

    def _gone(self, error: typing.Optional[OSError]) -> StoreError:
        self._broken = str(error) if error is not None and str(error) else "it was closed by the server"
        self._socket.close()
        return StoreError(
            f"the connection to the job's store broke: {self._broken}",
            "the store ends with its generation: another rank failed, or the job was cancelled",
        )

    def _break(self, message: str) -> StoreProtocolError:
        # Answers have no header: after a wrong one nothing that follows can be understood.
        self._broken = message
        self._socket.close()
        return StoreProtocolError(message, "what listens there is not a store of this protocol")


def _connect(host: str, port: int) -> socket.socket:
    give_up = time.monotonic() + CONNECT_TIMEOUT_S
    pause = 0.01
    while True:
        try:
            connected = socket.create_connection((host, port), timeout=max(give_up - time.monotonic(), 0.1))
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected
        except OSError as error:
            if time.monotonic() + pause > give_up:
                raise StoreError(f"cannot connect to the store at {host}:{port}: {error}", "is the job still running?") from error
            time.sleep(pause)
            pause = min(pause * 2, 1.0)


def _key(key: str) -> bytes:
    raw = b"/" + key.encode()
    if len(raw) > KEY_BYTES_MAX:
        raise ValueError(f"a key of {len(raw)} bytes is longer than the {KEY_BYTES_MAX} that the store takes")
    return _U64.pack(len(raw)) + raw


def _value(value: Value) -> bytes:
    raw = value.encode() if isinstance(value, str) else bytes(value)
    if len(raw) > VALUE_BYTES_MAX:
        raise ValueError(f"a value of {len(raw)} bytes is longer than the {VALUE_BYTES_MAX} that the store takes")
    return _U64.pack(len(raw)) + raw


def _keys(keys: typing.Sequence[str]) -> bytes:
    return _count(len(keys)) + b"".join(map(_key, keys))


def _count(count: int) -> bytes:
    if count > KEYS_MAX:
        raise ValueError(f"{count} keys are more than the {KEYS_MAX} that one request may have")
    return _U64.pack(count)
