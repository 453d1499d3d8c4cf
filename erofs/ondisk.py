"""EROFS as RAFS v6 uses it: constants and records, nothing else.

Source: Linux ``fs/erofs/erofs_fs.h`` (6.18) for the kernel's fields; the values that Nydus v2
writes and demands are in ``rafs.py``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar

from .record import Record

BLOCK_BITS = 12
BLOCK_SIZE = 1 << BLOCK_BITS

SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_MAGIC = 0xE0F5E1E2
SLOT_SIZE = 32  # an inode's nid counts units of this many bytes from the start of the metadata area
DEVICE_SLOT_SIZE = 128

XATTR_HEADER_SIZE = 12
XATTR_ENTRY_HEADER = struct.Struct("<BBH")  # name length, name index, value size
DIRENT = struct.Struct("<QHBB")  # nid, name offset, file type, reserved
CHUNK_INDEX = struct.Struct("<HHI")  # start block high, device id, start block


COMPAT_CHECKSUM = 0x1  # of feature_compat: the superblock has a checksum, and the kernel compares it


class FeatureIncompat(IntFlag):
    CHUNKED_FILE = 0x4
    DEVICE_TABLE = 0x8


class Layout(IntEnum):
    """How an inode's data lies (bits 1-3 of ``i_format``)."""

    FLAT_PLAIN = 0
    FLAT_INLINE = 2
    CHUNK_BASED = 4


CHUNK_FORMAT_BITS_MASK = 0x1F  # log2(chunk size) - BLOCK_BITS
CHUNK_FORMAT_INDEXES = 0x20  # 8-byte chunk indexes


class FileType(IntEnum):
    """``file_type`` of a directory entry."""

    UNKNOWN = 0
    REG = 1
    DIR = 2
    CHR = 3
    BLK = 4
    FIFO = 5
    SOCK = 6
    SYMLINK = 7


FILE_TYPE_OF_MODE = {
    0o100000: FileType.REG,
    0o040000: FileType.DIR,
    0o020000: FileType.CHR,
    0o060000: FileType.BLK,
    0o010000: FileType.FIFO,
    0o140000: FileType.SOCK,
    0o120000: FileType.SYMLINK,
}

# Index byte of an xattr name -> the prefix it stands for.
XATTR_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}


@dataclass(frozen=True, slots=True)
class SuperBlock(Record):
    """The 128 bytes at byte 1024."""

    LAYOUT: ClassVar = struct.Struct("<IIIBBHQQIIII16s16sIHHH38s")

    magic: int
    checksum: int
    feature_compat: int
    block_bits: int
    ext_slots: int
    root_nid: int
    inodes: int
    epoch: int
    epoch_nsec: int
    blocks: int
    meta_block: int
    xattr_block: int
    uuid: bytes
    volume_name: bytes
    feature_incompat: int
    u1: int
    extra_devices: int
    device_table_slot: int
    reserved: bytes


assert SuperBlock.size() == 128


@dataclass(frozen=True, slots=True)
class DeviceSlot(Record):
    """One extra device: ``tag`` names it, ``blocks`` is its length, ``mapped_block`` its place in a flat image."""

    LAYOUT: ClassVar = struct.Struct("<64sII56s")

    tag: bytes
    blocks: int
    mapped_block: int
    reserved: bytes


assert DeviceSlot.size() == DEVICE_SLOT_SIZE


@dataclass(frozen=True, slots=True)
class CompactInode(Record):
    """The 32-byte inode. Read only: Nydus never writes it, and it has no mtime."""

    LAYOUT: ClassVar = struct.Struct("<HHHHIIIIHHI")

    format: int
    xattr_count: int
    mode: int
    nlink: int
    size_low: int
    reserved: int
    u: int
    ino: int
    uid: int
    gid: int
    reserved2: int


assert CompactInode.size() == 32


@dataclass(frozen=True, slots=True)
class ExtendedInode(Record):
    """The 64-byte inode."""

    LAYOUT: ClassVar = struct.Struct("<HHHHQIIIIQII16s")

    format: int
    xattr_count: int
    mode: int
    reserved: int
    file_size: int
    u: int
    ino: int
    uid: int
    gid: int
    mtime: int
    mtime_nsec: int
    nlink: int
    reserved2: bytes


assert ExtendedInode.size() == 64
