"""Looking again at what was verified before: disks forget, and people write where they should not."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ...erofs.digest import digest_function
from ...erofs.ondisk import BLOCK_SIZE
from ...erofs.rafs import MAX_CHUNK_SIZE
from ...erofs.record import round_up
from ..kernel.fd import Fd
from ..proto.verifier import NO_FILE, PIECE
from ..state.plan import Plan, PlanChunk, PlanFlags
from .store import ZEROS

_AT_ONCE = 4096  # chunks of a plan that are read from it together
_MOST = MAX_CHUNK_SIZE + BLOCK_SIZE  # bytes that a chunk can take
# What says that a file was removed, or that there is something else in its place.
_NOT_OURS = (errno.ENOENT, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM)
_LOST = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)  # what a disk says that has lost something


class Finding(NamedTuple):
    """Bytes that a segment has, how many of its first are right, how many have no digest, and which file that is."""

    bytes: int
    good: int
    unknown: int
    inode: int


class Budget:
    """So many bytes a second, over the whole time: who was slow may not hurry afterwards."""

    def __init__(self, rate: int) -> None:
        self._rate, self._free_at = rate, 0.0

    def spend(self, size: int) -> None:
        """Wait until that much more may be read."""
        now = time.monotonic()
        start = max(now, self._free_at)
        self._free_at = start + size / self._rate
        time.sleep(start - now)


class Held(NamedTuple):
    """Where a segment's bytes are: in ``file`` from byte ``base`` on, and of these the ``extents``, in bytes from the
    segment's start."""

    file: Fd
    base: int
    extents: list[tuple[int, int]]


def scrub(
    plan: Plan, look: Callable[[int], Held], first: int, budget: Budget, wanted: Callable[[], bool]
) -> Iterator[tuple[int, Finding | str]]:
    """Each segment from ``first`` on, and what was found, or why it cannot be looked at; OSError when that says
    nothing of its file.

    Args:
        look: opens a segment.
        wanted: whether to go on.
    """
    checker = _Checker(plan, budget)
    for number in range(first, len(plan.segments)):
        if not wanted():
            return
        try:
            held = look(number)
            with held.file:
                found: Finding | str = checker.check(number, held)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            found = NO_FILE
        yield number, found


class _Checker:
    """Compares segments with a plan. Reads whole blocks to memory that starts with one (O_DIRECT)."""

    def __init__(self, plan: Plan, budget: Budget) -> None:
        self._plan, self._budget = plan, budget
        self._digest = digest_function(plan.digest_algo)
        self._buffer = mmap.mmap(-1, PIECE)  # of the segment that is looked at: its bytes from
        self._start = self._end = 0  # here to there

    def check(self, number: int, held: Held) -> Finding:
        """What is found in a segment; OSError for what says nothing of the disk."""
        size, unknown, self._end = sum(end - start for start, end in held.extents), 0, 0
        inode = os.fstat(held.file.fd).st_ino
        for chunk, start, end in self._chunks(number):
            if not any(first <= start and end <= last for first, last in held.extents):
                continue  # it is not there, or a part of it
            if end - start > _MOST or not self._is_right(chunk, self._read(held, start, end)):
                return Finding(size, min(start, size), unknown, inode)
            if chunk.flags & PlanFlags.UNVERIFIED:
                unknown += chunk.uncompressed_size
        return Finding(size, size, unknown, inode)

    def _chunks(self, number: int) -> Iterator[tuple[PlanChunk, int, int]]:
        """Chunks of a segment that its image uses, and the blocks that each takes in it: from byte, to byte."""
        segment = self._plan.segments[number]
        for first in range(0, segment.chunks, _AT_ONCE):
            for chunk in self._plan.chunks(number, first, _AT_ONCE):
                if not chunk.flags & PlanFlags.UNUSED:
                    start = chunk.uncompressed_offset - segment.start
                    yield chunk, start, round_up(start + chunk.uncompressed_size, BLOCK_SIZE)

    def _is_right(self, chunk: PlanChunk, view: memoryview) -> bool:
        data, padding = view[: chunk.uncompressed_size], view[chunk.uncompressed_size :]
        if len(data) < chunk.uncompressed_size or padding != ZEROS[: len(padding)]:
            return False
        return bool(chunk.flags & PlanFlags.UNVERIFIED) or self._digest(data) == chunk.digest

    def _read(self, held: Held, start: int, end: int) -> memoryview:
        """Bytes ``start`` to ``end`` of a segment; fewer where the file ends, or the disk does not give them."""
        if not self._start <= start <= end <= self._end:
            self._start = self._end = start - start % BLOCK_SIZE
            self._fill(held, max(PIECE, round_up(end, BLOCK_SIZE) - self._start))
        return memoryview(self._buffer)[start - self._start : min(end, self._end) - self._start]

    def _fill(self, held: Held, room: int) -> None:
        if room > len(self._buffer):
            self._buffer = mmap.mmap(-1, room)
        while (got := self._end - self._start) < room and not got % BLOCK_SIZE:
            try:
                done = os.preadv(held.file.fd, [memoryview(self._buffer)[got:room]], held.base + self._end)
            except OSError as error:
                if error.errno not in _LOST:
                    raise
                return
            if not done:
                return
            self._end += done
            self._budget.spend(done)
