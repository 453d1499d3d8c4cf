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
from itertools import repeat
from operator import add, ne
from typing import ClassVar, NamedTuple

from .errors import FormatError
from .ondisk import BLOCK_SIZE
from .rafs import BlobEntry, BlobFeatures
from .record import Buffer, Record, integers, round_up
from .rules import Rule

MAGIC = 0xB10BB10B
CONTEXT_SIZE = 40

_V1 = struct.Struct("<QQ")
_V2 = struct.Struct("<QQQ")
_BATCH_CONTEXT = struct.Struct("<II32x")
_U1_OFFSET = 0xFFF_FFFF_F000


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

    @classmethod
    def of(cls, columns: Iterable[Iterable[int]]) -> ChunkColumns:
        """From columns of any kind, in the order of the fields."""
        return cls(*[array(kind, column) for kind, column in zip("QIQIBQ", columns, strict=True)])

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


def _chunk_info_v1(u: int, c: int) -> ChunkInfo:
    csize = (c >> 44 | (c >> 20) & 0xF00000) + 1
    usize = (u >> 44 | (u & 0xF00) << 12) + 1
    flags = _COMPRESSED if csize != usize else 0
    return ChunkInfo(c & 0xFF_FFFF_FFFF, csize, u & _U1_OFFSET, usize, flags, 0)


def _chunk_info_v2(u: int, c: int, data: int) -> ChunkInfo:
    usize = ((u >> 32) & 0xFF_FFFF) + 1
    return ChunkInfo(c & 0xFF_FFFF_FFFF, c >> 40, (u & 0xFFFF_FFFF) << 12, usize, u >> 56, data)


def chunk_info(raw: Buffer, index: int, features: int) -> ChunkInfo:
    """Entry ``index`` of an uncompressed CI array, unchecked; the array must hold it."""
    if features & BlobFeatures.CHUNK_INFO_V2:
        return _chunk_info_v2(*_V2.unpack_from(raw, index * _V2.size))
    return _chunk_info_v1(*_V1.unpack_from(raw, index * _V1.size))


def chunk_columns(raw: Buffer, count: int, features: int) -> ChunkColumns:
    """The entries of an uncompressed CI array, unchecked; use ``check_dense`` for what must hold between them."""
    size = entry_size(features) * count
    if size > len(raw):
        raise FormatError(f"chunk-info array of {len(raw)} bytes cannot hold {count} entries", rule=Rule.CI_ARRAY)
    entries = integers("Q", memoryview(raw)[:size])
    if features & BlobFeatures.CHUNK_INFO_V2:
        us, cs, data = entries[0::3], entries[1::3], entries[2::3]
        return ChunkColumns.of(
            [
                [c & 0xFF_FFFF_FFFF for c in cs],
                [c >> 40 for c in cs],
                [(u & 0xFFFF_FFFF) << 12 for u in us],
                [(u >> 32 & 0xFF_FFFF) + 1 for u in us],
                [u >> 56 for u in us],
                data,
            ]
        )
    us, cs = entries[0::2], entries[1::2]
    csizes = [(c >> 44 | c >> 20 & 0xF00000) + 1 for c in cs]
    usizes = [(u >> 44 | (u & 0xF00) << 12) + 1 for u in us]
    return ChunkColumns.of(
        [
            [c & 0xFF_FFFF_FFFF for c in cs],
            csizes,
            [u & _U1_OFFSET for u in us],
            usizes,
            map(ne, csizes, usizes),  # _COMPRESSED is 1
            repeat(0, count),
        ]
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
    """FormatError (ci-dense) unless the chunks tile the uncompressed space in order and stay inside the blob's data.

    Each chunk starts at the block behind the one before it (zran images may leave gaps), none is larger
    than the image's chunk size, and all lie inside ``entry``'s compressed data and uncompressed size.
    """
    coffs, csizes, uoffs, usizes, flags, _ = chunks
    # A whole column is checked at once, and looked through again only when something in it is wrong.
    ends = [offset + size + BLOCK_SIZE - 1 & -BLOCK_SIZE for offset, size in zip(uoffs, usizes, strict=True)]
    starts = array("Q", [0, *ends[:-1]][: len(uoffs)])
    if uoffs != starts:
        gaps = entry.features & (BlobFeatures.ZRAN | BlobFeatures.SEPARATE)
        for index, (here, wanted) in enumerate(zip(uoffs, starts, strict=True)):
            if here < wanted or (here > wanted and not gaps):
                raise _not_dense(entry, index, f"lies at {here}, not at {wanted}")
    if max(usizes, default=0) > entry.chunk_size:
        index = next(i for i, size in enumerate(usizes) if size > entry.chunk_size)
        raise _not_dense(entry, index, f"has {usizes[index]} bytes, more than a chunk may have")
    if max(map(add, coffs, csizes), default=0) > (limit := compressed_data_size(entry)):
        index = next(i for i, end in enumerate(map(add, coffs, csizes)) if end > limit)
        raise _not_dense(entry, index, "ends behind the blob's data")
    if max(ends, default=0) > (limit := round_up(entry.uncompressed_size, BLOCK_SIZE)):
        index = next(i for i, end in enumerate(ends) if end > limit)
        raise _not_dense(entry, index, "ends behind the blob's uncompressed size")
    if entry.features & BlobFeatures.CHUNK_INFO_V2:  # in version 1 the sizes say whether it is compressed
        decoded = int(ChunkInfoFlags.COMPRESSED | ChunkInfoFlags.ENCRYPTED | ChunkInfoFlags.ZRAN)
        for index, flag in enumerate(flags):
            if not flag & decoded and csizes[index] != usizes[index]:
                raise _not_dense(entry, index, "is stored plain, with two sizes")


def _not_dense(entry: BlobEntry, index: int, what: str) -> FormatError:
    return FormatError(f"blob {entry.blob_index}: chunk {index} {what}", rule=Rule.CI_DENSE)
