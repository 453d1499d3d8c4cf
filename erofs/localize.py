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
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, compress, islice
from typing import BinaryIO

from . import ondisk, rafs, rewrite
from .blob import read_chunk_info
from .blob_table import check_supported
from .blobmeta import ChunkColumns, check_dense
from .chunk_table import read_digests
from .errors import UnsupportedError
from .head import Head
from .ids import BlobId
from .ondisk import BLOCK_BITS, BLOCK_SIZE
from .record import Buffer, Lanes, round_up
from .segments import MAX_DEVICES, Segment, cut
from .source import Source
from .unit import UnitColumns, find_units


@dataclass(frozen=True, slots=True)
class BlobMap:
    """Everything needed to fill one blob's segments: its chunks with their digests, and how they are cut.

    ``digests[i]`` is None for a chunk that no file of this image has.
    """

    blob_id: BlobId
    entry: rafs.BlobEntry
    chunks: ChunkColumns
    units: UnitColumns
    digests: list[bytes | None]
    segments: list[Segment]


def read_blob_maps(
    bootstrap: Buffer, head: Head, open_blob: Callable[[BlobId], Source], segment_size: int
) -> list[BlobMap]:
    """Read each blob's chunk-info array, join it with the bootstrap's digests and cut it into segments.

    Args:
        open_blob: gives a blob's bytes; its errors pass through.
        segment_size: bytes a segment has at most, unless a single chunk is larger.

    FormatError as ``check`` finds it, UnsupportedError for blobs of kinds that cannot be served.
    """
    chunks, units = [], []
    for blob in head.blobs:
        check_supported(blob.entry)
        array = read_chunk_info(blob.entry, open_blob(blob.stored_id()))
        check_dense(array.chunks, blob.entry)
        chunks.append(array.chunks)
        units.append(find_units(array.chunks, array.batches, blob.entry))
    digests = read_digests(head.chunk_table(bootstrap), head.blobs, chunks)
    maps = []
    for (name, entry, _), columns, stored, known in zip(head.blobs, chunks, units, digests, strict=True):
        segments = cut(columns.uncompressed_offset, entry.uncompressed_size, segment_size)
        maps.append(BlobMap(name, entry, columns, stored, known, segments))
    return maps


def write_localized(bootstrap: Buffer, head: Head, maps: Sequence[BlobMap], out: BinaryIO) -> None:
    """Write the localized copy of ``bootstrap`` to ``out``.

    Device k+1 is the k-th segment, counted through all blobs in blob table order.
    """
    devices = sum(len(m.segments) for m in maps)
    if devices > MAX_DEVICES:
        raise UnsupportedError(f"{devices} segments are more than the {MAX_DEVICES} devices of an EROFS mount")
    meta = head.area.start
    # Metadata only ever moves up: an inode that is a tail alone has block address 0, which must not turn negative.
    head_size = max(meta, round_up(rafs.DEVICE_TABLE_OFFSET + devices * ondisk.DEVICE_SLOT_SIZE, BLOCK_SIZE))
    shift = (head_size - meta) >> BLOCK_BITS
    words = _rewritten(bootstrap, head, maps, shift)
    header = bytearray(head_size)
    blocks = (head_size + len(words) * 8) >> BLOCK_BITS
    _localized_superblock(bootstrap, header, head_size >> BLOCK_BITS, blocks, devices)
    offset = rafs.DEVICE_TABLE_OFFSET
    for number, segment in enumerate(s for m in maps for s in m.segments):
        ondisk.DeviceSlot.LAYOUT.pack_into(header, offset, b"%05d" % number, segment.size >> BLOCK_BITS, 0, b"")
        offset += ondisk.DEVICE_SLOT_SIZE
    out.write(header)
    out.write(words)


def check_files(bootstrap: Buffer, head: Head, maps: Sequence[BlobMap]) -> None:
    """FormatError where ``write_localized`` would raise one: for an image that is mounted as it was published. The
    kernel looks at no more than the block of a chunk index, and would read other bytes where the rest says so."""
    _rewritten(bootstrap, head, maps, 0)


def _rewritten(bootstrap: Buffer, head: Head, maps: Sequence[BlobMap], shift: int) -> array[int]:
    """The metadata area, with the chunk indexes of ``_targets`` and ``shift`` blocks higher up."""
    start, end = head.area.start, round_up(head.area.end, BLOCK_SIZE)
    root, chunk_size = head.superblock.root_nid, head.ext.chunk_size
    return rewrite.rewrite(bootstrap, start, end, root, chunk_size, shift, _targets(maps))


def _localized_superblock(bootstrap: Buffer, header: bytearray, meta_block: int, blocks: int, devices: int) -> None:
    """Copy the superblock into ``header`` with the values that localizing changes."""
    start = ondisk.SUPERBLOCK_OFFSET
    header[start : start + ondisk.SuperBlock.size()] = bootstrap[start : start + ondisk.SuperBlock.size()]
    struct.pack_into("<II", header, start + 36, blocks, meta_block)
    struct.pack_into("<HH", header, start + 86, devices, rafs.DEVICE_TABLE_SLOT)


def _targets(maps: Sequence[BlobMap]) -> rewrite.Targets:
    """For each chunk index that the image may have: the one that means the same bytes in a segment. A chunk without
    a digest has none: what a file needs can be verified.

    As words (``inode.pack_chunk_indexes``, from the lowest bit): lower 16 bits of the CI index, 8 of device, upper 8
    of the CI index, 32 of start block. The kernel takes the first 16 for more of the start block, and 16 of device.
    """
    targets: dict[int, tuple[int, int]] = {}
    before = 1
    for number, blob in enumerate(maps, 1):
        count = len(blob.digests)
        ids = chain.from_iterable(range(start, start + (1 << 16)) for start in range(number << 16, 1 << 32, 1 << 24))
        starts, devices = array("Q"), array("Q")
        for device, segment in enumerate(blob.segments, before):
            starts += array("Q", [segment.start]) * segment.chunks
            devices += array("Q", [device << 16]) * segment.chunks
        lanes = Lanes(count)
        offsets = lanes.load(blob.chunks.uncompressed_offset)
        old = (offsets << 32 - BLOCK_BITS) + lanes.load(array("Q", islice(ids, count)))
        new = (offsets - lanes.load(starts) << 32 - BLOCK_BITS) + lanes.load(devices)
        pairs = zip(lanes.store("Q", new), blob.chunks.uncompressed_size, strict=True)
        found = zip(lanes.store("Q", old), pairs, strict=True)
        targets.update(compress(found, blob.digests) if None in blob.digests else found)
        before += len(blob.segments)
    return targets
