"""The package as a whole: the cost of its import, the environment, and that nothing beyond the standard library is needed."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import unittest

import slipway
from slipway import errors
from slipway.environment import Job

PACKAGE = pathlib.Path(slipway.__file__).parent


class Importing(unittest.TestCase):
    def test_the_import_loads_nothing_else(self) -> None:
        # A count of modules rather than milliseconds, which a loaded machine would stretch.
        program = (
            "import sys; before = set(sys.modules); import slipway; new = set(sys.modules) - before;"
            "assert new <= {'slipway', '__future__'}, new;"
            "slipway.job.rank; slipway.loader; slipway.Loader; slipway.Store;"
            "assert not {'numpy', 'torch'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-S", "-c", program], check=True, cwd=PACKAGE.parent, timeout=60)

    def test_all_names_exist(self) -> None:
        for name in slipway.__all__:
            if name != "IterableDataset":
                self.assertIsNotNone(getattr(slipway, name))
        with self.assertRaises(AttributeError):
            slipway.nothing

    def test_every_file_says_what_it_is_for_and_is_short(self) -> None:
        files = list(PACKAGE.glob("*.py")) + list(pathlib.Path(__file__).parent.glob("*.py"))
        self.assertGreater(len(files), 12)
        for file in files:
            lines = file.read_text().splitlines()
            self.assertTrue(lines[0].startswith('"""'), file)
            self.assertLessEqual(len(lines), 600, file)


class Environment(unittest.TestCase):
    def test_a_program_that_runs_alone(self) -> None:
        job = Job({})
        self.assertEqual((job.rank, job.world_size, job.local_rank, job.generation, job.start_step), (0, 1, 0, 0, 0))
        self.assertEqual((str(job.checkpoint_dir), job.store_address, job.name), ("checkpoints", None, ""))

    def test_a_rank(self) -> None:
        job = Job({
            "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "SLIPWAY_GENERATION": "5",
            "SLIPWAY_RESTARTS": "2", "SLIPWAY_START_STEP": "70", "SLIPWAY_CHECKPOINT_DIR": "/c", "MASTER_ADDR": "::1",
            "MASTER_PORT": "29500", "SLIPWAY_JOB": "digits-1a2b", "SLIPWAY_JOB_UID": "u",
        })
        self.assertEqual((job.rank, job.world_size, job.local_rank, job.local_world_size), (3, 4, 1, 2))
        self.assertEqual((job.generation, job.restarts, job.start_step), (5, 2, 70))
        self.assertEqual((job.checkpoint_dir, job.store_address), (pathlib.Path("/c"), ("::1", 29500)))
        self.assertEqual((job.name, job.uid), ("digits-1a2b", "u"))

    def test_numbers_that_are_none(self) -> None:
        for value in ("x", "-1", "1.5"):
            with self.assertRaisesRegex(errors.SlipwayError, "RANK"):
                Job({"RANK": value}).rank
