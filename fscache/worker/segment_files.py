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
from ..state.layout import segment_name
from ..state.plan import AnyPlan, PlanChunk, PlanFlags
from .store import PIECE, ZEROS, OnPiece, SegmentWriter

_IOV_MAX = 1000
_UNUSED = PlanFlags.UNUSED.value


class SegmentFiles:
    """One file a segment, in one folder. The law: a file starts with size 0 and grows forward only, by bytes
    whose digest was verified. Its size is its fill state; nothing else is written down.

    ``trusted`` is false when a crash may have damaged what is there: then it counts only once verified.
    """

    def __init__(self, folder: Fd, *, trusted: bool) -> None:
        self._folder = folder
        self.trusted = trusted

    def filled(self, plan: AnyPlan) -> bytearray:
        state = bytearray(len(plan.segments))
        if self.trusted:
            for number, segment in enumerate(plan.segments):
                # One that somebody has removed is not there, and filling it will say so.
                with contextlib.suppress(FileNotFoundError):
                    size = os.stat(segment_name(number), dir_fd=self._folder.fd).st_size
                    state[number] = size >= segment.size
        return state

    def open(self, number: int, segment: Segment, on_piece: OnPiece) -> SegmentWriter:
        # It exists, because prepare made it.
        fd = os.open(segment_name(number), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._folder.fd)
        return _FileWriter(fd, segment, on_piece, trusted=self.trusted)

    def sync(self) -> None:
        sync_filesystem(self._folder.fd)


class _FileWriter:
    """Appends verified chunks to a segment file."""

    def __init__(self, fd: int, segment: Segment, on_piece: OnPiece, *, trusted: bool) -> None:
        self._fd, self._segment, self._on_piece, self._trusted = fd, segment, on_piece, trusted
        self._ends: list[int] = []  # where each missing chunk ends, padding included, from the segment's start
        self._parts: list[Buffer] = []
        self._written = self._end = 0

    def missing(self, chunks: Sequence[PlanChunk], digest: DigestFunction) -> list[PlanChunk]:
        size = self._segment.size
        ends = [c.uncompressed_offset - self._segment.start for c in chunks[1:]] + [size]
        present = os.fstat(self._fd).st_size
        if present > size:
            os.ftruncate(self._fd, size)
            present = size
        # Go on behind the last whole chunk that is there.
        there = next((i for i, end in enumerate(ends) if end > present), len(chunks))
        if not self._trusted:
            there = self._count_intact(chunks[:there], ends, digest)
        if there:
            self._written = self._end = ends[there - 1]
            self._on_piece(self._written)
        self._ends = ends[there:]
        self._ends.reverse()
        return list(chunks[there:])

    def _count_intact(self, chunks: Sequence[PlanChunk], ends: Sequence[int], digest: DigestFunction) -> int:
        """How many chunks from the segment's start are on disk just as they should be."""
        at = 0
        for number, (chunk, end) in enumerate(zip(chunks, ends, strict=False)):
            raw = memoryview(os.pread(self._fd, end - at, at))
            body, padding = raw[: chunk.uncompressed_size], raw[chunk.uncompressed_size :]
            right = not any(body) if chunk.flags & _UNUSED else digest(body) == chunk.digest
            if not right or len(raw) != end - at or any(padding):
                return number
            at = end
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
            done = os.pwritev(self._fd, self._parts, self._written)
            self._written += done
            if self._written < self._end:
                self._parts = [memoryview(b"".join(self._parts))[done:]]
        self._parts = []
        self._on_piece(self._written)

    def close(self) -> None:
        os.close(self._fd)
