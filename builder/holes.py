"""The holes of sparse files, which need not be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from ..erofs.record import round_up
from .descent import Files
from .paths import changed, source_error
from .tree import Node, Stamp


def extents(files: Files, node: Node, chunk_size: int) -> Iterator[tuple[int, int, bool]]:
    """A regular file as (offset, length, is it a hole), cut at whole chunks and without gaps.

    A run of hole is either whole chunks or the file's last, partial chunk alone.
    SourceError when the file cannot be opened or is not the one that was listed.
    """
    if not node.sparse:
        yield 0, node.size, False
        return
    fd = files.open(node.path)
    try:
        if Stamp.of(os.fstat(fd)) != node.stamp:
            raise changed(node.path)
        data = list(_data(fd, node.size, chunk_size))
    except OSError as error:
        raise source_error(error, node.path) from None
    finally:
        os.close(fd)
    end = 0
    for start, stop in [*data, (node.size, node.size)]:
        whole = start - start % chunk_size
        if whole > end:
            yield end, whole - end, True
        if start > max(whole, end):
            yield whole, start - whole, True
        if stop > start:
            yield start, stop - start, False
        end = stop


def _data(fd: int, size: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    """Where the file has data: (first byte, first byte behind it), widened to chunks and joined where they meet."""
    start = stop = 0
    while stop < size:
        try:
            found = os.lseek(fd, stop, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # nothing but hole from here on
        begin = found - found % chunk_size
        if begin > stop:
            if stop > start:
                yield start, stop
            start = begin
        stop = min(round_up(os.lseek(fd, found, os.SEEK_HOLE), chunk_size), size)
    if stop > start:
        yield start, stop
