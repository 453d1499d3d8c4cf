"""Files that are whole or not there, also after a crash of the machine. These calls wait for the disk."""

from __future__ import annotations

import contextlib
import os


def write(path: str, data: bytes) -> None:
    """Give a file these bytes, all or nothing, on disk when this returns."""
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # a process that was given up may be writing to it still
    with open(new, "xb") as file:
        file.write(data)
    replace(new, path)


def replace(new: str, path: str) -> None:
    """Put a file in another one's place, on disk when this returns."""
    _sync(new)
    os.replace(new, path)
    _sync(os.path.dirname(path))


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
