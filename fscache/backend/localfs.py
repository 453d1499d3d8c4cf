"""Blobs in local folders: ``DIR/<blob id>``.

The keeper opens them (they may be readable to root alone) and the worker reads through the descriptor.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ...erofs import verity
from ...erofs.errors import BackendError, BlobNotFoundError, FormatError
from ...erofs.ids import BlobId
from ...erofs.record import Buffer


def open_blob(directories: Sequence[str], name: BlobId) -> int:
    """A read-only descriptor of the first non-empty ``DIR/<name>``; an empty file counts as missing, as in nydusd.

    Raises:
        BlobNotFoundError: none of the folders has it.
        BackendError: it is there and cannot be opened.
    """
    for directory in directories:
        path = os.path.join(directory, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BackendError(f"blob {path}: {error.strerror}", retryable=False) from None
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            return fd
        os.close(fd)
    raise BlobNotFoundError(
        f"blob {name} is not in {' or '.join(directories)}", hint="name its folder with --blob-dir"
    )


@contextmanager
def mapped(fd: int) -> Iterator[memoryview]:
    """The bytes of an open file that is not empty."""
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as data, memoryview(data) as view:
        yield view


def identify(fd: int) -> tuple[str, str]:
    """SHA-256 (hex) and identity of an open bootstrap; FormatError for an empty one."""
    if not os.fstat(fd).st_size:
        raise FormatError("the bootstrap is empty")
    with mapped(fd) as data:
        return hashlib.sha256(data).hexdigest(), verity.identity(data)


def write_all(fd: int, data: Buffer, offset: int) -> None:
    """Write all of it at a position of a file."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
