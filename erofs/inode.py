"""Inodes: one typed, validated view of both on-disk forms, and the index of a regular file's chunks.

An inode lies at ``area.start + nid * 32``: a header of 32 (compact) or 64 (extended) bytes, its xattrs,
then its tail: the inline end of a directory or symlink, or a file's chunk indexes on the next multiple
of 8. Nydus writes extended headers only; compact ones have no mtime and are read, never written.
Source: Linux ``fs/erofs/inode.c`` and ``data.c`` (6.18).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .errors import FormatError
from .ondisk import (
    BLOCK_BITS,
    CHUNK_FORMAT_BITS_MASK,
    CHUNK_FORMAT_INDEXES,
    CHUNK_INDEX,
    SLOT_SIZE,
    CompactInode,
    ExtendedInode,
    Layout,
)
from .record import Buffer, round_up
from .rules import Rule
from .xattr import area_count, area_size

MAX_SYMLINK = 4096
MAX_SIZE = (1 << 63) - 1
NO_BLOCK = 0xFFFFFFFF  # a start block that means a hole, which RAFS does not have

_EXTENDED = 1
_COMPACT_SIZE = CompactInode.size()
_EXTENDED_SIZE = ExtendedInode.size()
_unpack_compact = CompactInode.LAYOUT.unpack_from
_unpack_extended = ExtendedInode.LAYOUT.unpack_from

# File type | layout of every pair that RAFS v6 uses. Types sit in bits 12-15 of a mode, layouts are below 8.
_LAYOUTS = {stat.S_IFREG | Layout.CHUNK_BASED: Layout.CHUNK_BASED}
_LAYOUTS |= {kind | layout: layout for kind in (stat.S_IFDIR, stat.S_IFLNK) for layout in list(Layout)[:2]}
_LAYOUTS |= {
    kind | Layout.FLAT_PLAIN: Layout.FLAT_PLAIN for kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
}
_FLAT_TYPES = (stat.S_IFDIR, stat.S_IFLNK)
_DEVICE_TYPES = (stat.S_IFCHR, stat.S_IFBLK)


class Area(NamedTuple):
    """Where a bootstrap's inodes and their data lie, and what it takes to read them. All in bytes."""

    start: int  # where nid 0 would lie
    first: int  # nothing of an inode lies before this byte,
    end: int  # nor behind this
    block_size: int
    chunk_size: int
    epoch: int = 0  # mtime of compact inodes, seconds
    epoch_nsec: int = 0


class Inode(NamedTuple):
    """One inode; ``offset`` (bytes) is from the start of the bootstrap. Its body lies inside the metadata area."""

    nid: int
    offset: int
    header_size: int
    xattr_size: int
    layout: Layout
    mode: int
    nlink: int
    size: int
    uid: int
    gid: int
    mtime: int
    mtime_nsec: int
    ino: int
    u: int  # start block, device number or chunk format, whichever the type wants

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def rdev(self) -> int:
        """Device number as the kernel encodes it in 32 bits; 0 for what is not a device."""
        return self.u if stat.S_IFMT(self.mode) in _DEVICE_TYPES else 0

    @property
    def xattr_offset(self) -> int:
        return self.offset + self.header_size

    @property
    def tail_offset(self) -> int:
        """Where an inline tail lies."""
        return self.offset + self.header_size + self.xattr_size

    @property
    def chunk_index_offset(self) -> int:
        return round_up(self.tail_offset, CHUNK_INDEX.size)

    @property
    def chunk_bits(self) -> int:
        """log2 of the chunk size that the kernel uses for this file; the image's own may be smaller."""
        return BLOCK_BITS + (self.u & CHUNK_FORMAT_BITS_MASK)

    def body_end(self, area: Area) -> int:
        """First byte behind header, xattrs and tail."""
        if self.layout == Layout.CHUNK_BASED:
            return self.chunk_index_offset + chunk_count(self.size, area.chunk_size) * CHUNK_INDEX.size
        if self.layout == Layout.FLAT_INLINE:
            return self.tail_offset + self.size % area.block_size
        return self.tail_offset

    def blocks(self, area: Area) -> tuple[int, int]:
        """(first byte, bytes) of what lies in blocks of its own, away from the inode."""
        if self.layout == Layout.CHUNK_BASED or stat.S_IFMT(self.mode) not in _FLAT_TYPES:
            return 0, 0
        length = self.size - self.size % area.block_size if self.layout == Layout.FLAT_INLINE else self.size
        return (self.u * area.block_size, length) if length else (0, 0)


def chunk_count(size: int, chunk_size: int) -> int:
    """Chunks of a file of ``size`` bytes."""
    return -(-size // chunk_size)


def flat_layout(header_size: int, xattr_size: int, size: int, block_size: int) -> Layout:
    """The layout of a directory or symlink of ``size`` bytes: inline when inode and tail fit into one block."""
    tail = size % block_size
    fits = tail and header_size + xattr_size + tail <= block_size
    return Layout.FLAT_INLINE if fits else Layout.FLAT_PLAIN


def parse_inode(data: Buffer, nid: int, area: Area) -> Inode:
    """The inode ``nid`` of a bootstrap's bytes.

    FormatError (inode-bounds, inode-format, inode-size, chunk-format, inline-tail) unless everything that
    the inode owns lies inside the metadata area and its type, layout and size go together.
    """
    offset = area.start + nid * SLOT_SIZE
    if nid < 0 or offset < area.first or offset + _COMPACT_SIZE > area.end:
        raise FormatError(f"inode {nid} would lie outside the metadata", rule=Rule.INODE_BOUNDS)
    form = data[offset] | data[offset + 1] << 8
    if form & _EXTENDED:
        if offset + _EXTENDED_SIZE > area.end:
            raise FormatError("the inode is cut off", rule=Rule.INODE_BOUNDS)
        header_size = _EXTENDED_SIZE
        _, xattrs, mode, _, size, u, ino, uid, gid, mtime, mtime_nsec, nlink, _ = _unpack_extended(data, offset)
        if mtime > MAX_SIZE:  # before 1970
            mtime -= 1 << 64
    else:
        header_size = _COMPACT_SIZE
        _, xattrs, mode, nlink, size, delta, u, ino, uid, gid, _ = _unpack_compact(data, offset)
        mtime, mtime_nsec = area.epoch + delta, area.epoch_nsec
    if form & ~0xF:
        raise FormatError(f"unknown inode format {form:#x}", rule=Rule.INODE_FORMAT)
    layout = _LAYOUTS.get(stat.S_IFMT(mode) | form >> 1)
    if layout is None:
        raise FormatError(f"mode {mode:#o} with data layout {form >> 1}", rule=Rule.INODE_FORMAT)
    inode = Inode(
        nid, offset, header_size, area_size(xattrs), layout, mode, nlink, size, uid, gid, mtime, mtime_nsec, ino, u
    )
    _check_data(inode, area)
    return inode


def _check_data(inode: Inode, area: Area) -> None:
    """What the inode owns lies inside the area, and its size is one its type can have."""
    size, layout, kind = inode.size, inode.layout, stat.S_IFMT(inode.mode)
    if size > MAX_SIZE or (kind == stat.S_IFLNK and size > MAX_SYMLINK):
        raise FormatError(f"a size of {size} bytes", rule=Rule.INODE_SIZE)
    if layout == Layout.CHUNK_BASED:
        if inode.u & ~CHUNK_FORMAT_BITS_MASK != CHUNK_FORMAT_INDEXES:
            raise FormatError(f"chunk format {inode.u:#x} is not one RAFS v6 uses", rule=Rule.CHUNK_FORMAT)
    elif (size > 0) != (kind in _FLAT_TYPES):
        raise FormatError(f"a size of {size} bytes with mode {inode.mode:#o}", rule=Rule.INODE_SIZE)
    if inode.body_end(area) > area.end:
        raise FormatError("xattrs or data of the inode reach behind the metadata", rule=Rule.INODE_BOUNDS)
    if layout == Layout.FLAT_INLINE:
        # The kernel reads the last block of an inline file as its tail, a whole one too.
        tail = (size - 1) % area.block_size + 1
        if inode.tail_offset % area.block_size + tail > area.block_size:
            raise FormatError(f"the inline tail of {tail} bytes crosses a block's end", rule=Rule.INLINE_TAIL)
    start, length = inode.blocks(area)
    if length and (start < area.first or start + length > area.end):
        raise FormatError(f"{length} bytes of data at byte {start} lie outside the metadata", rule=Rule.INODE_BOUNDS)


def pack_inode(
    *,
    layout: Layout,
    mode: int,
    nlink: int,
    size: int,
    uid: int,
    gid: int,
    mtime: int,
    mtime_nsec: int,
    ino: int,
    u: int,
    xattr_size: int,
) -> bytes:
    """The 64 bytes of an extended inode; arguments as the fields of ``Inode``."""
    return ExtendedInode.LAYOUT.pack(
        _EXTENDED | layout << 1,
        area_count(xattr_size),
        mode,
        0,
        size,
        u,
        ino,
        uid,
        gid,
        mtime % (1 << 64),
        mtime_nsec,
        nlink,
        bytes(16),
    )


class ChunkIndex(NamedTuple):
    """Where one chunk of a file lies: entry ``ci_index`` of a blob's chunk info, at a block of the blob's device."""

    blob_index: int
    ci_index: int
    start_block: int


def parse_chunk_indexes(array: Buffer) -> Iterator[ChunkIndex]:
    """Chunk indexes one by one, as they are written; a device id of 0 gives blob index -1."""
    for low, device, block in CHUNK_INDEX.iter_unpack(array):
        yield ChunkIndex((device & 0xFF) - 1, (device & 0xFF00) << 8 | low, block)


def pack_chunk_indexes(chunks: Iterable[ChunkIndex]) -> bytes:
    """The 8-byte chunk indexes of a file."""
    return b"".join([CHUNK_INDEX.pack(ci & 0xFFFF, (ci >> 16) << 8 | blob + 1, block) for blob, ci, block in chunks])
