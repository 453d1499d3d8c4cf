"""The plan of a store: which chunks fill which segment of one blob, with the digest each must have.

A plan is all that a worker needs to fill segments, as fixed-size records, so that it can read the few it
needs at a time. It is written once, by ``prepare``. Its SHA-256 names the store: two images share a store
exactly when they agree on every offset and every digest, so no image can spoil another's bytes.

File: header (128 bytes), segment records, chunk records in CI order.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import ClassVar, NamedTuple, Protocol

from ...erofs.blobmeta import ChunkInfoFlags
from ...erofs.errors import FormatError
from ...erofs.ids import blob_id
from ...erofs.ondisk import BLOCK_SIZE
from ...erofs.rafs import DIGEST_SIZE, Compression, DigestAlgo
from ...erofs.record import Record, round_up
from ...erofs.segments import Segment

MAGIC = b"NEPLAN01"


class PlanFlags(IntFlag):
    """How a chunk is stored."""

    COMPRESSED = 0x1
    BATCH = 0x2  # a piece of a unit that is compressed as a whole
    UNUSED = 0x4  # this image has no use for it: never fetched
    UNVERIFIED = 0x8  # no digest is known


@dataclass(frozen=True, slots=True)
class PlanHeader(Record):
    LAYOUT: ClassVar = struct.Struct("<8s64sIIIII36x")

    magic: bytes
    blob_id: bytes
    compression: int
    digest_algo: int
    segments: int
    chunks: int
    chunk_size: int


class PlanChunk(NamedTuple):
    """One chunk. ``compressed_*`` is the unit to fetch; a batch member lies at ``unit_offset`` in its decoded
    ``unit_size`` bytes."""

    digest: bytes
    compressed_offset: int
    uncompressed_offset: int
    compressed_size: int
    uncompressed_size: int
    flags: int
    unit_size: int
    unit_offset: int


SEGMENT = struct.Struct("<QIII12x")  # start, size, first chunk, chunks
CHUNK = struct.Struct("<32sQQIIIII4x")
assert PlanHeader.size() == 128
assert SEGMENT.size == 32
assert CHUNK.size == 72

_NO_DIGEST = bytes(DIGEST_SIZE)
_COMPRESSED, _BATCH = ChunkInfoFlags.COMPRESSED.value, ChunkInfoFlags.BATCH.value


class AnyPlan(Protocol):
    """What filling needs to know of a plan."""

    segments: list[Segment]
    digest_algo: DigestAlgo
    compression: Compression
    blob_id: str

    @property
    def size(self) -> int: ...

    def chunks(self, segment: int) -> Iterator[PlanChunk]: ...


class RawPlan:
    """The plan of a file that is served as it is: a bootstrap, for the kernel to read as it needs it."""

    def __init__(self, name: str, size: int, segment_size: int) -> None:
        self.blob_id = name
        self.size = size
        self.compression, self.digest_algo = Compression.NONE, DigestAlgo.SHA256
        self.segments = [
            Segment(number, 1, start, round_up(min(segment_size, size - start), BLOCK_SIZE))
            for number, start in enumerate(range(0, size, segment_size))
        ]

    def chunks(self, segment: int) -> Iterator[PlanChunk]:
        """One chunk a segment."""
        start = self.segments[segment].start
        length = min(self.segments[segment].size, self.size - start)
        yield PlanChunk(bytes(DIGEST_SIZE), start, start, length, length, PlanFlags.UNVERIFIED.value, length, 0)


class Plan:
    """A plan file, open for reading. Owns the descriptor, which is closed with the last reference to it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        header = PlanHeader.unpack(os.pread(fd, PlanHeader.size(), 0))
        if header.magic != MAGIC:
            raise FormatError("not a plan file of this version")
        self.blob_id: str = blob_id(header.blob_id.decode("ascii", "replace"))
        self.compression = Compression(header.compression)
        self.digest_algo = DigestAlgo(header.digest_algo)
        self.chunk_size = header.chunk_size
        raw = os.pread(fd, header.segments * SEGMENT.size, PlanHeader.size())
        self.segments = [Segment(first, count, start, size) for start, size, first, count in SEGMENT.iter_unpack(raw)]
        self._chunks = PlanHeader.size() + len(raw)

    @property
    def size(self) -> int:
        """Bytes of all segments together."""
        return sum(s.size for s in self.segments)

    def chunks(self, segment: int) -> Iterator[PlanChunk]:
        """The chunks of one segment, in order."""
        first, count = self.segments[segment][:2]
        raw = os.pread(self._fd, count * CHUNK.size, self._chunks + first * CHUNK.size)
        return map(PlanChunk._make, CHUNK.iter_unpack(raw))

    def __del__(self) -> None:
        os.close(self._fd)
