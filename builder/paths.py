"""Paths of a source as bytes, also those too long for a system call."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..erofs.errors import SourceError
from ..erofs.ids import printable

PATH_MAX = 4096  # bytes of a path for one system call, its NUL included
LONGEST_NAME = 255
# What opening or reading a regular file says when it is none: a symlink, a socket, a FIFO.
_NO_FILE = (errno.ELOOP, errno.ENXIO, errno.ESPIPE)
_STEP_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def shown(path: Path) -> str:
    """A path of the command line, for people."""
    return printable(os.fsencode(path))


def open_at_length(path: bytes, flags: int) -> int:
    """``os.open`` for a path of any length: a long one is walked in steps that fit."""
    if len(path) < PATH_MAX:
        return os.open(path, flags)
    start = None
    try:
        while len(path) >= PATH_MAX:
            cut = path.rindex(b"/", 1, PATH_MAX - 1)
            step = os.open(path[:cut], _STEP_FLAGS, dir_fd=start)
            if start is not None:
                os.close(start)
            start, path = step, path[cut:].lstrip(b"/")
        return os.open(path, flags, dir_fd=start)
    finally:
        if start is not None:
            os.close(start)


@contextmanager
def short_path(directory: bytes) -> Iterator[bytes]:
    """Another path of a directory, to which any name may be appended and still fit into a system call."""
    fd = open_at_length(directory, _STEP_FLAGS)
    try:
        yield b"/proc/self/fd/%d" % fd
    finally:
        os.close(fd)


def source_error(error: OSError, path: bytes) -> SourceError:
    """What a failed system call on a part of the source means to a person."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return SourceError(f"{printable(path)} vanished while the image was built", hint="build from a tree at rest")
    if isinstance(error, PermissionError):
        return SourceError(
            f"{printable(path)} cannot be read: {error.strerror}", hint="run as root, or leave it out with --exclude"
        )
    if error.errno in _NO_FILE:
        return changed(path)
    return SourceError(f"{printable(path)} cannot be read: {error.strerror}")


def changed(path: bytes) -> SourceError:
    return SourceError(f"{printable(path)} changed while the image was built", hint="build from a tree at rest")
