"""The store's client, byte by byte against the protocol, and reductions between threads."""

from __future__ import annotations

import os
import struct
import threading
import typing
import unittest
from unittest import mock

from slipway import errors, tcp_store
from slipway.collective import Collective
from slipway.tcp_store import Store

from .fake_store import KeyServer, ScriptedServer, Step


def text(value: bytes) -> bytes:
    """A string on the wire."""
    return struct.pack("<Q", len(value)) + value


def i64(value: int) -> bytes:
    """A number on the wire."""
    return struct.pack("<q", value)


class Scripted(unittest.TestCase):
    """Gives each test a store that follows a script and asserts that the client followed it too."""

    def store(self, *script: Step) -> Store:
        server = ScriptedServer(script, os.getpid())
        store = Store("127.0.0.1", server.port, timeout=5)
        self.addCleanup(lambda: self.assertEqual(server.mismatch, ""))
        self.addCleanup(server.close)
        self.addCleanup(store.close)
        return store


class Golden(Scripted):
    """Scripts follow captures of PyTorch 2.15's client; every answer arrives byte by byte."""

    def test_set(self) -> None:
        self.store(("expect", bytes.fromhex("010200000000000000 2f6b 0100000000000000 76"))).set("k", "v")

    def test_get_is_a_wait_and_a_get(self) -> None:
        store = self.store(
            ("expect", b"\x06" + i64(1) + text(b"/k")), ("answer", b"\x00"),
            ("expect", b"\x03" + text(b"/k")), ("answer", text(b"value")),
            ("expect", b"\x06" + i64(1) + text(b"/k")), ("answer", b"\x00"),
            ("expect", b"\x03" + text(b"/k")), ("answer", text(b"")),
        )
        self.assertEqual((store.get("k"), store.get("k")), (b"value", b""))

    def test_numbers_may_be_negative(self) -> None:
        store = self.store(("expect", b"\x04" + text(b"/n") + b"\xfe" + b"\xff" * 7), ("answer", i64(-5)))
        self.assertEqual(store.add("n", -2), -5)

    def test_the_other_requests(self) -> None:
        store = self.store(
            ("expect", b"\x02" + text(b"/k") + text(b"") + text(b"new")), ("answer", text(b"new")),
            ("expect", b"\x05" + i64(2) + text(b"/a") + text(b"/b")), ("answer", b"\x01"),
            ("expect", b"\x05" + i64(1) + text(b"/a")), ("answer", b"\x00"),
            ("expect", b"\x07"), ("answer", i64(3)),
            ("expect", b"\x08" + text(b"/k")), ("answer", i64(1)),
            ("expect", b"\x08" + text(b"/k")), ("answer", i64(0)),
            ("expect", b"\x09" + text(b"/k") + text(b"more")),
            ("expect", b"\x0b" + i64(2) + text(b"/a") + text(b"1") + text(b"/b") + text(b"\x00\xff")),
            ("expect", b"\x06" + i64(2) + text(b"/a") + text(b"/b")), ("answer", b"\x00"),
            ("expect", b"\x0a" + i64(2) + text(b"/a") + text(b"/b")), ("answer", text(b"1") + text(b"\x00\xff")),
        )
        self.assertEqual(store.compare_set("k", "", "new"), b"new")
        self.assertEqual((store.check(["a", "b"]), store.check(["a"])), (False, True))
        self.assertEqual(store.key_count(), 3)
        self.assertEqual((store.delete("k"), store.delete("k")), (True, False))
        store.append("k", b"more")
        store.multi_set({"a": "1", "b": b"\x00\xff"})
        self.assertEqual(store.multi_get(["a", "b"]), [b"1", b"\x00\xff"])
        self.assertEqual(store.multi_get([]), [])

    def test_every_round_of_a_barrier_has_its_own_key(self) -> None:
        store = self.store(
            ("expect", b"\x12" + text(b"/b/1") + i64(2)), ("answer", b"\x00"),
            ("expect", b"\x12" + text(b"/b/2") + i64(2)), ("answer", b"\x00"),
        )
        store.barrier("b", 2)
        store.barrier("b", 2)

    def test_a_wait_that_times_out_is_cancelled_and_the_connection_lives(self) -> None:
        store = self.store(
            ("expect", b"\x06" + i64(1) + text(b"/k")), ("expect", b"\x0c"), ("answer", b"\x01"),
            ("expect", b"\x04" + text(b"/n") + i64(1)), ("answer", i64(1)),
        )
        with self.assertRaisesRegex(errors.StoreTimeout, "waited 0.02 s for 1 keys .'k'.") as caught:
            store.wait(["k"], timeout=0.02)
        self.assertIsInstance(caught.exception, TimeoutError)
        self.assertEqual(store.add("n", 1), 1)

    def test_an_answer_that_crosses_its_cancellation(self) -> None:
        store = self.store(
            ("expect", b"\x12" + text(b"/b/1") + i64(2)), ("expect", b"\x0c"), ("answer", b"\x00\x01"),
            ("expect", b"\x04" + text(b"/n") + i64(1)), ("answer", i64(1)),
        )
        store.barrier("b", 2, timeout=0.02)
        self.assertEqual(store.add("n", 1), 1)

    def test_three_requests_in_one_round_trip(self) -> None:
        store = self.store(
            ("expect", b"\x08" + text(b"/old") + b"\x01" + text(b"/new") + text(b"v") + b"\x06" + i64(1) + text(b"/new")),
            ("answer", i64(1) + b"\x00"),
        )
        store.replace_and_wait("old", "new", "v", ["new"])


class Breaking(Scripted):
    def test_the_server_hangs_up(self) -> None:
        store = self.store(("expect", b"\x07"), ("answer", b"\x01\x02"), ("close", b""))
        with self.assertRaisesRegex(errors.StoreError, "broke"):
            store.key_count()
        with self.assertRaisesRegex(errors.StoreError, "cannot be used"):
            store.key_count()

    def test_answers_that_the_protocol_does_not_have(self) -> None:
        scripts: typing.List[typing.Tuple[bytes, typing.Callable[[Store], object]]] = [
            (b"\x07", lambda store: store.wait(["k"])),
            (b"\x02", lambda store: store.check(["k"])),
            (text(b"")[:-1] + b"\x01", lambda store: store.compare_set("k", "a", "b")),
        ]
        for answer, request in scripts:
            store = self.store(("answer", answer))
            with self.subTest(answer=answer), self.assertRaises(errors.StoreProtocolError):
                request(store)
            with self.assertRaises(errors.StoreError):
                store.set("k", "v")

    def test_what_answers_is_no_store(self) -> None:
        server = ScriptedServer([], os.getpid() + 1)
        with mock.patch.object(tcp_store, "REPLY_TIMEOUT_S", 2.0), self.assertRaises(errors.StoreError):
            Store("127.0.0.1", server.port)
        server.close()

    def test_nothing_listens(self) -> None:
        with mock.patch.object(tcp_store, "CONNECT_TIMEOUT_S", 0.05), self.assertRaisesRegex(errors.StoreError, "cannot connect"):
            Store("127.0.0.1", 1)

    def test_beyond_the_servers_limits(self) -> None:
        store = self.store()
        with self.assertRaisesRegex(ValueError, "a key of 8193 bytes"):
            store.set("k" * 8192, "v")
        with self.assertRaisesRegex(ValueError, "a value of"):
            store.set("k", bytes(tcp_store.VALUE_BYTES_MAX + 1))
        with self.assertRaisesRegex(ValueError, "keys are more"):
            store.check(["k"] * (tcp_store.KEYS_MAX + 1))

    def test_a_forked_child_is_refused(self) -> None:
        store = self.store()
        with mock.patch("os.getpid", return_value=1), self.assertRaisesRegex(errors.StoreError, "was opened by process"):
            store.set("k", "v")

    def test_outside_of_a_job(self) -> None:
        with mock.patch.dict(os.environ, clear=True), self.assertRaises(errors.NotUnderSlipway):
            Store.of_job()


class Reducing(unittest.TestCase):
    RANKS = 3
    ROUNDS = 20

    def test_all_ranks_get_the_same_bits_and_old_keys_go(self) -> None:
        server = KeyServer()
        self.addCleanup(server.close)
        results: typing.List[typing.List[typing.List[float]]] = [[] for _ in range(self.RANKS)]

        def run(rank: int) -> None:
            with Store("127.0.0.1", server.port, timeout=10) as store:
                collective = Collective(store, rank, self.RANKS)
                for number in range(self.ROUNDS):
                    results[rank].append(collective.average("g", [0.1 * rank, number], weight=rank + 1))
                    if number % 7 == 0:
                        collective.barrier("now and then")

        ranks = [threading.Thread(target=run, args=(rank,)) for rank in range(self.RANKS)]
        for thread in ranks:
            thread.start()
        for thread in ranks:
            thread.join(20)
        self.assertEqual([len(result) for result in results], [self.ROUNDS] * self.RANKS)
        self.assertTrue(all(result == results[0] for result in results))
        for number, (mean, constant) in enumerate(results[0]):
            self.assertAlmostEqual(mean, (0.1 * 2 + 0.2 * 3) / 6)
            self.assertAlmostEqual(constant, number)
        self.assertLessEqual(server.most_keys, 3 * self.RANKS)

    def test_vectors_of_different_lengths(self) -> None:
        server = KeyServer()
        self.addCleanup(server.close)
        with Store("127.0.0.1", server.port) as store:
            server.keys[b"/slipway/sum/g/1/1"] = bytes(8)
            with self.assertRaisesRegex(errors.SlipwayError, "a rank brought 1 doubles"):
                Collective(store, 0, 2).sum("g", [1.0, 2.0])

    def test_one_rank_needs_no_store(self) -> None:
        alone = Collective(None, 0, 1)
        self.assertEqual(alone.average("g", [1.0, 3.0], weight=2.0), [1.0, 3.0])
        alone.barrier("b")
        with self.assertRaises(errors.SlipwayError):
            alone.average("g", [1.0], weight=0.0)
