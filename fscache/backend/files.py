"""Blobs in local folders: ``DIR/<blob id>``.

The keeper opens them (they may be readable to root alone) and the worker reads through the descriptor.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ...erofs import verity
from ...erofs.errors import BackendError, FormatError
from ...erofs.record import Buffer


class LocalBlob:
    """An open blob, for several threads. Owns the descriptor, which is closed with the last reference to it."""

    label = "a local file"

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def read_at(self, offset: int, length: int) -> Buffer:
        buffer = bytearray(length)
        view, done = memoryview(buffer), 0
        while done < length:
            try:
                got = os.preadv(self.fd, [view[done:]], offset + done)
            except OSError as error:
                raise BackendError(
                    f"reading {length} bytes at {offset}: {os.strerror(error.errno or errno.EIO)}", retryable=False
                ) from None
            if not got:
                raise BackendError(
                    f"blob file ends at byte {offset + done}, {length - done} bytes early", retryable=False
                )
            done += got
        return buffer

    def __del__(self) -> None:
        os.close(self.fd)


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
