"""Files that fetched bytes land in."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ...erofs import verity
from ...erofs.errors import FormatError
from ...erofs.record import Buffer


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
