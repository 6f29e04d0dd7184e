"""Batches as views: fields, records, padding, and the end of their lives."""

from __future__ import annotations

import array
import importlib.util
import struct
import typing
import unittest

from slipway import errors

from .test_feed import FeedTest


class Files(FeedTest):
    def test_samples_and_fields(self) -> None:
        batch = next(self.loader(self.sidecar()))
        self.assertEqual((len(batch), batch.real, batch.mask), (4, 4, [True] * 4))
        self.assertEqual(
            [{name: bytes(view) for name, view in sample.items()} for sample in batch.samples],
            [{"img": b"image %d" % i, "cls": b"%d" % i} for i in range(4)],
        )
        self.assertEqual([bytes(view or b"") for view in batch.field("cls")], [b"0", b"1", b"2", b"3"])
        self.assertTrue(all(view is not None and view.readonly for view in batch.field("img")))
        with self.assertRaisesRegex(errors.SlipwayError, "its fields are img, cls"):
            batch.field("png")
        with self.assertRaisesRegex(errors.SlipwayError, "not records"):
            batch.numpy() if importlib.util.find_spec("numpy") else batch._record()

    def test_a_field_that_a_sample_lacks(self) -> None:
        batch = next(self.loader(self.sidecar(lambda i: [b"x", None if i % 2 else b""])))
        self.assertEqual([sorted(sample) for sample in batch.samples], [["cls", "img"], ["img"]] * 2)
        self.assertEqual([view is None for view in batch.field("cls")], [False, True, False, True])

    def test_padding_comes_last(self) -> None:
        sidecar = self.sidecar()
        sidecar.real = 3
        batch = next(self.loader(sidecar))
        self.assertEqual((batch.real, batch.mask), (3, [True, True, True, False]))

    def test_an_empty_slice(self) -> None:
        sidecar = self.sidecar()
        sidecar.batch_size = sidecar.real = 0
        batch = next(self.loader(sidecar))
        self.assertEqual((len(batch), batch.samples, batch.field("img"), list(batch.sample_ids)), (0, [], [], []))

    def test_views_end_with_the_step(self) -> None:
        loader = self.loader(self.sidecar())
        batch = next(loader)
        views = [batch.sample_ids, batch.payload, batch.samples[1]["img"], batch.field("cls")[0]]
        kept = bytes(batch.samples[1]["img"])
        next(loader)
        for view in views:
            assert view is not None
            with self.assertRaises(ValueError):
                view.tolist()
        uses: typing.List[typing.Callable[[], object]] = [
            lambda: batch.samples, lambda: batch.sample_ids, lambda: batch.payload, lambda: batch.field("img")
        ]
        for use in uses:
            with self.assertRaisesRegex(errors.BatchReleased, "step 0 was acknowledged"):
                use()
        self.assertEqual((kept, len(batch), batch.step), (b"image 1", 4, 0))

    def test_a_view_that_cannot_be_taken_back_does_no_harm(self) -> None:
        loader = self.loader(self.sidecar())
        held = memoryview(next(loader).payload)
        self.assertEqual([next(loader).step, next(loader).step], [1, 2])
        loader.close()
        held.tobytes()


def _record(number: int) -> typing.List[typing.Optional[bytes]]:
    return [struct.pack("<3H", number, 2 * number, 7)]


class Records(FeedTest):
    def batch(self) -> typing.Any:
        sidecar = self.sidecar(_record, format="records", dtype="uint16", items=3, fields=["data"])
        self.held = self.loader(sidecar)
        return next(self.held)

    def test_the_payload_is_one_array(self) -> None:
        batch = self.batch()
        self.assertEqual(batch.payload.cast("H").tolist()[3:6], [1, 2, 7])
        self.assertEqual(array.array("H", batch.samples[3]["data"].cast("H")).tolist(), [3, 6, 7])
        self.assertEqual(batch.nbytes, 24)

    @unittest.skipUnless(importlib.util.find_spec("numpy"), "numpy is not installed")
    def test_as_numpy(self) -> None:
        records = self.batch().numpy()
        self.assertEqual((records.shape, str(records.dtype), records.flags.writeable), ((4, 3), "uint16", False))
        self.assertEqual(records.tolist(), [[i, 2 * i, 7] for i in range(4)])
        next(self.held)

    @unittest.skipUnless(importlib.util.find_spec("torch"), "torch is not installed")
    def test_as_torch(self) -> None:
        tensor = self.batch().torch()
        self.assertEqual(tuple(tensor.shape), (4, 3))
        self.assertEqual(tensor.tolist(), [[i, 2 * i, 7] for i in range(4)])
        next(self.held)
