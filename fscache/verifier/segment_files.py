"""Where verified bytes go on the fanotify engine: one file a segment."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence

from ...erofs.record import Buffer
from ...erofs.segments import Segment
from ..kernel.fd import Fd
from ..state.layout import segment_name
from ..state.plan import AnyPlan
from .scrub import Held
from .store import ZEROS, Bytes

_IOV_MAX = 1000


class SegmentFiles:
    """One file a segment, in one folder. The law: a file starts with size 0 and grows forward only, by bytes
    whose digest was verified. Its size is its fill state; nothing else is written down."""

    def __init__(self, folder: Fd) -> None:
        self._folder = folder

    def filled(self, plan: AnyPlan) -> bytearray:
        state = bytearray(len(plan.segments))
        for number, segment in enumerate(plan.segments):
            # One that somebody has removed is not there, and filling it will say so.
            with contextlib.suppress(FileNotFoundError):
                size = os.stat(segment_name(number), dir_fd=self._folder.fd).st_size
                state[number] = size >= segment.size
        return state

    def have(self, number: int, plan: AnyPlan) -> int:
        most = plan.segments[number].size
        size = os.stat(segment_name(number), dir_fd=self._folder.fd, follow_symlinks=False).st_size
        if size > most:  # by somebody's hand
            with self._open(number) as file:
                os.ftruncate(file.fd, most)
        return min(size, most)

    def cut(self, number: int, have: int) -> None:
        """Leave no more than its first ``have`` bytes of a segment; OSError."""
        with self._open(number) as file:
            if os.fstat(file.fd).st_size > have:
                os.ftruncate(file.fd, have)

    def held(self, number: int, plan: AnyPlan) -> Held:
        """A segment, to be read past the page cache where its filesystem can do that: what is on disk counts."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            file = Fd(os.open(segment_name(number), flags | os.O_DIRECT, dir_fd=self._folder.fd))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            file = Fd(os.open(segment_name(number), flags, dir_fd=self._folder.fd))
        status = os.fstat(file.fd)
        if not stat.S_ISREG(status.st_mode):
            file.close()
            raise OSError(errno.ENXIO, "not a file")
        size = min(status.st_size, plan.segments[number].size)
        return Held(file, 0, [(0, size)] if size else [])

    def write(self, number: int, segment: Segment, content: Sequence[Bytes]) -> None:
        parts: list[Buffer] = []
        for start, data, end in content:
            parts += [data, ZEROS[: end - start - len(data)]]
        with self._open(number) as file:
            _write_all(file, parts, content[0].start)

    def _open(self, number: int) -> Fd:
        # It exists, because the keeper made it.
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return Fd(os.open(segment_name(number), flags, dir_fd=self._folder.fd))


def _write_all(file: Fd, parts: list[Buffer], at: int) -> None:
    while parts:
        batch, parts = parts[:_IOV_MAX], parts[_IOV_MAX:]
        left = sum(map(len, batch))
        while left:
            done = os.pwritev(file.fd, batch, at)
            if not done:
                raise OSError(errno.EIO, "nothing can be written")
            at += done
            left -= done
            if left:
                batch = [memoryview(b"".join(batch))[done:]]
