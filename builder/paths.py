"""Paths for people, and what a failed system call on one of the source means to them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..erofs.errors import SourceError
from ..erofs.ids import printable

# What opening or reading says when a name is another kind of file's by now: a symlink's, a socket's, a FIFO's.
_OTHER_KIND = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ESPIPE)


def shown(path: Path) -> str:
    """A path of the command line, for people."""
    return printable(os.fsencode(path))


def source_error(error: OSError, path: bytes) -> SourceError:
    """What a failed system call on a part of the source means to a person."""
    if isinstance(error, FileNotFoundError):
        return SourceError(f"{printable(path)} vanished while the image was built", hint="build from a tree at rest")
    if isinstance(error, PermissionError):
        return SourceError(
            f"{printable(path)} cannot be read: {error.strerror}", hint="run as root, or leave it out with --exclude"
        )
    if error.errno in _OTHER_KIND:
        return changed(path)
    return SourceError(f"{printable(path)} cannot be read: {error.strerror}")


def changed(path: bytes) -> SourceError:
    return SourceError(f"{printable(path)} changed while the image was built", hint="build from a tree at rest")
