"""Work units: pieces of files, and batches of them in the bytes in which they travel to a worker and back.

A batch travels in a *slot* of shared memory. A slot begins with the reply table; behind it lies first the
request and then, written over it, the chunks as they are stored.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..erofs.rafs import DIGEST_SIZE
from ..erofs.record import round_up
from .tree import Stamp

BATCH_SIZE = 4 << 20  # bytes of files in one batch, if a chunk is not larger
MAX_PIECES = 1024
MAX_PATHS = 1 << 20  # bytes of paths in one batch
ALREADY_STORED = 0  # in place of a stored size: the digest is in the table of known digests

_COUNT = struct.Struct("<I")
_PIECE = struct.Struct("<IQQQqqQQ")  # path length, offset, length, the stamp
_FAILED = 0xFFFFFFFF
_PAGE = 4096


class Piece(NamedTuple):
    """Bytes ``offset`` to ``offset + length`` of a file, all whole chunks but for the file's last."""

    path: bytes
    stamp: Stamp
    offset: int
    length: int


class Slot:
    """One slot's memory, and how it is divided for a chunk size."""

    def __init__(self, memory: memoryview, chunk_size: int) -> None:
        table = _table_size(chunk_size)
        self._table = memory[:table]
        self.data = memory[table:]

    def write_request(self, request: bytes) -> None:
        self.data[: len(request)] = request

    def read_request(self) -> list[Piece]:
        view = self.data
        (count,) = _COUNT.unpack_from(view)
        at = _COUNT.size
        paths = at + count * _PIECE.size
        pieces = []
        for _ in range(count):
            length, offset, size, *stamp = _PIECE.unpack_from(view, at)
            pieces.append(Piece(bytes(view[paths : paths + length]), Stamp(*stamp), offset, size))
            at += _PIECE.size
            paths += length
        return pieces

    def write_reply(self, sizes: list[int], digests: list[bytes]) -> None:
        """Stored size and digest of each chunk; the stored bytes are in ``data`` already."""
        count = len(sizes)
        _COUNT.pack_into(self._table, 0, count)
        start = _COUNT.size
        self._table[start : start + 4 * count] = struct.pack(f"<{count}I", *sizes)
        start += 4 * count
        self._table[start : start + DIGEST_SIZE * count] = b"".join(digests)

    def read_reply(self) -> Iterator[tuple[int, bytes]]:
        """Stored size and digest of each chunk of a batch that has not failed."""
        (count,) = _COUNT.unpack_from(self._table)
        start = _COUNT.size
        sizes = struct.unpack_from(f"<{count}I", self._table, start)
        start += 4 * count
        digests = bytes(self._table[start : start + DIGEST_SIZE * count])
        return zip(sizes, [digests[at : at + DIGEST_SIZE] for at in range(0, len(digests), DIGEST_SIZE)], strict=True)

    @property
    def failed(self) -> bool:
        return bool(_COUNT.unpack_from(self._table)[0] == _FAILED)

    def write_failure(self, record: bytes) -> None:
        _COUNT.pack_into(self._table, 0, _FAILED)
        _COUNT.pack_into(self._table, _COUNT.size, len(record))
        self.data[: len(record)] = record

    def read_failure(self) -> bytes:
        (length,) = _COUNT.unpack_from(self._table, _COUNT.size)
        return bytes(self.data[:length])


def batch_size(chunk_size: int) -> int:
    """Bytes of files in one batch at most."""
    return max(BATCH_SIZE, chunk_size)


def slot_size(chunk_size: int) -> int:
    """Bytes of memory of one slot: no batch stores more than it reads."""
    return _table_size(chunk_size) + batch_size(chunk_size)


def _table_size(chunk_size: int) -> int:
    chunks = batch_size(chunk_size) // chunk_size + MAX_PIECES
    return round_up(_COUNT.size + chunks * (4 + DIGEST_SIZE), _PAGE)


class Request:
    """A request under construction."""

    def __init__(self) -> None:
        self.size = 0  # bytes of files
        self._heads: list[bytes] = []
        self._paths: list[bytes] = []
        self._paths_size = 0

    def add(self, path: bytes, stamp: Stamp, offset: int, length: int) -> None:
        self._heads.append(_PIECE.pack(len(path), offset, length, *stamp))
        self._paths.append(path)
        self._paths_size += len(path)
        self.size += length

    def full(self, path: bytes, length: int, limit: int) -> bool:
        """Whether one more piece belongs into another batch, of at most ``limit`` bytes of files each."""
        return bool(self._heads) and (
            self.size + length > limit or len(self._heads) == MAX_PIECES or self._paths_size + len(path) > MAX_PATHS
        )

    def pack(self) -> bytes:
        return b"".join([_COUNT.pack(len(self._heads)), *self._heads, *self._paths])
