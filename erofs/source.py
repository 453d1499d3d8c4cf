"""Where bytes come from: a size and positioned reads, whatever lies behind."""

from __future__ import annotations

import errno
import os
from typing import Protocol

from .errors import BackendError, FormatError
from .record import Buffer


class Source(Protocol):
    """Bytes at positions. Implementations may be called from several threads unless they say otherwise."""

    def size(self) -> int:
        """Length in bytes."""
        ...

    def read_at(self, offset: int, length: int) -> Buffer:
        """Exactly ``length`` bytes from byte ``offset``; a FormatError or BackendError when they cannot be had."""
        ...


class BufferSource:
    """Bytes already in memory (also an mmap)."""

    def __init__(self, buffer: Buffer) -> None:
        self._view = memoryview(buffer).cast("B")

    def size(self) -> int:
        return len(self._view)

    def read_at(self, offset: int, length: int) -> Buffer:
        if offset < 0 or length < 0 or offset + length > len(self._view):
            raise FormatError(f"bytes {offset}..{offset + length} lie outside {len(self._view)} bytes")
        return self._view[offset : offset + length]


class FdSource:
    """An open file, for several threads; the caller keeps the descriptor and closes it."""

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
                what = os.strerror(error.errno or errno.EIO)
                raise BackendError(f"reading {length} bytes at {offset}: {what}", retryable=False) from None
            if not got:
                left = length - done
                raise BackendError(f"the file ends at byte {offset + done}, {left} bytes early", retryable=False)
            done += got
        return buffer


class FileSource(FdSource):
    """An open file that this owns: its descriptor is closed with the last reference to it."""

    label = "a local file"

    def __del__(self) -> None:
        os.close(self.fd)
