"""Where verified bytes go on the cachefiles engine: an object of the kernel's cache."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import time
from collections.abc import Callable, Iterable, Sequence

from ...erofs.ondisk import BLOCK_SIZE
from ...erofs.record import round_up
from ...erofs.segments import Segment
from ..kernel.fd import Fd
from ..proto.verifier import PIECE
from ..state.plan import AnyPlan, PlanChunk, PlanFlags
from .scrub import Held
from .store import ZEROS, Bytes

_UNUSED = PlanFlags.UNUSED.value
_OBJECT_TRIES, _OBJECT_PAUSE = 20, 0.01  # an object takes no writes for a moment after it was opened


class ObjectSink:
    """An object of the kernel's cache, open for writing only. The kernel knows which blocks have data.

    Writes go to the disk directly: memory, offset and length must be multiples of a block. Nothing else can
    be written through this class, because an unaligned write is silently misplaced by some kernels (6.1).
    """

    def __init__(self, fd: Fd) -> None:
        self._fd = fd
        self._have: dict[int, int] = {}  # bytes of segments that were written since

    def filled(self, plan: AnyPlan) -> bytearray:
        extents = _extents(self._fd, 0, plan.size)
        state = bytearray(len(plan.segments))
        for number, segment in enumerate(plan.segments):
            if _overlaps(extents, segment.start, segment.start + segment.size):
                state[number] = all(_is_there(extents, chunk) for chunk in plan.chunks(number))
        return state

    def have(self, number: int, plan: AnyPlan) -> int:
        known = self._have.get(number)
        if known is None:
            start, size = plan.segments[number].start, plan.segments[number].size
            extents = _extents(self._fd, start, start + size)
            missing = (c.uncompressed_offset for c in plan.chunks(number) if not _is_there(extents, c))
            known = self._have[number] = next(missing, start + size) - start
        return known

    def write(self, number: int, segment: Segment, content: Sequence[Bytes]) -> None:
        # Every chunk starts at a block and takes whole blocks; a run of them is one write.
        run = _Run(self._fd)
        try:
            for start, data, _ in content:
                if len(data):
                    run.put(segment.start + start, data)
            run.flush()
        finally:
            run.close()
        self._have[number] = max(self._have.get(number, 0), content[-1].end)

    def held(self, number: int, plan: AnyPlan, file: Fd) -> Held:
        """A segment in the file that the object is on disk."""
        start, size = plan.segments[number].start, plan.segments[number].size
        extents = [(first - start, min(last - start, size)) for first, last in _extents(file, start, start + size)]
        return Held(file.dup(), start, extents)

    def cut(self, number: int, have: int) -> None:
        """Write anew what lies behind the first ``have`` bytes. The kernel takes what is there until then for right:
        a hole that is made under its feet it would read as zeros."""
        self._have[number] = have


class _Run:
    """Blocks that follow each other, to be written at once."""

    def __init__(self, fd: Fd) -> None:
        self._fd = fd
        self._buffer = mmap.mmap(-1, PIECE)
        self._start = self._used = 0

    def put(self, at: int, data: bytes | bytearray | memoryview) -> None:
        if at != self._start + self._used:
            self.flush()
        if not self._used:
            self._start = at
        space = round_up(len(data), BLOCK_SIZE)
        if self._used + space > len(self._buffer):
            self.flush()
            self._start = at
            if space > len(self._buffer):
                self._buffer = mmap.mmap(-1, space)
        view = memoryview(self._buffer)
        end = self._used + len(data)
        view[self._used : end] = data
        view[end : self._used + space] = ZEROS[: self._used + space - end]
        self._used += space

    def flush(self) -> None:
        view, at, left = memoryview(self._buffer), self._start, self._used
        while left:
            # Kernels before 6.1.147 and 6.12.41 may claim more than was asked for.
            done = min(left, self._write(view[self._used - left : self._used], at))
            done -= done % BLOCK_SIZE
            if not done:
                raise OSError(errno.EIO, "the kernel's cache takes no whole block")
            at += done
            left -= done
        self._start, self._used = at, 0

    def _write(self, view: memoryview, at: int) -> int:
        try:
            return _patiently(lambda: os.pwrite(self._fd.fd, view, at))
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            # That was not the moment after opening: the cache is below its limit of free space (bstop).
            raise OSError(errno.ENOSPC, "the kernel's cache is full") from None

    def close(self) -> None:
        with contextlib.suppress(BufferError):  # a write that failed just now may still be looking at it
            self._buffer.close()


def _extents(file: Fd, start: int, end: int) -> list[tuple[int, int]]:
    """Where data is: (first byte, byte behind the last) of each run of blocks."""
    out = []
    while start < end:
        try:
            start = _seek(file, start, os.SEEK_DATA)
            if start >= end:
                break
            hole = _seek(file, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOBUFS):
                break  # a hole up to the end; or the kernel is letting go of the object
            raise
        out.append((start, hole))
        start = hole
    return out


def _seek(file: Fd, start: int, whence: int) -> int:
    return _patiently(lambda: os.lseek(file.fd, start, whence))


def _patiently(call: Callable[[], int]) -> int:
    """A call on an object that may have been opened a moment ago, when the kernel is not ready for it (ENOBUFS)."""
    for _ in range(_OBJECT_TRIES):
        try:
            return call()
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        time.sleep(_OBJECT_PAUSE)
    return call()


def _overlaps(extents: Iterable[tuple[int, int]], start: int, end: int) -> bool:
    return any(first < end and last > start for first, last in extents)


def _is_there(extents: Iterable[tuple[int, int]], chunk: PlanChunk) -> bool:
    if chunk.flags & _UNUSED:
        return True
    start = chunk.uncompressed_offset
    end = start + round_up(chunk.uncompressed_size, BLOCK_SIZE)
    return any(first <= start and end <= last for first, last in extents)
