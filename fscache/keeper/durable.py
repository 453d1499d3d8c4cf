"""Files that are whole or not there: every record of the keeper's is written here. What cannot be written leaves
nothing behind."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def write(path: str, data: bytes) -> None:
    """Give a file these bytes, all or nothing, on disk when this returns: also after a crash of the machine. For
    children: it waits for the disk."""
    with _new(path, data, sync=True) as new:
        _place(new, path)


def write_until_reboot(path: str, data: bytes) -> None:
    """The same for a file that only has to outlive the service."""
    with _new(path, data, sync=False) as new:
        os.replace(new, path)


@contextlib.contextmanager
def _new(path: str, data: bytes, *, sync: bool) -> Iterator[str]:
    """A new file with these bytes, which is removed unless it finds its place."""
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # a process that was given up may be writing to it still
    try:
        with open(new, "xb") as file:
            file.write(data)
            if sync:  # by the descriptor that wrote: it is told of what failed
                file.flush()
                os.fsync(file.fileno())
        yield new
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def replace(new: str, path: str) -> None:
    """Put a file in another one's place, on disk when this returns."""
    _sync(new)
    _place(new, path)


def _place(new: str, path: str) -> None:
    os.replace(new, path)
    _sync(os.path.dirname(path))


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
