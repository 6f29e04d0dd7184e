"""What needs torch: the IterableDataset, and our store client against PyTorch's own server. Skipped where there is none."""

from __future__ import annotations

import importlib.util
import struct
import typing
import unittest

import slipway
from slipway import errors
from slipway.tcp_store import Store

from .test_feed import FeedTest

HAS_TORCH = importlib.util.find_spec("torch") is not None


@unittest.skipUnless(HAS_TORCH, "torch is not installed")
class Dataset(FeedTest):
    def dataset(self, **arguments: typing.Any) -> typing.Any:
        sidecar = self.sidecar(
            lambda number: [struct.pack("<2i", number, -number)], format="records", dtype="int32", items=2, fields=["data"]
        )
        return slipway.IterableDataset(loader=self.loader(sidecar), **arguments)

    def test_through_a_data_loader(self) -> None:
        from torch.utils.data import DataLoader

        dataset = self.dataset(decode=lambda batch: batch.torch().clone())
        tensors = list(DataLoader(dataset, batch_size=None, num_workers=0))
        self.assertEqual(len(tensors), 20)
        self.assertEqual(tensors[3].tolist(), [[n, -n] for n in range(12, 16)])

    def test_worker_processes_are_refused(self) -> None:
        from torch.utils.data import DataLoader

        with self.assertRaisesRegex(Exception, "num_workers=0"):
            next(iter(DataLoader(self.dataset(), batch_size=None, num_workers=1)))

    def test_the_position_is_saved_and_restored(self) -> None:
        dataset = self.dataset()
        batches = iter(dataset)
        for _ in range(3):
            next(batches)
        state = dataset.state_dict()
        other = self.dataset()
        other.load_state_dict(state)
        self.assertEqual((next(iter(other)).step, len(other)), (3, 16))


@unittest.skipUnless(HAS_TORCH, "torch is not installed")
class AgainstTheirServer(unittest.TestCase):
    def test_both_clients_see_the_same_keys(self) -> None:
        from torch.distributed import TCPStore

        theirs = TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
        with Store("127.0.0.1", theirs.port, timeout=5) as ours:
            theirs.set("a", "1")
            ours.set("b", "2")
            self.assertEqual((ours.get("a"), theirs.get("b")), (b"1", b"2"))
            self.assertEqual((ours.add("n", 5), theirs.add("n", -2), ours.get("n")), (5, 3, b"3"))
            ours.multi_set({"c": "3", "d": b"\x00"})
            self.assertEqual(ours.multi_get(["a", "b", "c", "d"]), [b"1", b"2", b"3", b"\x00"])
            self.assertEqual((ours.check(["a"]), ours.check(["a", "x"])), (True, False))
            self.assertEqual((ours.compare_set("a", "1", "9"), ours.compare_set("a", "1", "8")), (b"9", b"9"))
            self.assertEqual((ours.delete("a"), ours.delete("a")), (True, False))
            ours.append("b", "!")
            self.assertEqual(theirs.get("b"), b"2!")
            with self.assertRaises(errors.StoreTimeout):
                ours.wait(["never"], timeout=0.05)
            ours.replace_and_wait("b", "e", "5", ["c", "e"])
            self.assertEqual((ours.check(["b"]), theirs.get("e")), (False, b"5"))
            ours.barrier("alone", 1)
            self.assertGreater(ours.key_count(), 3)
