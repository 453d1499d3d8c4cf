"""Where bytes come from: a size and positioned reads, whatever lies behind."""

from __future__ import annotations

import io
import os
from typing import BinaryIO, Protocol

from .errors import FormatError
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


class FileSource:
    """A seekable binary file object. Not for several threads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, io.SEEK_END)

    def size(self) -> int:
        return self._size

    def read_at(self, offset: int, length: int) -> Buffer:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise FormatError(f"bytes {offset}..{offset + length} lie outside {self._size} bytes")
        self._file.seek(offset)
        data = self._file.read(length)
        if len(data) != length:
            raise FormatError(f"only {len(data)} of {length} bytes at byte {offset}")
        return data


class FdSource:
    """An open descriptor, read with pread; the caller keeps and closes it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read_at(self, offset: int, length: int) -> Buffer:
        if offset < 0 or length < 0:
            raise FormatError(f"bytes {offset}..{offset + length} do not exist")
        parts = []
        while length:
            part = os.pread(self._fd, length, offset)
            if not part:
                raise FormatError(f"file ends {length} bytes early, at byte {offset}")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
