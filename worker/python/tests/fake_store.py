"""Two doubles of the store's server: one that follows a byte-level script, one that keeps keys, both for tests only."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import typing

Step = typing.Tuple[str, bytes]
"""``("expect", bytes)`` reads exactly these from the client, ``("answer", bytes)`` writes; ``("close", b"")`` hangs up."""

HELLO_BYTES = 10


class ScriptedServer:
    """Accepts one client and goes through a script; ``mismatch`` says where the client left it."""

    def __init__(self, script: typing.Sequence[Step], pid: int) -> None:
        nonce = struct.pack("<I", pid)
        # Captured from PyTorch's client: validate and ping in one go, answered by the process number.
        self.script = [("expect", b"\x00\xce\xf7\x85\x3c\x0d" + nonce), ("answer", nonce), *script]
        self.mismatch = "the client never came"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Waits for the script's end."""
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(10)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number, (action, payload) in enumerate(self.script):
                if action == "answer":
                    # Byte by byte: a client must not rely on whole answers.
                    for byte in payload:
                        connection.sendall(bytes([byte]))
                elif action == "close":
                    self.mismatch = ""
                    return
                else:
                    seen = b""
                    with contextlib.suppress(OSError):
                        while len(seen) < len(payload):
                            part = connection.recv(len(payload) - len(seen))
                            if not part:
                                break
                            seen += part
                    if seen != payload:
                        self.mismatch = f"step {number}: expected {payload!r}, seen {seen!r}"
                        return
            self.mismatch = ""
            # What a test sends beyond the script is read: closing over it would reset the connection under the answers.
            with contextlib.suppress(OSError):
                while connection.recv(1 << 16):
                    pass


class KeyServer:
    """Keeps keys for several clients: enough of the protocol for reductions and barriers."""

    def __init__(self) -> None:
        self.keys: typing.Dict[bytes, bytes] = {}
        self.most_keys = 0
        self._barriers: typing.Dict[bytes, int] = {}
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: typing.List[threading.Thread] = []
        acceptor = threading.Thread(target=self._accept, daemon=True)
        acceptor.start()

    def close(self) -> None:
        """Stops accepting."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while True:
                kind = stream.read(1)
                if not kind:
                    return
                connection.sendall(self._answer(kind[0], stream))

    def _answer(self, kind: int, stream: typing.BinaryIO) -> bytes:
        def number() -> int:
            value: int = struct.unpack("<Q", stream.read(8))[0]
            return value

        def text() -> bytes:
            return stream.read(number())

        with self._changed:
            if kind == 0:
                stream.read(4)
                return b""
            if kind == 13:
                return stream.read(4)
            if kind == 1:
                key = text()
                self.keys[key] = text()
                self.most_keys = max(self.most_keys, len(self.keys))
                self._changed.notify_all()
                return b""
            if kind == 6:
                wanted = [text() for _ in range(number())]
                assert self._changed.wait_for(lambda: all(key in self.keys for key in wanted), 10)
                return b"\0"
            if kind == 8:
                return struct.pack("<q", int(self.keys.pop(text(), None) is not None))
            if kind == 10:
                values = [self.keys[text()] for _ in range(number())]
                return b"".join(struct.pack("<Q", len(value)) + value for value in values)
            if kind == 18:
                key, size = text(), number()
                self._barriers[key] = self._barriers.get(key, 0) + 1
                self._changed.notify_all()
                assert self._changed.wait_for(lambda: self._barriers[key] >= size, 10)
                return b"\0"
            raise AssertionError(f"kind {kind}")
