"""Waiting for what becomes true in time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

# Seconds; far more than anything takes on a loaded machine. An emulated one needs more.
PATIENCE = float(os.environ.get("NYDUS_EROFS_PATIENCE", "60"))

T = TypeVar("T")


def wait_for(what: str, condition: Callable[[], T], patience: float = PATIENCE, pause: float = 0.02) -> T:
    """The first true result of a condition; AssertionError when it takes too long."""
    deadline = time.monotonic() + patience
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {patience:.0f} s"
        time.sleep(pause)
    return result
