"""The image that self-tests mount: one file of one block, which lies on a device of its own."""

from __future__ import annotations

from ...erofs import ondisk, rafs
from ...erofs.ondisk import BLOCK_BITS, BLOCK_SIZE, FileType, Layout

PAYLOAD = b"nydus-erofs self-test\n" * 186  # a little less than a block


def tiny_image(size: int) -> bytes:
    """An EROFS image of three blocks: superblocks and device slot, inodes, root directory; one file ``file`` of
    ``size`` bytes (one block at most) in block 0 of device 1."""
    superblock = ondisk.SuperBlock(
        magic=ondisk.SUPERBLOCK_MAGIC, checksum=0, feature_compat=0, block_bits=BLOCK_BITS, ext_slots=0, root_nid=2,
        inodes=2, epoch=0, epoch_nsec=0, blocks=3, meta_block=1, xattr_block=0, uuid=b"", volume_name=b"",
        feature_incompat=rafs.INCOMPAT_RAFS_V6, u1=0, extra_devices=1, device_table_slot=rafs.DEVICE_TABLE_SLOT,
        reserved=b"",
    )  # fmt: skip
    names = [(b".", 2, FileType.DIR), (b"..", 2, FileType.DIR), (b"file", 4, FileType.REG)]
    at = ondisk.DIRENT.size * len(names)
    entries = b""
    for name, nid, kind in names:
        entries += ondisk.DIRENT.pack(nid, at, kind, 0)
        at += len(name)
    entries += b"".join(name for name, _, _ in names)
    image = bytearray(3 * BLOCK_SIZE)
    _put(image, ondisk.SUPERBLOCK_OFFSET, superblock.pack())
    _put(image, rafs.DEVICE_TABLE_OFFSET, ondisk.DeviceSlot(b"0", 1, 0, b"").pack())
    _put(image, BLOCK_SIZE + 2 * ondisk.SLOT_SIZE, _inode(Layout.FLAT_PLAIN, 0o40755, len(entries), 2, 2))
    chunk_format = ondisk.CHUNK_FORMAT_INDEXES
    _put(image, BLOCK_SIZE + 4 * ondisk.SLOT_SIZE, _inode(Layout.CHUNK_BASED, 0o100644, size, chunk_format, 1))
    _put(image, BLOCK_SIZE + 6 * ondisk.SLOT_SIZE, ondisk.CHUNK_INDEX.pack(0, 1, 0))
    _put(image, 2 * BLOCK_SIZE, entries)
    return bytes(image)


def _inode(layout: Layout, mode: int, size: int, u: int, nlink: int) -> bytes:
    return ondisk.ExtendedInode(layout << 1 | 1, 0, mode, 0, size, u, 1, 0, 0, 0, 0, nlink, b"").pack()


def _put(image: bytearray, at: int, data: bytes) -> None:
    image[at : at + len(data)] = data
