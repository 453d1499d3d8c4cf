"""Where fetched bytes go on the fanotify engine: one file a segment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from ...erofs.digest import DigestFunction
from ...erofs.record import Buffer
from ...erofs.segments import Segment
from ..kernel.fd import Fd
from ..kernel.mount import sync_filesystem
from ..state.layout import SET_ASIDE, segment_name
from ..state.plan import AnyPlan, PlanChunk, PlanFlags
from .store import PIECE, ZEROS, OnPiece, SegmentWriter

_IOV_MAX = 1000
_UNUSED = PlanFlags.UNUSED.value


class SegmentFiles:
    """One file a segment, in one folder. The law: a file starts with size 0 and grows forward only, by bytes
    whose digest was verified. Its size is its fill state; nothing else is written down.

    What a crash of the machine may have damaged lies aside (``keeper/stores/restore.py``), and saves fetching what of
    it is still right.
    """

    def __init__(self, folder: Fd) -> None:
        self._folder = folder
        self._aside: Fd | None = None
        with contextlib.suppress(OSError):
            self._aside = Fd(os.open(SET_ASIDE, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder.fd))

    def filled(self, plan: AnyPlan) -> bytearray:
        state = bytearray(len(plan.segments))
        for number, segment in enumerate(plan.segments):
            # One that somebody has removed is not there, and filling it will say so.
            with contextlib.suppress(FileNotFoundError):
                size = os.stat(segment_name(number), dir_fd=self._folder.fd).st_size
                state[number] = size >= segment.size
        return state

    def open(self, number: int, segment: Segment, on_piece: OnPiece) -> SegmentWriter:
        # It exists, because the keeper made it.
        fd = os.open(segment_name(number), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._folder.fd)
        return _FileWriter(Fd(fd), segment, on_piece, self._set_aside(number))

    def _set_aside(self, number: int) -> Fd | None:
        if self._aside is not None:
            with contextlib.suppress(OSError):
                return Fd(os.open(segment_name(number), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._aside.fd))
        return None

    def sync(self) -> None:
        sync_filesystem(self._folder.fd)


class _FileWriter:
    """Appends verified chunks to a segment file. ``aside``: what was there before a crash, if anything was."""

    def __init__(self, file: Fd, segment: Segment, on_piece: OnPiece, aside: Fd | None) -> None:
        self._file, self._segment, self._on_piece, self._aside = file, segment, on_piece, aside
        self._ends: list[int] = []  # where each missing chunk ends, padding included, from the segment's start
        self._parts: list[Buffer] = []
        self._written = self._end = 0

    def missing(self, chunks: Sequence[PlanChunk], digest: DigestFunction) -> list[PlanChunk]:
        size = self._segment.size
        ends = [c.uncompressed_offset - self._segment.start for c in chunks[1:]] + [size]
        present = os.fstat(self._file.fd).st_size
        if present > size:
            os.ftruncate(self._file.fd, size)
            present = size
        # Go on behind the last whole chunk that is there.
        there = next((i for i, end in enumerate(ends) if end > present), len(chunks))
        if there:
            self._written = self._end = ends[there - 1]
            self._on_piece(self._written)
        self._ends = ends[there:]
        self._ends.reverse()
        if self._aside is not None:
            there += self._take_back(self._aside, chunks[there:], digest)
        return list(chunks[there:])

    def _take_back(self, aside: Fd, chunks: Sequence[PlanChunk], digest: DigestFunction) -> int:
        """Put what comes next and is intact in the file set aside; how many chunks."""
        for number, chunk in enumerate(chunks):
            if chunk.flags & _UNUSED:
                data: Buffer = ZEROS[: chunk.uncompressed_size]
            else:
                data = os.pread(aside.fd, chunk.uncompressed_size, chunk.uncompressed_offset - self._segment.start)
                if digest(data) != chunk.digest:
                    return number
            self.put(chunk, data)
        return len(chunks)

    def put(self, chunk: PlanChunk, data: Buffer) -> None:
        end = self._ends.pop()
        self._parts.append(data)
        self._end += len(data)
        if self._end < end:
            self._parts.append(ZEROS[: end - self._end])
            self._end = end
        if self._end - self._written >= PIECE or len(self._parts) >= _IOV_MAX:
            self.flush()

    def flush(self) -> None:
        if not self._parts:
            return
        while self._written < self._end:
            done = os.pwritev(self._file.fd, self._parts, self._written)
            self._written += done
            if self._written < self._end:
                self._parts = [memoryview(b"".join(self._parts))[done:]]
        self._parts = []
        self._on_piece(self._written)

    def close(self) -> None:
        self._file.close()
        if self._aside is not None:
            self._aside.close()
