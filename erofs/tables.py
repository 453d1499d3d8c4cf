"""The fixed parts of a bootstrap: superblocks, device, blob, prefetch and chunk table, read and checked.

What is demanded here is what nydusd demands when it loads a bootstrap, and what later arithmetic relies on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from .blobmeta import CONTEXT_SIZE, entry_size
from .errors import FormatError, UnsupportedError
from .ids import BlobId, blob_id
from .inode import Area
from .ondisk import (
    BLOCK_BITS,
    BLOCK_SIZE,
    DEVICE_SLOT_SIZE,
    SUPERBLOCK_MAGIC,
    SUPERBLOCK_OFFSET,
    DeviceSlot,
    SuperBlock,
)
from .rafs import (
    COMPAT_RAFS_V6,
    COMPRESSION_FLAG,
    DEVICE_TABLE_OFFSET,
    DEVICE_TABLE_SLOT,
    DIGEST_FLAG,
    EXT_SUPERBLOCK_OFFSET,
    INCOMPAT_RAFS_V6,
    MAX_BLOBS,
    MAX_BOOTSTRAP_SIZE,
    MAX_CHUNK_SIZE,
    MAX_CHUNKS,
    MIN_CHUNK_SIZE,
    BlobEntry,
    BlobFeatures,
    ChunkRow,
    Compression,
    DigestAlgo,
    ExtSuperBlock,
    Flags,
)
from .record import Buffer
from .rules import Rule

Report = Callable[[FormatError], None]

PLACEHOLDER_ID = BlobId("x" * 64)  # the id of a blob that carries this bootstrap inside: not known when it was made

_V5_MAGIC = 0x52414653
_MAX_COMPRESSED = 1 << 40
_MAX_UNCOMPRESSED = 1 << 44
_ALL_FLAGS = sum(Flags)
_CI_TAILS = BlobFeatures.BATCH | BlobFeatures.ZRAN | BlobFeatures.ENCRYPTED  # something may follow the entries
_ZRAN_DICTIONARY = 32 << 10


def raise_it(error: FormatError) -> None:
    """The report of a reader: the first broken invariant ends the reading."""
    raise error


class Blob(NamedTuple):
    """One entry of the blob table; ``sound`` is false (and ``id`` empty) when a finding was reported for it."""

    id: BlobId
    entry: BlobEntry
    sound: bool


@dataclass(frozen=True, slots=True)
class Tables:
    """A bootstrap's fixed parts. Of the tables that may be long, only (byte offset, entries) is kept."""

    superblock: SuperBlock
    ext: ExtSuperBlock
    devices: list[DeviceSlot]
    blobs: list[Blob]
    prefetch: tuple[int, int]
    chunk_rows: tuple[int, int]
    area: Area


def check_magic(head: Buffer, size: int) -> None:
    """Raise unless the first 4096 bytes of a file of ``size`` bytes say that it is a RAFS v6 bootstrap."""
    if size < BLOCK_SIZE:
        raise FormatError(f"a file of {size} bytes is no bootstrap", rule=Rule.FILE_SIZE)
    magic = SuperBlock.unpack(head, SUPERBLOCK_OFFSET)
    if struct.unpack_from("<I", head)[0] == _V5_MAGIC:
        raise UnsupportedError("this is a RAFS v5 bootstrap", hint="build the image again with --fs-version 6")
    if magic.magic != SUPERBLOCK_MAGIC:
        raise FormatError(
            "no EROFS superblock at byte 1024: not a RAFS v6 bootstrap",
            hint="name the bootstrap of the image, not a blob or a layer",
            rule=Rule.MAGIC,
        )
    if not magic.feature_compat & COMPAT_RAFS_V6:
        raise FormatError("an EROFS image, but not a RAFS v6 bootstrap", rule=Rule.MAGIC)
    if magic.block_bits == 9:
        raise UnsupportedError("images with 512-byte blocks (tarfs) are not supported yet")
    if magic.block_bits != BLOCK_BITS:
        raise FormatError(f"blocks of 2^{magic.block_bits} bytes", rule=Rule.SUPERBLOCK)
    if size > MAX_BOOTSTRAP_SIZE:
        raise FormatError(f"a bootstrap of {size} bytes; 2 GiB is the most Nydus loads", rule=Rule.FILE_SIZE)


def read_tables(data: Buffer, report: Report = raise_it) -> Tables:
    """Read the fixed parts of a bootstrap whose magic was checked.

    Every broken invariant goes to ``report``. Where that returns, a broken table counts as empty and reading
    goes on; a FormatError is raised where it cannot.
    """
    size = len(data)
    if size % BLOCK_SIZE:
        report(FormatError(f"{size} bytes are not a number of whole blocks", rule=Rule.FILE_SIZE))
    superblock = SuperBlock.unpack(data, SUPERBLOCK_OFFSET)
    ext = ExtSuperBlock.unpack(data, EXT_SUPERBLOCK_OFFSET)
    for what in _superblock_faults(superblock):
        report(FormatError(what, rule=Rule.SUPERBLOCK).at("superblock"))
    for what in _ext_faults(ext):
        report(FormatError(what, rule=Rule.EXT_SUPERBLOCK).at("extended superblock"))
    if not _chunk_size_ok(ext.chunk_size):
        raise FormatError("no chunk size to go on with", rule=Rule.EXT_SUPERBLOCK)
    devices_end = DEVICE_TABLE_OFFSET + superblock.extra_devices * DEVICE_SLOT_SIZE
    if devices_end > size:
        raise FormatError(f"{superblock.extra_devices} devices do not fit the file", rule=Rule.TABLE_BOUNDS)
    wanted = [
        ("blob", ext.blob_table_offset, ext.blob_table_size, BlobEntry.size(), BLOCK_SIZE),
        ("prefetch", ext.prefetch_table_offset, ext.prefetch_table_size, 4, 8),
        ("chunk", ext.chunk_table_offset, ext.chunk_table_size, ChunkRow.size(), BLOCK_SIZE),
    ]
    spans = {}
    for name, offset, length, unit, align in wanted:
        sound = not length or not (length % unit or offset % align or offset < BLOCK_SIZE or offset + length > size)
        if not sound:
            what = f"{length} bytes at byte {offset} do not fit the file"
            report(FormatError(what, rule=Rule.TABLE_BOUNDS).at(f"{name} table"))
        spans[name] = (offset, length if sound else 0)
    area = _area(superblock, ext, size, devices_end, spans, report)
    start, length = spans["blob"]
    if length > MAX_BLOBS * BlobEntry.size():
        raise FormatError(f"more than {MAX_BLOBS} blobs", rule=Rule.BLOB_TABLE)
    entries = [BlobEntry.unpack(data, at) for at in range(start, start + length, BlobEntry.size())]
    devices = [DeviceSlot.unpack(data, at) for at in range(DEVICE_TABLE_OFFSET, devices_end, DEVICE_SLOT_SIZE)]
    for what in _device_faults(devices, entries):
        report(FormatError(what, rule=Rule.DEVICE_TABLE).at("device table"))
    blobs = [_blob(index, entry, ext.chunk_size, report) for index, entry in enumerate(entries)]
    (prefetch, prefetch_size), (rows, rows_size) = spans["prefetch"], spans["chunk"]
    return Tables(
        superblock, ext, devices, blobs, (prefetch, prefetch_size // 4), (rows, rows_size // ChunkRow.size()), area
    )


def _superblock_faults(sb: SuperBlock) -> Iterator[str]:
    wanted = {
        "checksum": 0,
        "ext_slots": 0,
        "xattr_block": 0,
        "u1": 0,
        "feature_incompat": INCOMPAT_RAFS_V6,
        "device_table_slot": DEVICE_TABLE_SLOT,
        "reserved": bytes(38),  # fields of newer EROFS versions
    }
    for name, value in wanted.items():
        found = getattr(sb, name)
        if found != value:
            yield f"{name} is {found!r}, not {value!r}"
    if not sb.inodes:
        yield "it counts no inodes"
    if not sb.extra_devices and sb.blocks not in (0, 4096):  # an old builder wrote 4096
        yield f"{sb.blocks} blocks without a device"


def _ext_faults(ext: ExtSuperBlock) -> Iterator[str]:
    flags = ext.flags
    if flags & ~_ALL_FLAGS:
        yield f"unknown flags {flags & ~_ALL_FLAGS:#x}"
    if sum(bool(flags & flag) for flag in COMPRESSION_FLAG.values()) != 1:
        yield f"flags {flags:#x} name not exactly one compression"
    if sum(bool(flags & flag) for flag in DIGEST_FLAG.values()) != 1:
        yield f"flags {flags:#x} name not exactly one digest"
    if not _chunk_size_ok(ext.chunk_size):
        yield f"chunk size {ext.chunk_size} is not a power of two from 4 KiB to 16 MiB"


def _chunk_size_ok(size: int) -> bool:
    return MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE and not size & (size - 1)


def _area(
    sb: SuperBlock,
    ext: ExtSuperBlock,
    size: int,
    devices_end: int,
    spans: dict[str, tuple[int, int]],
    report: Report,
) -> Area:
    """The metadata area: from the superblock's block to the next table or the end of the file."""
    used = [("superblocks and devices", 0, devices_end)]
    used += [(f"{name} table", offset, offset + length) for name, (offset, length) in spans.items() if length]
    used.sort(key=lambda span: span[1])
    for (name, _, end), (other, start, _) in pairwise(used):
        if start < end:
            report(FormatError(f"{name} and {other} overlap", rule=Rule.TABLE_OVERLAP))
    start = sb.meta_block << BLOCK_BITS
    if start >= size:
        raise FormatError(f"the metadata area would begin at byte {start}, behind the file", rule=Rule.SUPERBLOCK)
    first = max(start, devices_end)
    end = min([size, *(table for _, table, _ in used if table > first)])
    for name, table, table_end in used[1:]:
        if table <= first < table_end:
            report(FormatError(f"{name} and metadata area overlap", rule=Rule.TABLE_OVERLAP))
    return Area(start, first, end, BLOCK_SIZE, ext.chunk_size, sb.epoch, sb.epoch_nsec)


def _device_faults(devices: list[DeviceSlot], entries: list[BlobEntry]) -> Iterator[str]:
    if len(devices) != len(entries):
        yield f"{len(devices)} devices for {len(entries)} blobs"
        return
    seen: set[bytes] = set()
    for number, (device, entry) in enumerate(zip(devices, entries, strict=True)):
        if device.tag != entry.raw_id:
            yield f"device {number} and blob {number} have different ids"
        if device.tag in seen:
            yield f"device {number} has the id of another"
        seen.add(device.tag)
        if not device.blocks or device.blocks << BLOCK_BITS != entry.uncompressed_size:
            yield f"device {number} has {device.blocks} blocks, its blob {entry.uncompressed_size} bytes"


def _blob(index: int, entry: BlobEntry, chunk_size: int, report: Report) -> Blob:
    faults = list(_blob_faults(index, entry, chunk_size))
    name = BlobId("")
    if entry.raw_id == PLACEHOLDER_ID.encode():
        name = PLACEHOLDER_ID
    else:
        try:
            name = blob_id(entry.raw_id.rstrip(b"\0").decode("ascii", "backslashreplace"))
        except FormatError as error:
            faults.append(error.message)
    for what in faults:
        report(FormatError(what, rule=Rule.BLOB_TABLE).at(f"blob {index}"))
    return Blob(BlobId("") if faults else name, entry, not faults)


def _blob_faults(index: int, entry: BlobEntry, chunk_size: int) -> Iterator[str]:
    if entry.blob_index != index:
        yield f"it says it is blob {entry.blob_index}"
    if entry.chunk_size != chunk_size:
        yield f"chunk size {entry.chunk_size}, where the image has {chunk_size}"
    if entry.compression not in list(Compression):
        yield f"unknown compression {entry.compression}"
    if entry.ci_compression not in list(Compression):
        yield f"unknown compression {entry.ci_compression} of its chunk info"
    if entry.digest_algo not in list(DigestAlgo):
        yield f"unknown digest {entry.digest_algo}"
    if entry.features & (BlobFeatures.UNKNOWN_INCOMPAT | BlobFeatures.INTERNAL_V5):
        yield f"unknown features {entry.features:#x}"
    if not entry.features & BlobFeatures.ALIGNED:
        yield "its chunks are not aligned to blocks"
    if entry.compressed_size > _MAX_COMPRESSED or entry.uncompressed_size > _MAX_UNCOMPRESSED:
        yield f"sizes {entry.compressed_size} and {entry.uncompressed_size} are beyond the format"
    if not 1 <= entry.chunk_count <= MAX_CHUNKS + 1:
        yield f"{entry.chunk_count} chunks"
    elif entry.chunk_count << BLOCK_BITS > entry.uncompressed_size:
        yield f"{entry.chunk_count} chunks do not fit {entry.uncompressed_size} bytes"
    if not entry.features & BlobFeatures.CHUNKDICT_GENERATED:
        yield from _ci_faults(entry)


def _ci_faults(entry: BlobEntry) -> Iterator[str]:
    size, stored = entry.ci_uncompressed_size, entry.ci_compressed_size
    least = most = entry_size(entry.features) * entry.chunk_count
    if entry.features & BlobFeatures.CHUNK_INFO_V2 and entry.features & _CI_TAILS:
        most += entry.chunk_count * CONTEXT_SIZE  # no more contexts than chunks
        if entry.features & BlobFeatures.ZRAN:
            most += entry.chunk_count * _ZRAN_DICTIONARY
    if not least <= size <= most or stored > size:
        yield f"chunk info of {size} bytes ({stored} stored) for {entry.chunk_count} chunks"
