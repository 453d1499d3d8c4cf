"""Segments: a blob's uncompressed address space cut into pieces that are fetched, filled and served one by one.

Light to import: also processes that never look into an image count segments.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import NamedTuple

from .ondisk import BLOCK_SIZE
from .record import round_up

DEFAULT_SEGMENT_SIZE = 2 << 20
MAX_DEVICES = 65_535  # device ids are 16 bits in a chunk index (erofs_fs.h, struct erofs_inode_chunk_index)


class Segment(NamedTuple):
    """A run of whole chunks: ``chunks`` of them from CI index ``first``, at bytes ``start``..``start + size``
    of the blob's uncompressed address space."""

    first: int
    chunks: int
    start: int
    size: int


def cut(offsets: array[int], uncompressed_size: int, segment_size: int) -> list[Segment]:
    """Cut a blob's uncompressed address space at chunk borders, into segments of at most ``segment_size`` bytes or of
    one chunk. ``offsets`` is where each chunk begins, rising."""
    borders = array("Q", offsets)
    borders.append(uncompressed_size)
    segments: list[Segment] = []
    first = 0
    while first < len(offsets):
        start = borders[first]
        behind = max(first + 1, bisect_right(borders, start + segment_size, first) - 1)
        segments.append(Segment(first, behind - first, start, round_up(borders[behind], BLOCK_SIZE) - start))
        first = behind
    return segments


def segment_size_for(total: int, wanted: int) -> int:
    """The smallest doubling of ``wanted`` at which ``total`` bytes need no more than half of all device ids.

    Half, because cutting at chunk borders may leave every other segment short.
    """
    while total // wanted > MAX_DEVICES // 2:
        wanted *= 2
    return wanted
