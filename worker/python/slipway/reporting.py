"""Metrics on their way to the launcher: over the loader's connection, or, without one, as a line on standard error."""

from __future__ import annotations

import json
import math
import os
import sys
import typing

from .environment import DATA_SOCKET
from .errors import SlipwayError
from .feed import open_connection

NAMES_MAX = 64
"""Values in one report at the most, as the sidecar has it: a screenful of metrics."""


def report(values: typing.Mapping[str, float]) -> None:
    """Sends ``values``. They must be finite numbers."""
    checked = {name: _finite(name, value) for name, value in values.items()}
    if len(checked) > NAMES_MAX:
        raise SlipwayError(f"a report of {len(checked)} values", f"report at most {NAMES_MAX} at once")
    connection = open_connection()
    if connection is not None:
        connection.check_process()
        connection.send_object({"report": checked})
    elif os.environ.get(DATA_SOCKET):
        raise SlipwayError("there is no open loader to report through", "call slipway.report(…) before the loader is closed")
    else:
        # A program that runs alone, or under another launcher, still says what it measured.
        print(json.dumps({"report": checked}), file=sys.stderr, flush=True)


def _finite(name: str, value: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SlipwayError(f"cannot report {name} = {value!r}", "values are numbers") from None
    if not math.isfinite(number):
        raise SlipwayError(f"cannot report {name} = {number}", "JSON has no such number; the training may have diverged")
    return number
