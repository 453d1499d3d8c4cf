"""Writing the plan of a blob (``state/plan.py``)."""

from __future__ import annotations

from array import array

from ...erofs.blobmeta import ChunkInfoFlags
from ...erofs.errors import FormatError
from ...erofs.localize import BlobMap
from ...erofs.rafs import DIGEST_SIZE, MAX_CHUNK_SIZE, BlobFeatures
from ...erofs.record import little_endian
from ..state.plan import CHUNK, MAGIC, SEGMENT, PlanFlags, PlanHeader

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
    segments = [SEGMENT.pack(s.start, s.size, s.first, s.chunks) for s in blob.segments]
    head = b"".join([header.pack(), *segments])
    # Whole columns of CHUNK, as words of 8 and of 4 bytes: much faster than record by record.
    plan = bytearray(len(head) + CHUNK.size * len(digests))
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
