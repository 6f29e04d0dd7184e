"""The job as this rank sees it: what the launcher wrote into the environment, read once and typed.

Outside of a job the values are those of a program that runs alone (rank 0 of 1), so that a script needs no second path.
"""

from __future__ import annotations

import os
import typing

from .errors import SlipwayError

if typing.TYPE_CHECKING:
    import pathlib

DATA_SOCKET = "SLIPWAY_DATA_SOCKET"
"""Abstract unix socket, without the leading NUL, on which the sidecar hands over batches."""
CHECKPOINT_DIR = "SLIPWAY_CHECKPOINT_DIR"
START_STEP = "SLIPWAY_START_STEP"


class Job:
    """One rank's place in its job. All values come from ``environ`` at the time of the call."""

    def __init__(self, environ: typing.Mapping[str, str] = os.environ) -> None:
        self._environ = environ

    @property
    def name(self) -> str:
        """The job's id, or an empty string outside of a job."""
        return self._environ.get("SLIPWAY_JOB", "")

    @property
    def uid(self) -> str:
        """Unique among all jobs of all time, or an empty string outside of a job."""
        return self._environ.get("SLIPWAY_JOB_UID", "")

    @property
    def rank(self) -> int:
        """This process among ``world_size``, from 0."""
        return self._integer("RANK", 0)

    @property
    def world_size(self) -> int:
        """Training processes of the job in this generation."""
        return self._integer("WORLD_SIZE", 1)

    @property
    def local_rank(self) -> int:
        """This process among those of its worker, from 0."""
        return self._integer("LOCAL_RANK", 0)

    @property
    def local_world_size(self) -> int:
        """Training processes of this worker."""
        return self._integer("LOCAL_WORLD_SIZE", 1)

    @property
    def generation(self) -> int:
        """Number of the current membership; it grows with every restart."""
        return self._integer("SLIPWAY_GENERATION", 0)

    @property
    def restarts(self) -> int:
        """Restarts of the job so far."""
        return self._integer("SLIPWAY_RESTARTS", 0)

    @property
    def start_step(self) -> int:
        """Steps that were committed before this process began: the first step to run."""
        return self._integer(START_STEP, 0)

    @property
    def checkpoint_dir(self) -> pathlib.Path:
        """A folder that outlives the generations of the job; ``checkpoints`` outside of a job."""
        import pathlib

        return pathlib.Path(self._environ.get(CHECKPOINT_DIR, "checkpoints"))

    @property
    def store_address(self) -> typing.Optional[typing.Tuple[str, int]]:
        """Address and port of the job's key-value store; none when the program runs alone."""
        host = self._environ.get("MASTER_ADDR", "")
        return (host, self._integer("MASTER_PORT", 0)) if host else None

    def _integer(self, key: str, absent: int) -> int:
        text = self._environ.get(key, "")
        if not text:
            return absent
        try:
            value = int(text)
        except ValueError:
            value = -1
        if value < 0:
            raise SlipwayError(
                f"environment variable {key} is {text!r}, not a whole number",
                "the launcher sets it; do not overwrite it in run.env or in a shell profile",
            )
        return value

    def __repr__(self) -> str:
        return f"<Job {self.name or 'none'}: rank {self.rank} of {self.world_size}, generation {self.generation}>"
