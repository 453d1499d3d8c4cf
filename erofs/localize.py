"""Localize a bootstrap: a private copy in which every *segment* of a blob is an EROFS device of its own.

The published bootstrap has one device per blob. The fanotify engine wants small devices, each of which is
a file of size 0 until its bytes are there, because EROFS answers EIO beyond the end of a device file and
never zeros. So each blob's uncompressed address space is cut at chunk borders into segments, and the copy
gets a longer device table and chunk indexes that point into segments. Every nid stays what it was: the
metadata area moves up behind the longer table as a whole, which changes only the absolute block addresses
of directories and symlinks.

Everything here reads untrusted bytes: it is bounded in time and memory by the size of the bootstrap, and
whatever does not fit raises FormatError. Run it in a process of its own; it takes several times the
bootstrap's size in memory for a moment.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import add
from typing import BinaryIO, NamedTuple

from . import blobmeta, ondisk, rafs, rewrite
from .codec import codec
from .errors import FormatError, UnsupportedError
from .ids import BlobId, blob_id
from .ondisk import BLOCK_BITS, BLOCK_SIZE
from .record import Buffer, round_up
from .segments import MAX_DEVICES, Segment, cut
from .source import Source

_UNSUPPORTED = (
    rafs.BlobFeatures.ZRAN
    | rafs.BlobFeatures.SEPARATE
    | rafs.BlobFeatures.TARFS
    | rafs.BlobFeatures.ENCRYPTED
    | rafs.BlobFeatures.EXTERNAL
)

_COMPRESSIONS = (rafs.Compression.NONE, rafs.Compression.LZ4_BLOCK, rafs.Compression.ZSTD)
_DIGESTS = tuple(rafs.DigestAlgo)
_ROW = struct.Struct("<32sI36xI4x")  # of rafs.ChunkRow: digest, blob index, CI index
assert _ROW.size == rafs.ChunkRow.size()


@dataclass(frozen=True, slots=True)
class BlobMap:
    """Everything needed to fill one blob's segments: its chunks with their digests, and how they are cut.

    ``digests[i]`` is None for a chunk that this image does not use.
    """

    blob_id: BlobId
    entry: rafs.BlobEntry
    chunks: blobmeta.ChunkColumns
    batches: list[blobmeta.BatchContext]
    digests: list[bytes | None]
    segments: list[Segment]


class Head(NamedTuple):
    """What the first blocks of a bootstrap say."""

    superblock: ondisk.SuperBlock
    extended: rafs.ExtSuperBlock
    entries: list[rafs.BlobEntry]


def read_head(bootstrap: Source) -> Head:
    """Superblocks and blob table, checked as far as localizing relies on them; nothing else is read."""
    size = bootstrap.size()
    if size < BLOCK_SIZE:
        raise FormatError(f"not a RAFS v6 bootstrap: {size} bytes")
    first = bootstrap.read_at(0, BLOCK_SIZE)
    superblock = ondisk.SuperBlock.unpack(first, ondisk.SUPERBLOCK_OFFSET)
    if superblock.magic != ondisk.SUPERBLOCK_MAGIC:
        raise FormatError("not an EROFS image: no magic number at byte 1024")
    if not superblock.feature_compat & rafs.COMPAT_RAFS_V6:
        raise FormatError("not a RAFS v6 bootstrap: the RAFS bit of the EROFS superblock is clear")
    if superblock.feature_incompat != rafs.INCOMPAT_RAFS_V6:
        raise FormatError(f"not a RAFS v6 bootstrap: EROFS features are {superblock.feature_incompat:#x}")
    extended = rafs.ExtSuperBlock.unpack(first, rafs.EXT_SUPERBLOCK_OFFSET)
    if superblock.block_bits != BLOCK_BITS or extended.flags & rafs.Flags.TARFS_MODE:
        raise UnsupportedError("images with 512-byte blocks (tarfs) are not supported yet")
    chunk = extended.chunk_size
    if chunk & (chunk - 1) or not rafs.MIN_CHUNK_SIZE <= chunk <= rafs.MAX_CHUNK_SIZE:
        raise FormatError(f"chunk size {chunk} is not a power of two from 4 KiB to 16 MiB")
    table, length = extended.blob_table_offset, extended.blob_table_size
    count, rest = divmod(length, rafs.BlobEntry.size())
    if rest or count > rafs.MAX_BLOBS or table + length > size:
        raise FormatError(f"blob table at {table}, {length} bytes, does not fit the bootstrap")
    raw = bootstrap.read_at(table, length)
    entries = [rafs.BlobEntry.unpack(raw, number * rafs.BlobEntry.size()) for number in range(count)]
    if len(entries) != superblock.extra_devices:
        raise FormatError(f"{len(entries)} blobs in the blob table, {superblock.extra_devices} devices")
    return Head(superblock, extended, entries)


def name_of(entry: rafs.BlobEntry) -> BlobId:
    """A blob's id as the blob table has it."""
    return blob_id(entry.raw_id.rstrip(b"\0").decode("ascii", "replace"))


def read_blob_maps(
    bootstrap: Buffer, head: Head, open_blob: Callable[[BlobId], Source], segment_size: int
) -> list[BlobMap]:
    """Read each blob's chunk-info array, join it with the bootstrap's digests and cut it into segments.

    Args:
        open_blob: gives a blob's bytes; its errors pass through.
        segment_size: bytes a segment has at most, unless a single chunk is larger.
    """
    found = []
    for index, entry in enumerate(head.entries):
        name = name_of(entry)
        found.append((name, entry, *read_chunks(index, entry, head.extended.chunk_size, open_blob(name))))
    digests = _digests(bootstrap, head, [len(chunks.flags) for _, _, chunks, _ in found])
    maps = []
    for (name, entry, chunks, batches), known in zip(found, digests, strict=True):
        segments = cut(chunks.uncompressed_offset, entry.uncompressed_size, segment_size)
        maps.append(BlobMap(name, entry, chunks, batches, known, segments))
    return maps


def check_entry(index: int, entry: rafs.BlobEntry, chunk_size: int) -> None:
    """Whether the blob table's entry of one blob makes sense and can be served; nothing of the blob is read."""
    if entry.features & (rafs.BlobFeatures.UNKNOWN_INCOMPAT | rafs.BlobFeatures.INTERNAL_V5):
        raise UnsupportedError(f"blob {index} has unknown features {entry.features:#x}")
    if missing := entry.features & _UNSUPPORTED:
        raise UnsupportedError(f"blob {index}: {rafs.BlobFeatures(missing).name} is not supported yet")
    for compression in (entry.compression, entry.ci_compression):
        if compression not in _COMPRESSIONS:
            raise UnsupportedError(f"blob {index}: compression {compression} is not supported yet")
    if entry.digest_algo not in _DIGESTS:
        raise UnsupportedError(f"blob {index}: digest algorithm {entry.digest_algo} is not supported")
    if entry.blob_index != index or entry.chunk_size != chunk_size:
        raise FormatError(f"blob table entry {index} says index {entry.blob_index}, chunk size {entry.chunk_size}")
    count, raw_size = entry.chunk_count, entry.ci_uncompressed_size
    least = count * blobmeta.entry_size(entry.features)
    most = least + count * blobmeta.CONTEXT_SIZE  # no more batches than chunks
    if not 0 < count <= rafs.MAX_CHUNKS or not least <= raw_size <= most or entry.ci_compressed_size > raw_size:
        raise FormatError(f"blob {index}: {count} chunks, chunk-info array of {raw_size} bytes")


def read_chunks(
    index: int, entry: rafs.BlobEntry, chunk_size: int, blob: Source
) -> tuple[blobmeta.ChunkColumns, list[blobmeta.BatchContext]]:
    """The chunk-info array (and batch contexts) of one blob, fetched, unpacked and checked."""
    check_entry(index, entry, chunk_size)
    count, raw_size = entry.chunk_count, entry.ci_uncompressed_size
    size = entry.ci_compressed_size
    raw = blob.read_at(entry.ci_offset, size + blobmeta.MetaHeader.size())
    header = blobmeta.MetaHeader.unpack(raw, size)
    blobmeta.check_header(header, entry)
    entries = codec(rafs.Compression(entry.ci_compression)).decompress(memoryview(raw)[:size], raw_size)
    chunks = blobmeta.chunk_columns(entries, count, entry.features)
    blobmeta.check_dense(chunks, entry)
    end = chunks.uncompressed_offset[-1] + chunks.uncompressed_size[-1]
    if round_up(end, BLOCK_SIZE) != round_up(entry.uncompressed_size, BLOCK_SIZE):
        raise FormatError(f"blob {index}: {entry.uncompressed_size} bytes, but the chunks end at {end}")
    batches = blobmeta.batch_contexts(entries, header) if entry.features & rafs.BlobFeatures.BATCH else []
    return chunks, batches


def _digests(bootstrap: Buffer, head: Head, counts: Sequence[int]) -> list[list[bytes | None]]:
    """For each blob (of ``counts[blob]`` chunks) and CI index the digest, from the chunk table."""
    offset, size = head.extended.chunk_table_offset, head.extended.chunk_table_size
    if size % rafs.ChunkRow.size() or offset + size > len(bootstrap):
        raise FormatError(f"chunk table at {offset}, {size} bytes, does not fit the bootstrap")
    out: list[list[bytes | None]] = [[None] * count for count in counts]
    blob = index = 0
    try:
        for digest, blob, index in _ROW.iter_unpack(memoryview(bootstrap)[offset : offset + size]):
            out[blob][index] = digest
    except IndexError:
        raise FormatError(f"the chunk table has a chunk {index} of blob {blob}, which is not there") from None
    return out


def write_localized(bootstrap: Buffer, head: Head, maps: Sequence[BlobMap], out: BinaryIO) -> None:
    """Write the localized copy of ``bootstrap`` to ``out``.

    Device k+1 is the k-th segment, counted through all blobs in blob table order.
    """
    superblock = head.superblock
    devices = sum(len(m.segments) for m in maps)
    if devices > MAX_DEVICES:
        raise UnsupportedError(f"{devices} segments are more than the {MAX_DEVICES} devices of an EROFS mount")
    meta = superblock.meta_block << BLOCK_BITS
    end = head.extended.chunk_table_offset if head.extended.chunk_table_offset > meta else len(bootstrap)
    if meta >= end or end % BLOCK_SIZE:
        raise FormatError(f"metadata area from byte {meta} to {end} is not a run of blocks")
    # Metadata only ever moves up: an inode that is a tail alone has block address 0, which must not turn negative.
    head_size = max(meta, round_up(rafs.DEVICE_TABLE_OFFSET + devices * ondisk.DEVICE_SLOT_SIZE, BLOCK_SIZE))
    shift = (head_size - meta) >> BLOCK_BITS
    words = rewrite.rewrite(
        bootstrap, meta, end, superblock.root_nid, head.extended.chunk_size, shift, _targets(maps)
    )
    header = bytearray(head_size)
    blocks = (head_size + len(words) * 8) >> BLOCK_BITS
    _localized_superblock(bootstrap, header, head_size >> BLOCK_BITS, blocks, devices)
    offset = rafs.DEVICE_TABLE_OFFSET
    for number, segment in enumerate(s for m in maps for s in m.segments):
        ondisk.DeviceSlot.LAYOUT.pack_into(header, offset, b"%05d" % number, segment.size >> BLOCK_BITS, 0, b"")
        offset += ondisk.DEVICE_SLOT_SIZE
    out.write(header)
    out.write(words)


def _localized_superblock(bootstrap: Buffer, header: bytearray, meta_block: int, blocks: int, devices: int) -> None:
    """Copy the superblock into ``header`` with the values that localizing changes."""
    start = ondisk.SUPERBLOCK_OFFSET
    header[start : start + ondisk.SuperBlock.size()] = bootstrap[start : start + ondisk.SuperBlock.size()]
    struct.pack_into("<II", header, start + 36, blocks, meta_block)
    struct.pack_into("<HH", header, start + 86, devices, rafs.DEVICE_TABLE_SLOT)


def _targets(maps: Sequence[BlobMap]) -> rewrite.Targets:
    """For each chunk index that the image may have: the one that means the same bytes in a segment.

    As words (``inode.pack_chunk_indexes``, from the lowest bit): lower 16 bits of the CI index, 8 of device, upper 8
    of the CI index, 32 of start block. The kernel takes the first 16 for more of the start block, and 16 of device.
    """
    targets: dict[int, tuple[int, int]] = {}
    device = 1
    for number, blob in enumerate(maps, 1):
        places = [offset << 32 - BLOCK_BITS for offset in blob.chunks.uncompressed_offset]
        ids = chain.from_iterable(range(start, start + (1 << 16)) for start in range(number << 16, 1 << 32, 1 << 24))
        new: list[int] = []
        for first, length, start, _ in blob.segments:
            move = (device << 16) - (start << 32 - BLOCK_BITS)
            new += [place + move for place in places[first : first + length]]
            device += 1
        sized = zip(new, blob.chunks.uncompressed_size, strict=True)
        targets.update(zip(map(add, places, ids), sized, strict=True))
    return targets
