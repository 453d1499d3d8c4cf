"""Units: what a blob stores in one piece, compressed as a whole or not. A unit is a chunk, or a batch of small ones.

The one place that says where a chunk is stored and what it takes to have its bytes: bounds, decoding, cutting a
member out of its batch, comparing digests.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from operator import add, gt
from typing import NamedTuple

from .blobmeta import BatchContext, ChunkColumns, ChunkInfoFlags, compressed_data_size
from .codec import codec
from .digest import DigestFunction
from .errors import CorruptError, FormatError
from .rafs import BlobEntry, BlobFeatures, Compression
from .record import Buffer
from .rules import Rule

COMPRESSED, BATCH = 0x1, 0x2  # of a unit; the first is also version 1's only flag of a chunk

_COMPRESSED, _BATCH = ChunkInfoFlags.COMPRESSED.value, ChunkInfoFlags.BATCH.value
_FOREIGN = (ChunkInfoFlags.ZRAN | ChunkInfoFlags.ENCRYPTED).value  # of blobs that are not read at all

ReadAt = Callable[[int, int], Buffer]


class Unit(NamedTuple):
    """``stored`` bytes at ``offset`` of the blob file, which are ``size`` bytes uncompressed."""

    offset: int
    stored: int
    size: int
    compressed: bool


class UnitColumns(NamedTuple):
    """The unit of each chunk, column by column: all but its offset, which is the chunk's compressed offset.

    The chunk begins at byte ``start`` of the uncompressed unit. ``flags`` are COMPRESSED and BATCH of this module.
    """

    stored: array[int]
    size: array[int]
    start: array[int]
    flags: array[int]


def find_units(chunks: ChunkColumns, batches: Sequence[BatchContext], entry: BlobEntry) -> UnitColumns:
    """Where the chunks of a blob are stored.

    FormatError (chunk-unit) unless each unit lies inside the blob's data, has no more bytes stored than it has
    uncompressed, and holds its chunks.
    """
    if entry.features & BlobFeatures.CHUNK_INFO_V2:
        units = _version_2(chunks, batches, entry)
    else:
        none = array("I", bytes(chunks.uncompressed_size.itemsize * len(chunks.flags)))
        units = UnitColumns(chunks.compressed_size, chunks.uncompressed_size, none, chunks.flags)
    limit = compressed_data_size(entry)
    if any(map(gt, units.stored, units.size)) or max(map(add, chunks.compressed_offset, units.stored)) > limit:
        for index, (offset, stored, size) in enumerate(
            zip(chunks.compressed_offset, units.stored, units.size, strict=True)
        ):
            if stored > size:
                raise _misplaced(entry, index, f"has {stored} bytes stored for {size}")
            if offset + stored > limit:
                raise _misplaced(entry, index, "ends behind the blob's data")
    return units


def _version_2(chunks: ChunkColumns, batches: Sequence[BatchContext], entry: BlobEntry) -> UnitColumns:
    """Chunk by chunk, because of what version 2 can say: batches, and plain chunks of two sizes."""
    units = UnitColumns(array("I"), array("I"), array("I"), array("B"))
    places: dict[int, int] = {}  # where each batch lies
    for index, (offset, stored, _, size, flags, data) in enumerate(chunks.rows()):
        start, whole, kind = 0, size, flags & _COMPRESSED
        if flags & _FOREIGN:
            raise _misplaced(entry, index, f"has flags {flags:#x}, of another kind of blob")
        if flags & _BATCH:
            number, start = data >> 32, data & 0xFFFF_FFFF
            if number >= len(batches):
                raise _misplaced(entry, index, f"names batch {number} of {len(batches)}")
            if places.setdefault(number, offset) != offset:
                raise _misplaced(entry, index, f"says that batch {number} lies elsewhere")
            stored, whole = batches[number]
            if whole > entry.chunk_size or start + size > whole:
                raise _misplaced(entry, index, f"lies outside its batch of {whole} bytes, or that is too large")
            kind = BATCH if stored == whole else BATCH | COMPRESSED
        if not stored or not (kind & COMPRESSED or stored == whole):
            raise _misplaced(entry, index, f"has {stored} bytes stored for {whole}, not compressed")
        for column, value in zip(units, (stored, whole, start, kind), strict=True):
            column.append(value)
    return units


def _misplaced(entry: BlobEntry, index: int, what: str) -> FormatError:
    return FormatError(f"blob {entry.blob_index}: chunk {index} {what}", rule=Rule.CHUNK_UNIT)


class Decoder:
    """Chunks out of the units of one blob, verified. Not for several threads."""

    def __init__(self, compression: Compression, digest: DigestFunction) -> None:
        self._codec, self._digest = codec(compression), digest
        # The batch decoded last: its members are asked for one after the other.
        self._batch: tuple[Unit | None, Buffer] = (None, b"")

    def chunk(self, unit: Unit, start: int, size: int, digest: bytes | None, read_at: ReadAt) -> Buffer:
        """The ``size`` bytes from byte ``start`` of a unit.

        Args:
            digest: that they must have; None when none is known.
            read_at: (offset, length) of the blob file -> its bytes; called unless the unit is at hand.

        CorruptError when the unit cannot be decoded or the digest is another; what ``read_at`` raises.
        """
        data = self._batch[1] if self._batch[0] == unit else self._decode(unit, read_at(unit.offset, unit.stored))
        if unit.size != size:
            self._batch = (unit, data)
            data = memoryview(data)[start : start + size]
        if len(data) != size or (digest is not None and self._digest(data) != digest):
            self._batch = (None, b"")
            raise CorruptError("its bytes have another digest")
        return data

    def _decode(self, unit: Unit, data: Buffer) -> Buffer:
        if not unit.compressed:
            return data
        try:
            return self._codec.decompress(data, unit.size)
        except FormatError as error:
            raise CorruptError(f"it cannot be decoded: {error.message}") from None
