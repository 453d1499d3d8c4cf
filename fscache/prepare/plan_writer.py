"""Writing the plan of a blob (``state/plan.py``)."""

from __future__ import annotations

from array import array

from ...erofs import unit
from ...erofs.localize import BlobMap
from ...erofs.rafs import DIGEST_SIZE
from ...erofs.record import little_endian
from ..state.plan import CHUNK, MAGIC, SEGMENT, PlanFlags, PlanHeader

_NO_DIGEST = bytes(DIGEST_SIZE)
assert (PlanFlags.COMPRESSED, PlanFlags.BATCH) == (unit.COMPRESSED, unit.BATCH)


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
    digests = blob.digests
    fetched, units, starts = (column[:] for column in blob.units[:3])
    kinds = array("I", blob.units.flags)
    if None in digests:
        for index, digest in enumerate(digests):
            if digest is None:
                fetched[index], units[index], starts[index], kinds[index] = 0, 0, 0, PlanFlags.UNUSED.value
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
    for place, column in ((4, blob.chunks.compressed_offset), (5, blob.chunks.uncompressed_offset)):
        wide[place::9] = little_endian(column[:])
    sizes = blob.chunks.uncompressed_size
    for place, column in ((12, fetched), (13, sizes), (14, kinds), (15, units), (16, starts)):
        narrow[place::18] = little_endian(column[:])
    return plan
