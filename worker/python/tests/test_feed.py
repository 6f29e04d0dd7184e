"""The loader against a double of the sidecar: order, acknowledgement, commit, seek, and every way in which it can end."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import select
import signal
import struct
import subprocess
import sys
import typing
import unittest
from unittest import mock

import slipway
from slipway import errors, handoff
from slipway.environment import DATA_SOCKET
from slipway.feed import Loader

from .fake_sidecar import FakeSidecar, send_with_descriptors


class FeedTest(unittest.TestCase):
    """Gives each test a sidecar, and asserts at the end that the trainer kept the protocol."""

    def sidecar(self, *arguments: typing.Any, **welcome: typing.Any) -> FakeSidecar:
        sidecar = FakeSidecar(*arguments, **welcome)
        self.addCleanup(lambda: self.assertEqual(sidecar.faults, []))
        self.addCleanup(sidecar.close)
        return sidecar

    def loader(self, sidecar: FakeSidecar) -> Loader:
        loader = Loader.open(sidecar.name)
        self.addCleanup(loader.close)
        return loader


class Reading(FeedTest):
    def test_every_step_comes_once_and_is_acknowledged(self) -> None:
        sidecar = self.sidecar()
        with slipway.loader(sidecar.name) as loader:
            self.assertEqual((len(loader), loader.steps_per_epoch, loader.epochs), (20, 10, 2))
            steps = [(batch.step, batch.epoch, list(batch.sample_ids)) for batch in loader]
        self.assertEqual(steps, [(s, s // 10, list(range(4 * s, 4 * s + 4))) for s in range(20)])
        self.assertTrue(sidecar.detached.acquire(timeout=10))
        self.assertEqual([step for kind, _, step in sidecar.received if kind == handoff.ACKNOWLEDGE], list(range(20)))

    def test_it_starts_where_the_job_committed(self) -> None:
        loader = self.loader(self.sidecar(start_step=13))
        self.assertEqual((loader.step, loader.epoch, len(loader)), (13, 1, 7))
        self.assertEqual([batch.step for batch in loader], list(range(13, 20)))

    def test_a_loop_that_was_left_goes_on(self) -> None:
        loader = self.loader(self.sidecar())
        for batch in loader:
            if batch.step == 4:
                break
        self.assertEqual(next(loader).step, 5)

    def test_epochs_one_after_the_other(self) -> None:
        loader = self.loader(self.sidecar(start_step=7))
        seen = [(epoch, [batch.step for batch in batches]) for epoch, batches in loader.epochs_left()]
        self.assertEqual(seen, [(0, [7, 8, 9]), (1, list(range(10, 20)))])

    def test_an_acknowledgement_ahead_of_the_next_batch(self) -> None:
        sidecar = self.sidecar(slots=1)
        loader = self.loader(sidecar)
        batch = next(loader)
        loader.acknowledge()
        loader.acknowledge()
        self.assertEqual(next(loader).step, 1)
        with self.assertRaises(errors.BatchReleased):
            batch.payload
        self.assertEqual([step for kind, _, step in sidecar.received if kind == handoff.ACKNOWLEDGE], [0])


class Committing(FeedTest):
    def test_a_commit_covers_all_steps_so_far_and_acknowledges_the_last(self) -> None:
        sidecar = self.sidecar()
        loader = self.loader(sidecar)
        for batch in loader:
            if batch.step == 4:
                loader.commit()
        loader.close()
        self.assertTrue(sidecar.detached.acquire(timeout=10))
        kinds = [(kind, step) for kind, _, step in sidecar.received]
        self.assertEqual(kinds.index((handoff.COMMIT, 5)), kinds.index((handoff.ACKNOWLEDGE, 4)) + 1)
        self.assertEqual(len(kinds), 21)

    def test_a_commit_of_an_earlier_step_keeps_the_batch(self) -> None:
        loader = self.loader(self.sidecar())
        next(loader), next(loader)
        batch = next(loader)
        loader.commit(2)
        self.assertEqual(list(batch.sample_ids), [8, 9, 10, 11])
        for impossible in (-1, 4):
            with self.assertRaises(ValueError):
                loader.commit(impossible)

    def test_a_body_that_raises_does_not_acknowledge(self) -> None:
        sidecar = self.sidecar()
        with self.assertRaises(KeyError), slipway.loader(sidecar.name) as loader:
            next(loader), next(loader)
            raise KeyError
        self.assertTrue(sidecar.detached.acquire(timeout=10))
        self.assertEqual([step for _, _, step in sidecar.received], [0])


class Seeking(FeedTest):
    def test_forward_and_back(self) -> None:
        sidecar = self.sidecar()
        loader = self.loader(sidecar)
        self.assertEqual(next(loader).step, 0)
        loader.seek(15)
        self.assertEqual([next(loader).step for _ in range(2)], [15, 16])
        loader.seek(2)
        self.assertEqual([batch.step for batch in loader], list(range(2, 20)))
        loader.seek(18)
        self.assertEqual([batch.step for batch in loader], [18, 19])
        loader.close()
        self.assertTrue(sidecar.detached.acquire(timeout=10))
        dropped = [step for kind, _, step in sidecar.received if kind == handoff.DROP]
        acknowledged = [step for kind, _, step in sidecar.received if kind == handoff.ACKNOWLEDGE]
        self.assertEqual(acknowledged, [15] + list(range(2, 20)) + [18, 19])
        self.assertTrue({0, 16} <= set(dropped))

    def test_a_state_of_the_same_order_is_resumed(self) -> None:
        loader = self.loader(self.sidecar())
        for _ in range(6):
            next(loader)
        state = json.loads(json.dumps(loader.state_dict()))
        other = self.loader(self.sidecar())
        other.load_state_dict(state)
        self.assertEqual(next(other).step, 6)

    def test_a_state_of_another_order_is_refused(self) -> None:
        loader = self.loader(self.sidecar())
        state = loader.state_dict()
        for key, value in (("seed", 8), ("dataset", "cd" * 32), ("global_batch", 5), ("version", 2), ("step", "x")):
            with self.assertRaises((errors.StateMismatch, errors.ProtocolError)):
                loader.load_state_dict({**state, key: value})
        with self.assertRaises(ValueError):
            loader.seek(21)


class Ending(FeedTest):
    def test_without_a_job_the_error_says_how_to_run(self) -> None:
        with mock.patch.dict(os.environ):
            os.environ.pop(DATA_SOCKET, None)
            with self.assertRaises(errors.NotUnderSlipway) as caught:
                slipway.loader()
        self.assertIn("launcher job submit", str(caught.exception))

    def test_the_environment_names_the_socket(self) -> None:
        sidecar = self.sidecar()
        with mock.patch.dict(os.environ, {DATA_SOCKET: sidecar.name}), slipway.loader() as loader:
            self.assertEqual(next(loader).step, 0)

    def test_a_second_loader_closes_the_first(self) -> None:
        sidecar = self.sidecar()
        first = self.loader(sidecar)
        next(first)
        second = self.loader(sidecar)
        self.assertEqual(next(second).step, 0)
        with self.assertRaisesRegex(errors.SidecarGone, "the loader was closed"):
            next(first)

    def test_a_program_that_just_ends_has_acknowledged_what_it_did(self) -> None:
        sidecar = self.sidecar()
        program = (
            "import slipway\nloader = slipway.loader()\nfor batch in loader:\n"
            "    if batch.step == 2: break\nloader.commit(2)\nslipway.report(a=1)"
        )
        package = os.path.dirname(os.path.dirname(slipway.__file__))
        environ = dict(os.environ, SLIPWAY_DATA_SOCKET=sidecar.name, PYTHONPATH=package)
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=environ)
        self.assertTrue(sidecar.detached.acquire(timeout=10))
        self.assertEqual([(kind, step) for kind, _, step in sidecar.received],
                         [(handoff.ACKNOWLEDGE, 0), (handoff.ACKNOWLEDGE, 1), (handoff.COMMIT, 2)])
        self.assertEqual(len(sidecar.objects), 1)

    def test_nobody_listens(self) -> None:
        with self.assertRaisesRegex(errors.SidecarGone, "cannot reach the sidecar"):
            Loader.open("slipway-test-nobody")

    def test_the_sidecar_dies_before_its_welcome(self) -> None:
        sidecar = self.sidecar()
        sidecar.hello = lambda endpoint, ring: False
        with self.assertRaises(errors.SidecarGone):
            Loader.open(sidecar.name)

    def test_the_sidecar_dies_between_batches(self) -> None:
        sidecar = self.sidecar()
        sidecar.before_batch = lambda endpoint, step: step < 5
        loader = self.loader(sidecar)
        steps = []
        with self.assertRaisesRegex(errors.SidecarGone, "before the end of the data"):
            for batch in loader:
                steps.append(batch.step)
        self.assertLessEqual(steps, list(range(5)))

    def test_a_fault_of_the_data_reaches_the_trainer(self) -> None:
        def fault(endpoint: typing.Any, step: int) -> bool:
            if step == 2:
                endpoint.send(handoff.DESCRIPTOR.pack(handoff.FAULT, 0, 0, 2, 0))
                endpoint.send(b'{"error":"sample 9 is corrupt","hint":"launcher data verify"}')
            return step != 2

        sidecar = self.sidecar()
        sidecar.before_batch = fault
        with self.assertRaises(errors.DataFault) as caught:
            list(self.loader(sidecar))
        self.assertEqual(str(caught.exception), "sample 9 is corrupt\nhint: launcher data verify")

    def test_a_fault_is_read_also_when_the_connection_breaks_while_something_is_sent(self) -> None:
        def fault(endpoint: typing.Any, step: int) -> bool:
            if step == 2:
                # It closes over what it has not read, so the trainer's socket is reset before it holds its last words.
                select.select([endpoint], [], [], 10)
                endpoint.send(handoff.DESCRIPTOR.pack(handoff.FAULT, 0, 0, 2, 0))
                endpoint.send(b'{"error":"sample 9 is corrupt","hint":"launcher data verify"}')
            return step != 2

        sidecar = self.sidecar()
        sidecar.before_batch = fault
        loader = self.loader(sidecar)
        next(loader)
        next(loader)
        self.assertTrue(sidecar.detached.acquire(timeout=10))
        # A packet that is sent between the sidecar's shutdown and its close gets this error, and leaves the reset pending.
        reason = loader._connection._gone(BrokenPipeError(errno.EPIPE, "Broken pipe"))
        self.assertEqual((type(reason), str(reason)[:19]), (errors.DataFault, "sample 9 is corrupt"))

    def test_a_refusal_is_passed_on(self) -> None:
        sidecar = self.sidecar()

        def hello(endpoint: typing.Any, ring: int) -> bool:
            send_with_descriptors(endpoint, b'{"error":"the feed is taken","hint":"wait"}', [])
            return False

        sidecar.hello = hello
        with self.assertRaisesRegex(errors.DataFault, "the feed is taken"):
            Loader.open(sidecar.name)


class Misbehaving(FeedTest):
    def test_another_version(self) -> None:
        with self.assertRaisesRegex(errors.ProtocolError, "speaks version 2"):
            Loader.open(self.sidecar(version=2).name)

    def test_numbers_that_are_none(self) -> None:
        for key, value in (("steps_per_epoch", "10"), ("start_step", -1), ("end_step", None), ("epochs", True),
                           ("steps_per_epoch", 0)):
            sidecar = self.sidecar()

            def hello(endpoint: typing.Any, ring: int, sidecar: FakeSidecar = sidecar, key: str = key,
                      value: object = value) -> bool:
                send_with_descriptors(endpoint, json.dumps({**sidecar.welcome, key: value}).encode(), [ring])
                return False

            sidecar.hello = hello
            with self.subTest(key=key, value=value), self.assertRaises(errors.ProtocolError):
                Loader.open(sidecar.name)

    def test_a_welcome_with_the_wrong_number_of_rings(self) -> None:
        for count in (0, 2):
            before = len(os.listdir("/proc/self/fd"))
            sidecar = self.sidecar()

            def hello(endpoint: typing.Any, ring: int, sidecar: FakeSidecar = sidecar, count: int = count) -> bool:
                send_with_descriptors(endpoint, json.dumps(sidecar.welcome).encode(), [ring] * count)
                return False

            sidecar.hello = hello
            with self.assertRaisesRegex(errors.ProtocolError, f"passed {count} file descriptors"):
                Loader.open(sidecar.name)
            sidecar.close()
            self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_a_ring_that_is_smaller_than_claimed(self) -> None:
        sidecar = self.sidecar()

        def hello(endpoint: typing.Any, ring: int) -> bool:
            send_with_descriptors(endpoint, json.dumps({**sidecar.welcome, "slots": 1000}).encode(), [ring])
            return False

        sidecar.hello = hello
        with self.assertRaisesRegex(errors.ProtocolError, "do not fit"):
            Loader.open(sidecar.name)

    def test_welcomes_that_are_no_object(self) -> None:
        for packet in (b"\x01\x02", b"[1]", b'{"version":1', b"null"):
            sidecar = self.sidecar()

            def hello(endpoint: typing.Any, ring: int, packet: bytes = packet) -> bool:
                send_with_descriptors(endpoint, packet, [ring])
                return False

            sidecar.hello = hello
            with self.subTest(packet=packet), self.assertRaises(errors.ProtocolError):
                Loader.open(sidecar.name)

    def test_descriptors_cut_short_or_too_long(self) -> None:
        for packet in (b"\x01", bytes(31), bytes(33), bytes(handoff.PACKET_BYTES_MAX + 10)):
            sidecar = self.sidecar()

            def before(endpoint: typing.Any, step: int, packet: bytes = packet) -> bool:
                endpoint.send(packet)
                return False

            sidecar.before_batch = before
            with self.subTest(length=len(packet)), self.assertRaisesRegex(errors.ProtocolError, "where a descriptor"):
                next(self.loader(sidecar))

    def test_descriptors_that_mean_nothing(self) -> None:
        for fields in ((9, 0, 0, 0, 0), (handoff.READY, 99, 1, 0, 64), (handoff.READY, 0, 1, 5, 64), (0, 0, 0, 0, 0)):
            sidecar = self.sidecar()

            def before(endpoint: typing.Any, step: int, fields: typing.Any = fields) -> bool:
                endpoint.send(handoff.DESCRIPTOR.pack(*fields))
                return False

            sidecar.before_batch = before
            with self.subTest(fields=fields), self.assertRaises(errors.ProtocolError):
                next(self.loader(sidecar))

    def test_slots_that_contradict_their_descriptor(self) -> None:
        def poke(offset: int, code: str, value: int) -> typing.Callable[[bytearray], None]:
            return lambda slot: struct.pack_into(code, slot, offset, value)

        corruptions = {
            "magic": poke(0, "<I", 1), "version": poke(4, "<I", 2), "generation": poke(8, "<Q", 99),
            "step": poke(16, "<Q", 99), "samples": poke(32, "<I", 1 << 30), "real": poke(36, "<I", 5),
            "columns": poke(40, "<I", 1 << 30), "payload offset": poke(48, "<Q", 5000),
            "payload bytes": poke(56, "<Q", 1 << 63),
        }
        for name, corrupt in corruptions.items():
            sidecar = self.sidecar()
            sidecar.corrupt = corrupt
            with self.subTest(name), self.assertRaises(errors.ProtocolError):
                next(self.loader(sidecar))
        sidecar = self.sidecar()
        sidecar.corrupt = poke(64 + 8 * 4, "<Q", 4095)  # The first field's offset.
        with self.assertRaisesRegex(errors.ProtocolError, "outside of its slot"):
            next(self.loader(sidecar)).samples


class Forking(FeedTest):
    def in_child(self, body: typing.Callable[[], None]) -> int:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            status = 3
            try:
                body()
                status = 0
            except errors.ForkedProcess as error:
                status = 42 if "num_workers=0" in str(error) else 4
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def test_a_child_is_refused_and_the_parent_goes_on(self) -> None:
        loader = self.loader(self.sidecar())
        next(loader)
        uses: typing.List[typing.Callable[[], object]] = [
            lambda: next(loader), loader.commit, loader.acknowledge, lambda: loader.seek(1),
            lambda: loader.report({"a": 1}), lambda: slipway.report(a=1),
        ]
        for use in uses:
            self.assertEqual(self.in_child(use), 42)  # type: ignore[arg-type]
        self.assertEqual(next(loader).step, 1)

    def test_a_child_does_not_hide_its_parents_death(self) -> None:
        sidecar = self.sidecar()
        loader = Loader.open(sidecar.name)
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        try:
            loader.close()
            self.assertTrue(sidecar.detached.acquire(timeout=10), "the child holds the connection open")
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


class Reporting(FeedTest):
    def test_through_the_loader(self) -> None:
        sidecar = self.sidecar()
        with slipway.loader(sidecar.name) as loader:
            next(loader)
            slipway.report(accuracy=0.5, loss=1)
        self.assertTrue(sidecar.detached.acquire(timeout=10))
        self.assertEqual(sidecar.objects, [{"report": {"accuracy": 0.5, "loss": 1.0}}])

    def test_values_that_are_no_numbers(self) -> None:
        for value in (float("nan"), float("inf"), "x", None):
            with self.subTest(value=value), self.assertRaises(errors.SlipwayError):
                slipway.report(loss=value)  # type: ignore[arg-type]
        with self.assertRaises(errors.SlipwayError):
            slipway.report(**{f"v{i}": 0.0 for i in range(65)})

    def test_without_a_loader(self) -> None:
        with mock.patch.dict(os.environ, {DATA_SOCKET: "x"}), self.assertRaisesRegex(errors.SlipwayError, "no open loader"):
            slipway.report(loss=1.0)
        with mock.patch.dict(os.environ), contextlib.redirect_stderr(io.StringIO()) as line:
            os.environ.pop(DATA_SOCKET, None)
            slipway.report(loss=1.0)
        self.assertEqual(json.loads(line.getvalue()), {"report": {"loss": 1.0}})
