"""The plan of a store: which chunks fill which segment of one blob, with the digest each must have.

A plan is all that a worker needs to fill segments, as fixed-size records, so that it can read the few it
needs at a time. It is written once, by ``prepare``. Its SHA-256 names the store: two images share a store
exactly when they agree on every offset and every digest, so no image can spoil another's bytes.

File: header (128 bytes), segment records, chunk records in CI order.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import ClassVar, NamedTuple, Protocol

from ...erofs.errors import FormatError
from ...erofs.ids import blob_id
from ...erofs.ondisk import BLOCK_SIZE
from ...erofs.rafs import DIGEST_SIZE, MAX_CHUNKS, Compression, DigestAlgo
from ...erofs.record import Record, round_up
from ...erofs.segments import MAX_DEVICES, Segment
from ..kernel.fd import Fd

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


class AnyPlan(Protocol):
    """What filling needs to know of a plan."""

    segments: list[Segment]
    digest_algo: DigestAlgo
    compression: Compression
    blob_id: str

    @property
    def size(self) -> int: ...

    def chunks(self, segment: int, first: int = 0, most: int = MAX_CHUNKS) -> Iterator[PlanChunk]:
        """Of one segment from its chunk ``first`` on, in order, so many at most."""
        ...


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

    def chunks(self, segment: int, first: int = 0, most: int = 1) -> Iterator[PlanChunk]:
        """One chunk a segment."""
        if first or not most:
            return
        start = self.segments[segment].start
        length = min(self.segments[segment].size, self.size - start)
        yield PlanChunk(bytes(DIGEST_SIZE), start, start, length, length, PlanFlags.UNVERIFIED.value, length, 0)


class Plan:
    """A plan file, open for reading, whose header and segments were checked. Owns the descriptor.

    Whoever wrote it is not believed: any bytes that are no plan are a FormatError.
    """

    def __init__(self, fd: Fd) -> None:
        self._fd = fd
        size = os.fstat(fd.fd).st_size
        header = PlanHeader.unpack(os.pread(fd.fd, PlanHeader.size(), 0))
        if header.magic != MAGIC:
            raise FormatError("not a plan file of this version")
        self.blob_id: str = blob_id(header.blob_id.decode("ascii", "replace"))
        try:
            self.compression = Compression(header.compression)
            self.digest_algo = DigestAlgo(header.digest_algo)
        except ValueError as error:
            raise FormatError(f"damaged plan: {error}") from None
        self._chunks = PlanHeader.size() + header.segments * SEGMENT.size
        if (
            not 0 < header.segments <= MAX_DEVICES
            or not 0 < header.chunks <= MAX_CHUNKS + 1
            or size != self._chunks + header.chunks * CHUNK.size
        ):
            raise FormatError(f"damaged plan: {header.segments} segments, {header.chunks} chunks in {size} bytes")
        raw = os.pread(fd.fd, header.segments * SEGMENT.size, PlanHeader.size())
        self.segments = [Segment(first, count, start, size) for start, size, first, count in SEGMENT.iter_unpack(raw)]
        _check_segments(self.segments, header.chunks)

    @property
    def size(self) -> int:
        """Bytes of all segments together."""
        return sum(s.size for s in self.segments)

    def key(self) -> str:
        """The name of the store that has this plan, as the file is now."""
        with open(self._fd.fd, "rb", closefd=False) as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()

    def chunks(self, segment: int, first: int = 0, most: int = MAX_CHUNKS) -> Iterator[PlanChunk]:
        """As of ``AnyPlan``; FormatError when the file does not have them any more."""
        before, count = self.segments[segment][:2]
        size = max(0, min(count - first, most)) * CHUNK.size
        try:
            raw = os.pread(self._fd.fd, size, self._chunks + (before + first) * CHUNK.size)
        except OSError as error:
            raise FormatError(f"damaged plan: {error.strerror}") from None
        if len(raw) < size:
            raise FormatError("damaged plan: it was cut off")
        return map(PlanChunk._make, CHUNK.iter_unpack(raw))


def _check_segments(segments: list[Segment], chunks: int) -> None:
    """One behind the other without a gap, in whole blocks, with every chunk in one of them."""
    first = start = 0
    for segment in segments:
        if (segment.first, segment.start) != (first, start) or segment.size % BLOCK_SIZE or not segment.size:
            raise FormatError("damaged plan: its segments do not follow each other")
        if not segment.chunks:
            raise FormatError("damaged plan: a segment without chunks")
        first, start = first + segment.chunks, start + segment.size
    if first != chunks:
        raise FormatError(f"damaged plan: {chunks} chunks, of which its segments have {first}")
