"""The plan of a store: which chunks fill which segment of one blob, with the digest each must have.

A plan is all that a worker needs to fill segments, as fixed-size records, so that it can read the few it
needs at a time. It is written once, by ``prepare``. Its SHA-256 names the store: two images share a store
exactly when they agree on every offset and every digest, so no image can spoil another's bytes.

File: header (128 bytes), segment records, chunk records in CI order.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import ClassVar, NamedTuple, Protocol

from ..erofs.blobmeta import ChunkInfoFlags
from ..erofs.errors import FormatError
from ..erofs.ids import blob_id
from ..erofs.localize import BlobMap
from ..erofs.ondisk import BLOCK_SIZE
from ..erofs.rafs import DIGEST_SIZE, MAX_CHUNK_SIZE, BlobFeatures, Compression, DigestAlgo
from ..erofs.record import Record, little_endian, round_up
from ..erofs.segments import Segment

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


_SEGMENT = struct.Struct("<QIII12x")  # start, size, first chunk, chunks
_CHUNK = struct.Struct("<32sQQIIIII4x")
assert PlanHeader.size() == 128
assert _SEGMENT.size == 32
assert _CHUNK.size == 72

_NO_DIGEST = bytes(DIGEST_SIZE)
_COMPRESSED, _BATCH = ChunkInfoFlags.COMPRESSED.value, ChunkInfoFlags.BATCH.value


def pack_plan(blob: BlobMap) -> bytearray:
    """The plan file of one blob."""
    entry = blob.entry
    header = PlanHeader(
        magic=MAGIC,
        blob_id=blob.blob_id.encode(),
        compression=entry.compression,
        digest_algo=entry.digest_algo,
        segments=len(blob.segments),
        chunks=len(blob.digests),
        chunk_size=entry.chunk_size,
    )
    coffs, csizes, uoffs, usizes, flags, data = blob.chunks
    digests = blob.digests
    fetched, units, starts, kinds = csizes[:], usizes[:], array("I", bytes(4 * len(flags))), array("I", flags)
    if entry.features & BlobFeatures.CHUNK_INFO_V2 or not all(digests):
        for index, (digest, flag) in enumerate(zip(digests, flags, strict=True)):
            if digest is None:
                fetched[index], units[index], kinds[index] = 0, 0, PlanFlags.UNUSED.value
            elif flag & _BATCH:
                fetched[index], units[index], starts[index], kinds[index] = _unit(blob, usizes[index], data[index])
            else:
                kinds[index] = flag & _COMPRESSED
    segments = [_SEGMENT.pack(s.start, s.size, s.first, s.chunks) for s in blob.segments]
    head = b"".join([header.pack(), *segments])
    # Whole columns of _CHUNK, as words of 8 and of 4 bytes: much faster than record by record.
    plan = bytearray(len(head) + _CHUNK.size * len(digests))
    plan[: len(head)] = head
    records = memoryview(plan)[len(head) :]
    wide, narrow = records.cast("Q"), records.cast("I")
    digest_words = memoryview(b"".join([digest or _NO_DIGEST for digest in digests])).cast("Q")
    for place in range(4):
        wide[place::9] = digest_words[place::4]
    for place, column in ((4, coffs), (5, uoffs)):
        wide[place::9] = little_endian(column[:])
    for place, column in ((12, fetched), (13, usizes), (14, kinds), (15, units), (16, starts)):
        narrow[place::18] = little_endian(column[:])
    return plan


def _unit(blob: BlobMap, size: int, data: int) -> tuple[int, int, int, int]:
    """What a plan says of a batch member of ``size`` bytes: bytes to fetch, unit size, unit offset, flags."""
    number, start = data >> 32, data & 0xFFFFFFFF
    if number >= len(blob.batches):
        raise FormatError(f"blob {blob.blob_id}: a chunk names batch {number} of {len(blob.batches)}")
    unit = blob.batches[number]
    if start + size > unit.uncompressed_size or unit.uncompressed_size > blob.entry.chunk_size:
        raise FormatError(f"blob {blob.blob_id}: a chunk lies outside its batch")
    if unit.compressed_size > MAX_CHUNK_SIZE:
        raise FormatError(f"blob {blob.blob_id}: a batch of {unit.compressed_size} compressed bytes")
    kind = PlanFlags.BATCH
    if unit.compressed_size != unit.uncompressed_size:
        kind |= PlanFlags.COMPRESSED
    return unit.compressed_size, unit.uncompressed_size, start, kind.value


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
        raw = os.pread(fd, header.segments * _SEGMENT.size, PlanHeader.size())
        self.segments = [
            Segment(first, count, start, size) for start, size, first, count in _SEGMENT.iter_unpack(raw)
        ]
        self._chunks = PlanHeader.size() + len(raw)

    @property
    def size(self) -> int:
        """Bytes of all segments together."""
        return sum(s.size for s in self.segments)

    def chunks(self, segment: int) -> Iterator[PlanChunk]:
        """The chunks of one segment, in order."""
        first, count = self.segments[segment][:2]
        raw = os.pread(self._fd, count * _CHUNK.size, self._chunks + first * _CHUNK.size)
        return map(PlanChunk._make, _CHUNK.iter_unpack(raw))

    def __del__(self) -> None:
        os.close(self._fd)
