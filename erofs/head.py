"""The head of a bootstrap: superblocks, device table, blob table, and the bounds of everything else.

The one reader of these bytes, for all that read, check or mount an image. What is demanded here is what nydusd
demands when it loads a bootstrap, and what later arithmetic relies on. It takes three small reads, so that the
bootstrap may be far away, and time and memory that do not grow with it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise

from .blob_table import Blob, Report, read_blob
from .errors import FormatError, UnsupportedError
from .inode import Area
from .ondisk import (
    BLOCK_BITS,
    BLOCK_SIZE,
    COMPAT_CHECKSUM,
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
    MIN_CHUNK_SIZE,
    BlobEntry,
    ChunkRow,
    ExtSuperBlock,
    Flags,
)
from .record import Buffer
from .rules import Rule
from .source import Source

_V5_MAGIC = 0x52414653
_ALL_FLAGS = sum(Flags)


def raise_it(error: FormatError) -> None:
    """The report of a reader: the first broken invariant ends the reading."""
    raise error


@dataclass(frozen=True, slots=True)
class Head:
    """A bootstrap's fixed parts. Of the tables that may be long, only (byte offset, entries) is kept."""

    superblock: SuperBlock
    ext: ExtSuperBlock
    devices: list[DeviceSlot]
    blobs: list[Blob]
    prefetch: tuple[int, int]
    chunk_rows: tuple[int, int]
    area: Area

    def chunk_table(self, bootstrap: Buffer) -> memoryview:
        """The rows of the chunk table, out of the bytes of the whole bootstrap."""
        start, count = self.chunk_rows
        return memoryview(bootstrap)[start : start + count * ChunkRow.size()]


def _check_magic(first: Buffer, size: int) -> None:
    """Raise unless the first block of a file of ``size`` bytes says that it is a RAFS v6 bootstrap."""
    magic = SuperBlock.unpack(first, SUPERBLOCK_OFFSET)
    if struct.unpack_from("<I", first)[0] == _V5_MAGIC:
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


def read_head(bootstrap: Source, report: Report = raise_it) -> Head:
    """Read the head of a bootstrap.

    Every broken invariant goes to ``report``. Where that returns, a broken table counts as empty and reading
    goes on; a FormatError is raised where it cannot. UnsupportedError for a bootstrap of a kind that this version
    does not read at all.
    """
    size = bootstrap.size()
    if size < BLOCK_SIZE:
        raise FormatError(f"a file of {size} bytes is no bootstrap", rule=Rule.FILE_SIZE)
    data = bootstrap.read_at(0, BLOCK_SIZE)
    _check_magic(data, size)
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
    if superblock.extra_devices > MAX_BLOBS:
        raise FormatError(f"more than {MAX_BLOBS} devices", rule=Rule.DEVICE_TABLE)
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
    table = bootstrap.read_at(start, length) if length else b""
    entries = [BlobEntry.unpack(table, at) for at in range(0, length, BlobEntry.size())]
    if devices_end > BLOCK_SIZE:
        data = bootstrap.read_at(0, devices_end)
    devices = [DeviceSlot.unpack(data, at) for at in range(DEVICE_TABLE_OFFSET, devices_end, DEVICE_SLOT_SIZE)]
    for what in chain(_device_faults(devices, entries), _place_faults(devices, size)):
        report(FormatError(what, rule=Rule.DEVICE_TABLE).at("device table"))
    blobs = [read_blob(index, entry, ext.chunk_size, report) for index, entry in enumerate(entries)]
    (prefetch, prefetch_size), (rows, rows_size) = spans["prefetch"], spans["chunk"]
    return Head(
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
    if sb.feature_compat & COMPAT_CHECKSUM:
        yield "it says that it has a checksum: the kernel would refuse it"
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
    if flags & Flags.TARFS_MODE:
        yield "it says that blocks have 512 bytes (tarfs), the superblock 4096"
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


def _place_faults(devices: list[DeviceSlot], size: int) -> Iterator[str]:
    """Places in the flat image: behind the bootstrap of ``size`` bytes, and no block twice."""
    free = size >> BLOCK_BITS
    for number, device in sorted(enumerate(devices), key=lambda item: item[1].mapped_block):
        if not device.mapped_block:
            continue  # no place: Nydus 2.2 gave none
        if device.mapped_block < free:
            place = f"device {number} has block {device.mapped_block} of the flat image"
            yield f"{place}, below {free} all are taken"
        free = max(free, device.mapped_block + device.blocks)
