"""The chunk table: the digest of each chunk, and where it lies, as the blob's chunk info says once more."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from .blob_table import Blob
from .blobmeta import ChunkColumns, ChunkInfo, ChunkInfoFlags
from .errors import FormatError
from .ondisk import BLOCK_SIZE
from .rafs import ChunkFlags, ChunkRow
from .record import Buffer, little_endian
from .rules import Rule

_KNOWN_FLAGS = sum(ChunkFlags)
_COMPRESSED, _BATCH = ChunkInfoFlags.COMPRESSED.value, ChunkInfoFlags.BATCH.value  # the same bits in both places
_COMPRESSED_ONLY = bytes(flags & _COMPRESSED for flags in range(256))  # for bytes.translate

# Of ChunkRow: digest, blob index, flags, place (both sizes, both offsets), CI index.
_PLACE = 24
_ROW = struct.Struct(f"<32sII{_PLACE}s8xI4x")
_TOLD = ~_KNOWN_FLAGS | _COMPRESSED  # flags that must be what the chunk info says; the unknown ones are 0
assert _ROW.size == ChunkRow.size()


def row_faults(table: Buffer, blobs: Sequence[Blob]) -> Iterator[tuple[int, str]]:
    """What is wrong with the rows of a chunk table by themselves: (number of the row, fault).

    Rows of blobs that are not sound are left out.
    """
    seen: set[int] = set()
    for number, (_, blob, flags, _, size, _, offset, _, index, _) in enumerate(ChunkRow.LAYOUT.iter_unpack(table)):
        if blob >= len(blobs):
            yield number, f"there is no blob {blob}"
            continue
        entry = blobs[blob].entry
        if not blobs[blob].sound:
            continue
        if index >= entry.chunk_count:
            yield number, f"there is no chunk {index} in blob {blob}"
        elif not 0 < size <= entry.chunk_size:
            yield number, f"a chunk of {size} bytes"
        elif offset % BLOCK_SIZE or offset + size > entry.uncompressed_size:
            yield number, f"{size} bytes at byte {offset} of the uncompressed space"
        elif flags & ~_KNOWN_FLAGS:
            yield number, f"unknown flags {flags:#x}"
        elif (key := blob << 24 | index) in seen:
            yield number, "another row is for the same chunk"
        else:
            seen.add(key)


def difference(info: ChunkInfo, row: ChunkRow) -> str:
    """How chunk info and chunk table contradict each other; empty when they do not."""
    pairs = [
        ("uncompressed offset", info.uncompressed_offset, row.uncompressed_offset),
        ("uncompressed size", info.uncompressed_size, row.uncompressed_size),
    ]
    if not info.flags & ChunkInfoFlags.BATCH:  # rows of batch members do not say where they are stored
        pairs += [
            ("compressed offset", info.compressed_offset, row.compressed_offset),
            ("compressed size", info.compressed_size, row.compressed_size),
            ("compression", info.flags & _COMPRESSED, row.flags & _COMPRESSED),
        ]
    return ", ".join([f"{name} {a} in the blob, {b} in the bootstrap" for name, a, b in pairs if a != b])


def read_digests(table: Buffer, blobs: Sequence[Blob], chunks: Sequence[ChunkColumns]) -> list[list[bytes | None]]:
    """For each blob and CI index the digest; None for a chunk that has no row.

    FormatError (chunk-table, chunk-info) unless every row agrees with the chunk info and no two are for one chunk.

    Args:
        chunks: of each blob, found to be dense.
    """
    digests: list[list[bytes | None]] = [[None] * len(columns.flags) for columns in chunks]
    wanted = [(_places(columns), bytes(columns.flags).translate(_COMPRESSED_ONLY)) for columns in chunks]
    current, sound = -1, True
    try:
        # There may be millions of rows: what is wrong is looked for again, and told, by slower functions.
        for digest, blob, flags, place, index in _ROW.iter_unpack(table):
            if blob != current:
                current, known, (places, kinds) = blob, digests[blob], wanted[blob]
            at = index * _PLACE
            right = places[at : at + _PLACE]
            if place != right or flags & _TOLD != kinds[index]:
                # Rows of batch members say nothing of how they are stored.
                member = chunks[blob].flags[index] & _BATCH and not flags & ~_KNOWN_FLAGS
                if not member or place[4:8] != right[4:8] or place[16:] != right[16:]:
                    sound = False
            known[index] = digest
    except IndexError:
        sound = False
    rows = sum(len(column) - column.count(None) for column in digests)
    if not sound or rows != len(table) // ChunkRow.size():
        raise _first_fault(table, blobs, chunks)
    return digests


def _places(chunks: ChunkColumns) -> bytes:
    """The places of all chunks as rows have them: sizes and offsets, compressed before uncompressed."""
    out = bytearray(_PLACE * len(chunks.flags))
    halves, words = memoryview(out).cast("I"), memoryview(out).cast("Q")
    for at, column in enumerate((chunks.compressed_size, chunks.uncompressed_size)):
        halves[at :: _PLACE // 4] = little_endian(column[:])
    for at, column in enumerate((chunks.compressed_offset, chunks.uncompressed_offset), 1):
        words[at :: _PLACE // 8] = little_endian(column[:])
    return bytes(out)


def _first_fault(table: Buffer, blobs: Sequence[Blob], chunks: Sequence[ChunkColumns]) -> FormatError:
    for number, fault in row_faults(table, blobs):
        return FormatError(fault, rule=Rule.CHUNK_TABLE).at(f"row {number} of the chunk table")
    rows = (ChunkRow.unpack(table, at) for at in range(0, len(table), ChunkRow.size()))
    faults = (difference(chunks[row.blob_index].row(row.index), row) for row in rows)
    number, fault = next((number, fault) for number, fault in enumerate(faults) if fault)
    return FormatError(fault, rule=Rule.CHUNK_INFO).at(f"row {number} of the chunk table")
