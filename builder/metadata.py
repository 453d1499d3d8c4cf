"""The metadata area of a bootstrap: inodes and directories as listings come, the rest once the blob is done.

Sizes are known from a listing alone, so each inode gets its final place at once, while its file's bytes are
still to be read. Chunk indexes are filled in later by whoever stores the chunks; a directory's entries as
soon as its last subdirectory has a place; link counts and block addresses at the end. The memory needed is
that of the finished bootstrap plus the directories whose listings are still to come.
"""

from __future__ import annotations

import itertools
import operator
import stat
import struct
from array import array
from bisect import bisect_left
from typing import NamedTuple

from ..erofs.dirent import packed_size
from ..erofs.errors import UnsupportedError
from ..erofs.inode import chunk_count, flat_layout
from ..erofs.ondisk import (
    BLOCK_BITS,
    BLOCK_SIZE,
    CHUNK_FORMAT_BITS_MASK,
    CHUNK_FORMAT_INDEXES,
    CHUNK_INDEX,
    DIRENT,
    FILE_TYPE_OF_MODE,
    SLOT_SIZE,
    ExtendedInode,
    FileType,
    Layout,
)
from ..erofs.rafs import MAX_BOOTSTRAP_SIZE
from ..erofs.record import round_up
from ..erofs.xattr import area_count
from .layout import Allocator
from .tree import Listing, Node

_HEADER = ExtendedInode.size()
_pack_inode = ExtendedInode.LAYOUT.pack_into
_pack_dirent = DIRENT.pack
_U = struct.Struct("<I")
_START_BLOCK = struct.Struct("<4xI")  # of a chunk index
_U_OFFSET = 16  # of i_u in an inode
_NLINK_OFFSET = 44
_GROWTH = 1 << 20  # bytes
_MAX_INO = (1 << 31) - 1
_DOT, _DOTDOT = b".", b".."
# i_format of extended inodes
_PLAIN = 1 | Layout.FLAT_PLAIN << 1
_INLINE = 1 | Layout.FLAT_INLINE << 1
_CHUNKS = 1 | Layout.CHUNK_BASED << 1
_S_IFMT = 0o170000
_TYPES = {mode: file_type.value for mode, file_type in FILE_TYPE_OF_MODE.items()}
_DIR = FileType.DIR.value
_NSEC = 1_000_000_000


class FileToFill(NamedTuple):
    """A regular file with bytes: ``indexes`` is where its chunk indexes go, in the metadata area."""

    node: Node
    indexes: int


class _Place(NamedTuple):
    """Where an inode, its whole blocks and what does not fill a block go: offsets in the metadata area."""

    inode: int
    format: int  # of the inode
    blocks: int
    tail: int


class _Directory:
    """A directory with a place of its own, waiting for its subdirectories to get theirs."""

    __slots__ = ("missing", "names", "nid", "nids", "parent", "size", "types", "where")

    def __init__(self, names: list[bytes], types: list[int], nid: int, parent: int, size: int, where: _Place) -> None:
        self.names = names  # of all children, in order
        self.types = types
        self.nids: list[int] = []
        self.nid = nid
        self.parent = parent  # its nid
        self.size = size
        self.where = where
        self.missing = 0  # subdirectories without a place


class _Linked:
    """A file with several names."""

    __slots__ = ("names", "nid", "place")

    def __init__(self, place: int, nid: int) -> None:
        self.place, self.nid, self.names = place, nid, 1


class _Pending(NamedTuple):
    """A directory whose listing is still to come, and where its nid is to be entered."""

    node: Node
    ino: int
    parent: _Directory | None
    position: int


class MetadataArea:
    """The metadata area of a bootstrap under construction; ``data`` is indexed by places in the area.

    ``add`` takes the listings of a source in their order; ``close`` completes what only the end can tell.
    """

    def __init__(self, root: Node, chunk_size: int) -> None:
        self.data = bytearray()
        self.has_xattrs = False
        self.directories = 0
        self.files = 0  # inodes that are not directories
        self._chunk_size = chunk_size
        self._chunk_format = chunk_size.bit_length() - 1 - BLOCK_BITS | CHUNK_FORMAT_INDEXES
        self._allocator = Allocator()
        self._pending = [_Pending(root, 1, None, 0)]
        self._next_ino = 2
        self._links: dict[tuple[int, int], _Linked] = {}
        self._in_blocks = array("Q")  # places of inodes whose i_u is a block address
        self._many_chunks: list[tuple[int, int, int]] = []  # (place of the inode, of its indexes, size)

    @property
    def inode_count(self) -> int:
        """As the superblock counts: every name, the root included."""
        return self._next_ino - 1

    def add(self, listing: Listing) -> list[FileToFill]:
        """Give the next directory and its children that are not directories their places.

        Returns:
            The regular files among them that have bytes, each once, in the order of names.
        """
        node, ino, parent, position = self._pending.pop()
        xattrs, nodes = listing
        if xattrs:
            node = node._replace(xattrs=xattrs)
        directory = self._place_directory(node, ino, parent, position, nodes)
        first_ino = self._next_ino
        self._next_ino = first_ino + len(nodes)
        if self._next_ino > _MAX_INO:
            raise UnsupportedError(f"more than {_MAX_INO} names in one image")
        to_fill: list[FileToFill] = []
        subdirectories: list[_Pending] = []
        nids = directory.nids
        for child_ino, child in enumerate(nodes, first_ino):
            kind = child.mode & _S_IFMT
            if kind == stat.S_IFREG:
                nids.append(self._place_regular(child, child_ino, to_fill))
            elif kind == stat.S_IFDIR:
                subdirectories.append(_Pending(child, child_ino, directory, child_ino - first_ino))
                nids.append(0)
            elif kind == stat.S_IFLNK:
                nids.append(self._place_symlink(child, child_ino))
            else:
                nids.append(self._place_special(child, child_ino))
        self.directories += 1
        self.files += len(nodes) - len(subdirectories)
        if subdirectories:
            directory.missing = len(subdirectories)
            subdirectories.reverse()
            self._pending += subdirectories
        else:
            self._write_entries(directory)
        return to_fill

    def close(self, first_block: int) -> memoryview:
        """Complete the area for a bootstrap in which it starts at block ``first_block``; its bytes, in whole blocks.

        All chunk indexes must have been filled in.
        """
        for linked in self._links.values():
            _U.pack_into(self.data, linked.place + _NLINK_OFFSET, linked.names)
        for place in self._in_blocks:
            at = place + _U_OFFSET
            _U.pack_into(self.data, at, _U.unpack_from(self.data, at)[0] + first_block)
        for place, index, size in self._many_chunks:
            self._join_chunks(place, index, size)
        end = round_up(self._allocator.end, BLOCK_SIZE)
        self._grow(end)
        return memoryview(self.data)[:end]

    # --- places -------------------------------------------------------------------------------------------

    def _place_inode(self, size: int) -> int:
        place = self._allocator.inode(size)
        if self._allocator.end > len(self.data):
            self._grow(self._allocator.end)
        return place

    def _grow(self, end: int) -> None:
        if end > MAX_BOOTSTRAP_SIZE:
            raise UnsupportedError(
                f"the metadata needs more than the {MAX_BOOTSTRAP_SIZE >> 20} MiB that readers accept",
                hint="a larger --chunk-size needs less; so do several images",
            )
        missing = end - len(self.data)
        if missing > 0:
            self.data += bytes(max(missing, _GROWTH))

    def _place_directory(
        self, node: Node, ino: int, parent: _Directory | None, position: int, nodes: list[Node]
    ) -> _Directory:
        names = [child.name for child in nodes]
        types = [_TYPES[child.mode & _S_IFMT] for child in nodes]
        size = (len(names) + 2) * DIRENT.size + len(b"".join(names)) + len(_DOT + _DOTDOT)
        if size > BLOCK_SIZE:
            size = packed_size(sorted([*names, _DOT, _DOTDOT]), BLOCK_SIZE)
        where = self._place_flat(node, size)
        nid = where.inode // SLOT_SIZE
        blocks = where.blocks // BLOCK_SIZE
        self._write_inode(node, ino, where.inode, where.format, size, blocks, 2 + types.count(_DIR))
        if parent is None:
            return _Directory(names, types, nid, nid, size, where)
        directory = _Directory(names, types, nid, parent.nid, size, where)
        parent.nids[position] = nid
        parent.missing -= 1
        if not parent.missing:
            self._write_entries(parent)
        return directory

    def _place_flat(self, node: Node, size: int) -> _Place:
        """A place for the inode of a directory or symlink and its ``size`` bytes."""
        head = _HEADER + len(node.xattrs)
        inline = flat_layout(_HEADER, len(node.xattrs), size, BLOCK_SIZE) == Layout.FLAT_INLINE
        tail_size = size % BLOCK_SIZE
        allocator = self._allocator
        if inline:
            inode = allocator.within_block(head + tail_size)
            blocks = allocator.blocks(size - tail_size) if size > tail_size else 0
            tail = inode + head
        else:
            inode = allocator.inode(head)
            blocks = allocator.blocks(round_up(size, BLOCK_SIZE))
            tail = blocks + size - tail_size
        if blocks:
            self._in_blocks.append(inode)
        if allocator.end > len(self.data):
            self._grow(allocator.end)
        return _Place(inode, _INLINE if inline else _PLAIN, blocks, tail)

    def _place_symlink(self, node: Node, ino: int) -> int:
        where = self._place_flat(node, node.size)
        self._write_inode(node, ino, where.inode, where.format, node.size, where.blocks // BLOCK_SIZE, 1)
        self.data[where.tail : where.tail + node.size] = node.target
        return where.inode // SLOT_SIZE

    def _place_special(self, node: Node, ino: int) -> int:
        place = self._place_inode(_HEADER + len(node.xattrs))
        self._write_inode(node, ino, place, _PLAIN, 0, node.rdev, 1)
        return place // SLOT_SIZE

    def _place_regular(self, node: Node, ino: int, to_fill: list[FileToFill]) -> int:
        linked = self._links.get(node.link) if node.link else None
        if linked:
            linked.names += 1
            return linked.nid
        size = node.size
        head = round_up(_HEADER + len(node.xattrs), CHUNK_INDEX.size)
        count = chunk_count(size, self._chunk_size)
        place = self._place_inode(head + count * CHUNK_INDEX.size)
        self._write_inode(node, ino, place, _CHUNKS, size, self._chunk_format, 1)
        if node.link:
            self._links[node.link] = _Linked(place, place // SLOT_SIZE)
        if count:
            to_fill.append(FileToFill(node, place + head))
            if count > 1:
                self._many_chunks.append((place, place + head, size))
        return place // SLOT_SIZE

    # --- bytes --------------------------------------------------------------------------------------------

    def _write_inode(
        self, node: Node, ino: int, place: int, inode_format: int, size: int, u: int, nlink: int
    ) -> None:
        xattrs = node.xattrs
        seconds, nanoseconds = divmod(node.mtime, _NSEC)
        _pack_inode(
            self.data,
            place,
            inode_format,
            area_count(len(xattrs)),
            node.mode,
            0,
            size,
            u,
            ino,
            node.uid,
            node.gid,
            seconds & 0xFFFF_FFFF_FFFF_FFFF,
            nanoseconds,
            nlink,
            b"",
        )
        if xattrs:
            self.has_xattrs = True
            self.data[place + _HEADER : place + _HEADER + len(xattrs)] = xattrs

    def _write_entries(self, directory: _Directory) -> None:
        """The blocks of a directory; all nids are known."""
        names, nids, types, size = directory.names, directory.nids, directory.types, directory.size
        dot, dotdot = bisect_left(names, _DOT), bisect_left(names, _DOTDOT) + 1
        names.insert(dot, _DOT)
        names.insert(dotdot, _DOTDOT)
        nids.insert(dot, directory.nid)
        nids.insert(dotdot, directory.parent)
        types.insert(dot, _DIR)
        types.insert(dotdot, _DIR)
        first, blocks = 0, directory.where.blocks
        for start in range(0, size, BLOCK_SIZE):
            whole = start + BLOCK_SIZE <= size
            at = blocks + start if whole else directory.where.tail
            stop = len(names) if size - start <= BLOCK_SIZE else _block_end(names, first)
            offset = (stop - first) * DIRENT.size
            heads = []
            for i in range(first, stop):
                heads.append(_pack_dirent(nids[i], offset, types[i], 0))
                offset += len(names[i])
            heads += names[first:stop]
            self.data[at : at + offset] = b"".join(heads)
            first = stop

    def _join_chunks(self, place: int, index: int, size: int) -> None:
        """Let the kernel see a file whose chunks follow each other in one blob as a single chunk."""
        end = index + chunk_count(size, self._chunk_size) * CHUNK_INDEX.size
        entries = _START_BLOCK.iter_unpack(memoryview(self.data)[index:end])
        blocks = (block for (block,) in entries)
        first, step = next(blocks), self._chunk_size // BLOCK_SIZE
        follow = all(map(operator.eq, blocks, itertools.count(first + step, step)))
        bits = (size - 1).bit_length() - BLOCK_BITS
        if follow and bits <= CHUNK_FORMAT_BITS_MASK:
            _U.pack_into(self.data, place + _U_OFFSET, bits | CHUNK_FORMAT_INDEXES)


def _block_end(names: list[bytes], first: int) -> int:
    """The first name behind ``first`` that does not fit into the same block."""
    used = 0
    for at in range(first, len(names)):
        used += DIRENT.size + len(names[at])
        if used > BLOCK_SIZE:
            return at
    return len(names)
