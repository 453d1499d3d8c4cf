"""A folder in which opens hang, as on a file server that is away: a permission is asked for that nobody gives."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.kit.command import PYTHON


@contextlib.contextmanager
def opens_hang(folder: Path, seconds: float = 600) -> Iterator[subprocess.Popen[bytes]]:
    """Every open there hangs until the process ends: when it is killed, after so many seconds, or at the end."""
    guard = subprocess.Popen([*PYTHON, "-c", _GUARD, str(folder), str(seconds)], stdout=subprocess.PIPE)
    try:
        assert guard.stdout is not None
        assert guard.stdout.readline() == b"watching\n"
        yield guard
    finally:
        guard.kill()
        guard.communicate(timeout=20)


_GUARD = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
group = libc.fanotify_init(0x04 | 0x01, os.O_RDONLY)  # FAN_CLASS_CONTENT, FAN_CLOEXEC
path = sys.argv[1].encode()
mask = ctypes.c_uint64(0x00010000 | 0x08000000)  # FAN_OPEN_PERM, FAN_EVENT_ON_CHILD
assert group >= 0 and libc.fanotify_mark(group, 1, mask, -100, path) == 0, ctypes.get_errno()
print("watching", flush=True)
time.sleep(float(sys.argv[2]))
"""
