"""The digest tree of a bootstrap (``merkle.py``), published beside it so that each block can be verified when it is
read, before the rest is there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from .errors import CorruptError, FormatError
from .merkle import BLOCK, FANOUT, HASH, build, hashes, identity_of
from .record import Buffer, Record
from .source import Source

SUFFIX = ".verity"  # of the tree's name, after the bootstrap's
MAGIC = b"NEVERITY"
_MAX_DATA = 1 << 31  # bytes, as much as nydusd takes of a bootstrap


@dataclass(frozen=True, slots=True)
class _Header(Record):
    LAYOUT: ClassVar = struct.Struct("<8sIIQ32s8x")

    magic: bytes
    version: int
    block: int
    data_size: int
    root: bytes


def _most(size: int) -> int:
    """Bytes of the file of a tree over ``size`` bytes."""
    return _Header.size() + sum(blocks * BLOCK for blocks in _levels(size))


def _levels(size: int) -> list[int]:
    """Blocks of each level, leaves first, above ``size`` bytes of data; none above a single block."""
    levels = []
    blocks = -(-size // BLOCK)
    while blocks > 1:
        blocks = -(-blocks // FANOUT)
        levels.append(blocks)
    return levels


MAX_TREE_FILE = _most(_MAX_DATA)  # bytes


@dataclass(frozen=True, slots=True)
class Tree:
    """A digest tree over ``size`` bytes. ``levels`` are whole blocks of hashes, the leaves first."""

    size: int
    root: bytes
    levels: tuple[bytes, ...]

    @property
    def identity(self) -> str:
        """``sha256:`` and the fs-verity digest in hex."""
        return identity_of(self.size, self.root)

    def leaf(self, block: int) -> bytes:
        """The hash of a block of data."""
        return self.levels[0][block * HASH : (block + 1) * HASH] if self.levels else self.root

    def agrees(self, offset: int, data: memoryview) -> bool:
        """Whether the bytes from a block's start on are right. They end with a block, or with all there is."""
        first, found = offset // BLOCK, hashes(data)
        expected = b"".join(map(self.leaf, range(first, first + len(found) // HASH)))
        return not offset % BLOCK and found == expected

    def pack(self) -> bytes:
        """The file of the tree: a header, then the levels as fs-verity stores them, the topmost first."""
        header = _Header(magic=MAGIC, version=1, block=BLOCK, data_size=self.size, root=self.root)
        return header.pack() + b"".join(reversed(self.levels))


def build_tree(data: Buffer) -> Tree:
    """The tree over a buffer (also an mmap)."""
    view = memoryview(data).cast("B")
    root, levels = build(view)
    return Tree(len(view), root, levels)


def parse_tree(raw: Buffer) -> Tree:
    """A published tree, checked against its own root; FormatError when it is damaged."""
    view = memoryview(raw).cast("B")
    if len(view) < _Header.size():
        raise FormatError("the digest tree is cut off")
    header = _Header.unpack(view)
    if header.magic != MAGIC or header.version != 1 or header.block != BLOCK:
        raise FormatError("not a digest tree of a known version")
    if not 0 < header.data_size <= _MAX_DATA or len(view) != _most(header.data_size):
        raise FormatError(f"a digest tree of {len(view)} bytes cannot be that of {header.data_size} bytes")
    levels, at = [], len(view)
    for blocks in _levels(header.data_size):
        at -= blocks * BLOCK
        levels.append(bytes(view[at : at + blocks * BLOCK]))
    above = header.root
    for level in reversed(levels):
        found = hashes(memoryview(level))
        if above[: len(found)] != found or any(above[len(found) :]):
            raise FormatError("the digest tree does not agree with its root")
        above = level
    return Tree(header.data_size, header.root, tuple(levels))


class VerifiedSource:
    """A bootstrap read in pieces, each verified. For several threads if the source is."""

    def __init__(self, source: Source, tree: Tree) -> None:
        self._source, self.tree = source, tree

    def size(self) -> int:
        return self.tree.size

    def read_at(self, offset: int, length: int) -> Buffer:
        """As of ``Source``; CorruptError when a block that it touches is not what the tree says."""
        end = offset + length
        if offset < 0 or length < 0 or end > self.tree.size:
            raise FormatError(f"bytes {offset}..{end} lie outside {self.tree.size} bytes")
        if not length:
            return b""
        begin = offset - offset % BLOCK
        stop = min(self.tree.size, end + -end % BLOCK)
        data = memoryview(self._source.read_at(begin, stop - begin))
        for at in range(0, len(data), BLOCK):
            if hashes(data[at : at + BLOCK]) != self.tree.leaf((begin + at) // BLOCK):
                raise CorruptError(f"the bootstrap's block at byte {begin + at} is not what its digest tree says")
        return data[offset - begin : end - begin]
