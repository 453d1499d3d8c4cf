"""Files that fetched bytes land in."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ...erofs.record import Buffer


@contextmanager
def mapped(fd: int) -> Iterator[memoryview]:
    """The bytes of an open file that is not empty."""
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as data, memoryview(data) as view:
        yield view


def write_all(fd: int, data: Buffer, offset: int) -> None:
    """Write all of it at a position of a file."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
