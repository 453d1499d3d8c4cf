"""Blob meta: the chunk-info (CI) array and its header, which tell where each chunk lies in a blob.

A chunk lies twice: compressed in the blob file, and uncompressed in the blob's *uncompressed address
space*, which is what the kernel sees as the blob's device. Both kinds of offset are bytes.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import ClassVar, NamedTuple

from .errors import FormatError
from .ondisk import BLOCK_BITS, BLOCK_SIZE
from .rafs import BlobEntry, BlobFeatures
from .record import Buffer, Lanes, Record, integers, round_up
from .rules import Rule

MAGIC = 0xB10BB10B
CONTEXT_SIZE = 40

_V1 = struct.Struct("<QQ")
_V2 = struct.Struct("<QQQ")
_BATCH_CONTEXT = struct.Struct("<II32x")
_COLUMNS = "QIQIBQ"  # typecodes of the fields of ChunkColumns


class ChunkInfoFlags(IntFlag):
    """Flags of a version 2 entry (version 1 has none: sizes that differ mean compressed)."""

    COMPRESSED = 0x1
    ZRAN = 0x2
    BATCH = 0x4
    ENCRYPTED = 0x8
    HAS_CRC32 = 0x10


_COMPRESSED = int(ChunkInfoFlags.COMPRESSED)  # flags stay plain integers: enum arithmetic is slow


class ChunkInfo(NamedTuple):
    """One chunk; the position in the array is its CI index. ``data`` is version 2's third word, 0 in version 1."""

    compressed_offset: int
    compressed_size: int
    uncompressed_offset: int
    uncompressed_size: int
    flags: int
    data: int


class ChunkColumns(NamedTuple):
    """All chunks of a blob, an array for each field of ``ChunkInfo``: whole columns take little time and memory."""

    compressed_offset: array[int]
    compressed_size: array[int]
    uncompressed_offset: array[int]
    uncompressed_size: array[int]
    flags: array[int]
    data: array[int]

    def row(self, index: int) -> ChunkInfo:
        """One chunk."""
        return ChunkInfo(*[column[index] for column in self])

    @classmethod
    def of(cls, columns: Iterable[Iterable[int]]) -> ChunkColumns:
        """From columns of any kind, in the order of the fields."""
        return cls(*[array(kind, column) for kind, column in zip(_COLUMNS, columns, strict=True)])

    def rows(self) -> Iterator[ChunkInfo]:
        """Chunk by chunk."""
        return map(ChunkInfo, *self)


class BatchContext(NamedTuple):
    """One batch: several small chunks compressed as one unit (sizes in bytes)."""

    compressed_size: int
    uncompressed_size: int


@dataclass(frozen=True, slots=True)
class MetaHeader(Record):
    """The 4096 bytes behind the CI array in the blob file."""

    LAYOUT: ClassVar = struct.Struct("<IIIIQQQQQI4032xI")

    magic: int
    features: int
    ci_compression: int
    ci_entries: int
    ci_offset: int
    ci_compressed_size: int
    ci_uncompressed_size: int
    context_offset: int
    context_size: int
    context_count: int
    magic2: int


assert MetaHeader.size() == 4096


def header_for(entry: BlobEntry) -> MetaHeader:
    """The header that belongs to a blob table entry without contexts (no batch, no zran)."""
    return MetaHeader(
        magic=MAGIC,
        features=entry.features,
        ci_compression=entry.ci_compression,
        ci_entries=entry.chunk_count,
        ci_offset=entry.ci_offset,
        ci_compressed_size=entry.ci_compressed_size,
        ci_uncompressed_size=entry.ci_uncompressed_size,
        context_offset=0,
        context_size=0,
        context_count=0,
        magic2=MAGIC,
    )


def check_header(header: MetaHeader, entry: BlobEntry) -> None:
    """FormatError (ci-header) when a blob's header contradicts the bootstrap's blob table."""
    if header.magic != MAGIC or header.magic2 != MAGIC:
        raise FormatError(f"blob {entry.blob_index}: no magic number in the chunk-info header", rule=Rule.CI_HEADER)
    for name in ("ci_compression", "ci_offset", "ci_compressed_size", "ci_uncompressed_size"):
        here, there = getattr(header, name), getattr(entry, name)
        if here != there:
            raise FormatError(
                f"blob {entry.blob_index}: {name} is {here} in the blob, {there} in the bootstrap",
                rule=Rule.CI_HEADER,
            )
    if header.ci_entries != entry.chunk_count:
        raise FormatError(
            f"blob {entry.blob_index}: {header.ci_entries} chunks in the blob, {entry.chunk_count} in the bootstrap",
            rule=Rule.CI_HEADER,
        )


def entry_size(features: int) -> int:
    """Bytes of one CI entry."""
    return _V2.size if features & BlobFeatures.CHUNK_INFO_V2 else _V1.size


def pack_chunk_info_v1(chunks: Iterable[tuple[int, int, int, int]]) -> bytes:
    """A version 1 CI array from (compressed offset, compressed size, uncompressed offset, uncompressed size)."""
    out = bytearray()
    pack = _V1.pack
    for coff, csize, uoff, usize in chunks:
        u, c = usize - 1, csize - 1
        out += pack(
            (u & 0xFFFFF) << 44 | (u >> 20) << 8 | uoff,
            (c & 0xFFFFF) << 44 | (c >> 20) << 40 | coff,
        )
    return bytes(out)


def pack_chunk_info_v2(chunks: Iterable[ChunkInfo]) -> bytes:
    """A version 2 CI array."""
    return b"".join(
        [
            _V2.pack(flags << 56 | (usize - 1) << 32 | uoff >> 12, csize << 40 | coff, data)
            for coff, csize, uoff, usize, flags, data in chunks
        ]
    )


def chunk_columns(raw: Buffer, count: int, features: int) -> ChunkColumns:
    """The entries of an uncompressed CI array, unchecked; use ``check_dense`` for what must hold between them."""
    size = entry_size(features) * count
    if size > len(raw):
        raise FormatError(f"chunk-info array of {len(raw)} bytes cannot hold {count} entries", rule=Rule.CI_ARRAY)
    entries, words = integers("Q", memoryview(raw)[:size]), entry_size(features) // 8
    lanes = Lanes(count)
    each = lanes.each
    u, c = lanes.load(entries[0::words]), lanes.load(entries[1::words])
    coffs = c & each(0xFF_FFFF_FFFF)
    if features & BlobFeatures.CHUNK_INFO_V2:
        csizes = c >> 40 & each(0xFF_FFFF)
        usizes = (u >> 32 & each(0xFF_FFFF)) + each(1)
        uoffs = (u & each(0xFFFF_FFFF)) << BLOCK_BITS
        flags = u >> 56 & each(0xFF)
        data = array("Q", entries[2::words].tobytes())
    else:
        csizes = (c >> 44 & each(0xF_FFFF) | c >> 20 & each(0xF0_0000)) + each(1)
        usizes = (u >> 44 & each(0xF_FFFF) | u << 12 & each(0xF0_0000)) + each(1)
        uoffs = u & each(0xFFF_FFFF_F000)
        flags = (csizes ^ usizes) + each(0x1FF_FFFF) >> 25 & each(_COMPRESSED)  # where the sizes differ
        data = array("Q", bytes(8 * count))
    return ChunkColumns(
        lanes.store("Q", coffs),
        lanes.store("I", csizes),
        lanes.store("Q", uoffs),
        lanes.store("I", usizes),
        lanes.store("B", flags),
        data,
    )


assert _COMPRESSED == 1


def batch_contexts(raw: Buffer, header: MetaHeader) -> list[BatchContext]:
    """The batch contexts behind the entries of an uncompressed CI array."""
    start, count = header.context_offset, header.context_count
    end = start + count * CONTEXT_SIZE
    if end > len(raw) or header.context_size < count * CONTEXT_SIZE:
        raise FormatError(
            f"{count} batch contexts at byte {start} lie outside the chunk-info array", rule=Rule.CI_ARRAY
        )
    return [BatchContext(*pair) for pair in _BATCH_CONTEXT.iter_unpack(memoryview(raw)[start:end])]


def compressed_data_size(entry: BlobEntry) -> int:
    """Bytes of the blob file that hold chunk data: every chunk must end at or before this."""
    features = entry.features
    if features & BlobFeatures.SEPARATE or not entry.ci_offset or not features & BlobFeatures.CAP_TAR_TOC:
        return entry.compressed_size
    return entry.ci_offset - (512 if features & BlobFeatures.HAS_TAR_HEADER else 0)


def check_dense(chunks: ChunkColumns, entry: BlobEntry) -> None:
    """FormatError (ci-dense) unless the chunks tile the uncompressed space in order, up to its last block.

    Each chunk starts at the block behind the one before it, and none is larger than the image's chunk size.
    """
    starts, sizes = chunks.uncompressed_offset, chunks.uncompressed_size
    # A whole column is checked at once, and looked through again only when something in it is wrong.
    lanes = Lanes(len(sizes))
    ends = lanes.load(starts) + lanes.load(sizes) + lanes.each(BLOCK_SIZE - 1) & lanes.each(-BLOCK_SIZE % (1 << 64))
    wanted = array("Q", [0]) + lanes.store("Q", ends)[:-1]
    if starts != wanted:
        index = next(i for i, start in enumerate(starts) if start != wanted[i])
        raise _not_dense(entry, index, f"lies at {starts[index]}, not at {wanted[index]}")
    if max(sizes) > entry.chunk_size:
        index = next(i for i, size in enumerate(sizes) if size > entry.chunk_size)
        raise _not_dense(entry, index, f"has {sizes[index]} bytes, more than a chunk may have")
    end, whole = starts[-1] + sizes[-1], entry.uncompressed_size
    if round_up(end, BLOCK_SIZE) != round_up(whole, BLOCK_SIZE):
        raise _not_dense(entry, len(sizes) - 1, f"is the last and ends at {end} of {whole} bytes")


def _not_dense(entry: BlobEntry, index: int, what: str) -> FormatError:
    return FormatError(f"blob {entry.blob_index}: chunk {index} {what}", rule=Rule.CI_DENSE)
