"""A bootstrap from its metadata area and its blob: superblocks, tables, and what follows from the whole."""

from __future__ import annotations

from ..erofs.errors import UnsupportedError
from ..erofs.ondisk import BLOCK_BITS, BLOCK_SIZE, SUPERBLOCK_MAGIC, SUPERBLOCK_OFFSET, DeviceSlot, SuperBlock
from ..erofs.rafs import (
    COMPAT_RAFS_V6,
    COMPRESSION_FLAG,
    DEVICE_TABLE_OFFSET,
    DEVICE_TABLE_SLOT,
    DIGEST_FLAG,
    EXT_SUPERBLOCK_OFFSET,
    INCOMPAT_RAFS_V6,
    MAPPED_ALIGN,
    MAX_BOOTSTRAP_SIZE,
    ROOT_NID,
    BlobEntry,
    ExtSuperBlock,
    Flags,
)
from ..erofs.record import Buffer, round_up
from .metadata import MetadataArea
from .options import BuildOptions


def assemble(options: BuildOptions, area: MetadataArea, blob: BlobEntry | None, chunk_table: bytes) -> list[Buffer]:
    """The parts of the bootstrap, to be written one after the other. Ends the use of ``area``."""
    device_table_end = DEVICE_TABLE_OFFSET + (DeviceSlot.size() if blob else 0)
    blob_table = round_up(device_table_end, BLOCK_SIZE)
    # Without a blob the superblocks lie in the area's unused first block, as Nydus has it.
    area_start = round_up(blob_table + BlobEntry.size(), BLOCK_SIZE) if blob else 0
    metadata = area.close(area_start // BLOCK_SIZE)
    chunk_table_offset = area_start + len(metadata)
    file_size = round_up(chunk_table_offset + len(chunk_table), BLOCK_SIZE)
    if file_size > MAX_BOOTSTRAP_SIZE:
        raise UnsupportedError(f"the bootstrap has {file_size} bytes, readers accept {MAX_BOOTSTRAP_SIZE}")

    head = bytearray(area_start or BLOCK_SIZE)
    blocks = blob.uncompressed_size // BLOCK_SIZE if blob else 0
    head[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + SuperBlock.size()] = SuperBlock(
        magic=SUPERBLOCK_MAGIC,
        checksum=0,
        feature_compat=COMPAT_RAFS_V6,
        block_bits=BLOCK_BITS,
        ext_slots=0,
        root_nid=ROOT_NID,
        inodes=area.inode_count,
        epoch=0,
        epoch_nsec=0,
        blocks=blocks,
        meta_block=area_start // BLOCK_SIZE,
        xattr_block=0,
        uuid=b"",
        volume_name=b"",
        feature_incompat=INCOMPAT_RAFS_V6,
        u1=0,
        extra_devices=1 if blob else 0,
        device_table_slot=DEVICE_TABLE_SLOT,
        reserved=b"",
    ).pack()
    head[EXT_SUPERBLOCK_OFFSET : EXT_SUPERBLOCK_OFFSET + ExtSuperBlock.size()] = ExtSuperBlock(
        flags=_flags(options, area, blob),
        blob_table_offset=blob_table,
        blob_table_size=BlobEntry.size() if blob else 0,
        chunk_size=options.chunk_size,
        chunk_table_offset=chunk_table_offset,
        chunk_table_size=len(chunk_table),
        prefetch_table_offset=0,
        prefetch_table_size=0,
    ).pack()
    if blob:
        slot = DeviceSlot(
            tag=blob.raw_id, blocks=blocks, mapped_block=round_up(file_size, MAPPED_ALIGN) // BLOCK_SIZE, reserved=b""
        )
        head[DEVICE_TABLE_OFFSET:device_table_end] = slot.pack()
        head[blob_table : blob_table + BlobEntry.size()] = blob.pack()
    return [head, metadata[len(head) - area_start :], chunk_table, bytes(-len(chunk_table) % BLOCK_SIZE)]


def _flags(options: BuildOptions, area: MetadataArea, blob: BlobEntry | None) -> int:
    flags = COMPRESSION_FLAG[options.compression] | DIGEST_FLAG[options.digest]
    flags |= Flags.EXPLICIT_UID_GID | Flags.ENCRYPTION_NONE
    if area.has_xattrs:
        flags |= Flags.HAS_XATTR
    if not blob:
        flags |= Flags.INLINED_CHUNK_DIGEST  # every blob has this, says Nydus of none
    return int(flags)
