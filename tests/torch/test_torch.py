"""Unmodified PyTorch programs under Slipway: same results as under torchrun, served by our own store.

Run by `tests/run torch`, which installs torch and sets SLIPWAY_TORCH_PYTHON.
"""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
PYTHON = os.environ.get("SLIPWAY_TORCH_PYTHON")
# Importing torch alone takes up to 20 s on a loaded machine of 2 cores.
LIMIT_S = 300


def launcher():
    """Path of the built program."""
    if "SLIPWAY_LAUNCHER" in os.environ:
        return os.environ["SLIPWAY_LAUNCHER"]
    # Of the whole workspace, as the other tests are built: else every dependency is built once more.
    subprocess.run(["cargo", "build", "--quiet", "--workspace", "--bin", "launcher"], cwd=ROOT, check=True)
    metadata = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version", "1"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    return os.path.join(json.loads(metadata.stdout)["target_directory"], "debug", "launcher")


class TorchStories(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if PYTHON is None:
            raise AssertionError("SLIPWAY_TORCH_PYTHON is not set: run `tests/run torch`")
        cls.launcher = launcher()
        cls.folder = tempfile.TemporaryDirectory(prefix="slipway-torch-")
        # `python3` in the examples' job files is then the one with torch.
        path = os.path.dirname(PYTHON) + os.pathsep + os.environ["PATH"]
        cls.env = dict(os.environ, PATH=path, SLIPWAY_HOME=os.path.join(cls.folder.name, "state"), OMP_NUM_THREADS="1")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def run_in(self, command, cwd=None):
        run = subprocess.run(
            command, cwd=cwd, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=LIMIT_S, text=True
        )
        self.assertEqual(run.returncode, 0, f"{command}\n{run.stdout[-4000:]}\n{run.stderr[-8000:]}")
        return run

    def submit(self, *args):
        """Runs a job to its end; its status and its rank 0's log."""
        status = json.loads(self.run_in([self.launcher, "job", "submit", "--output", "json", *args]).stdout)
        logs = self.run_in([self.launcher, "job", "logs", status["id"], "--rank", "0"]).stdout
        return status, logs

    def test_the_loss_curve_is_that_of_torchrun(self):
        example = ROOT / "examples" / "torch-digits"
        torchrun = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "train.py"]
        expected = losses(self.run_in(torchrun, cwd=example).stdout)
        status, logs = self.submit(str(example / "job.yaml"))
        self.assertEqual(status["ranks"], 4)
        self.assertGreaterEqual(len(expected), 20)
        self.assertEqual(losses(logs), expected)

    def test_collectives_through_our_store(self):
        status, logs = self.submit("--workers", "3", "--", "python3", str(HERE / "collectives.py"))
        self.assertEqual(status["phase"], "succeeded")
        result = json.loads([line for line in logs.splitlines() if line.startswith("{")][-1])
        self.assertEqual(result, {"sum": 6.0, "gathered": [0, 1, 2], "group": 1.0, "serves_store": False})

    def test_a_killed_rank_is_restarted_into_a_new_world(self):
        status, logs = self.submit(
            "--workers", "2", "--max-restarts", "1", "--", "python3", str(HERE / "killed_once.py")
        )
        self.assertEqual(status["restarts"], 1)
        self.assertEqual(status["cause"]["code"], "signal")
        self.assertEqual(status["cause"]["rank"], 1)
        self.assertIn("sum after the restart: 3.0", logs)


def losses(text):
    """Loss by step, from the JSON lines that rank 0 prints."""
    found = {}
    for line in text.splitlines():
        start = line.find('{"')
        if start >= 0 and '"loss"' in line:
            entry = json.loads(line[start:])
            found[entry["step"]] = entry["loss"]
    return found


if __name__ == "__main__":
    unittest.main()
