"""Rewrite a bootstrap's metadata area for another device table: the bulk of localizing (``localize.py``).

The area moves up by some blocks, so the block addresses of directories and symlinks change; and every chunk
index is replaced by the one that means the same bytes on the new devices. Every nid stays what it was.

Written for speed: an image has hundreds of thousands of inodes, and while they are rewritten somebody waits
for the first mount. So the loops over inodes spell out what an inode's head says, directories are walked level
by level, and the entries of a whole level are taken apart at once. All of it is untrusted, and bounded by the
size of the bootstrap.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import compress

from .errors import FormatError
from .ondisk import (
    BLOCK_BITS,
    BLOCK_SIZE,
    CHUNK_FORMAT_INDEXES,
    DIRENT,
    SLOT_SIZE,
    XATTR_HEADER_SIZE,
    FileType,
    Layout,
)
from .record import Buffer, integers, little_endian

Targets = Mapping[int, tuple[int, int]]

# The head of an inode as 64-bit words. First: bit 0 says extended, 1-3 are the layout, 16-31 the xattrs, 44-47 the
# file type; second: the size (32 bits of a compact one); third: 32 bits of block address, or chunk format.
_EXTENDED = 1
_LAYOUT, _TYPE = 7 << 1, 0xF << 44
_HEAD = _TYPE | 0xFFFF << 16 | _LAYOUT | _EXTENDED
_DIRECTORY, _SYMLINK, _REGULAR = 0x4 << 44, 0xA << 44, 0x8 << 44 | Layout.CHUNK_BASED << 1
_INLINE = Layout.FLAT_INLINE << 1
# What nearly all inodes are: extended, without xattrs; directories with all names in the tail.
_USUAL_DIRECTORY, _USUAL_FILE = _DIRECTORY | _INLINE | _EXTENDED, _REGULAR | _EXTENDED
_ADDRESS = 0xFFFFFFFF

# For bytes.translate: 1 for one type of directory entry, 0 for the others.
_IS_FILE, _IS_DIRECTORY, _IS_SYMLINK = (
    bytes(kind == wanted for kind in range(256)) for wanted in (FileType.REG, FileType.DIR, FileType.SYMLINK)
)
_TYPES = bytes(range(FileType.REG, FileType.SYMLINK + 1))


def rewrite(
    bootstrap: Buffer, meta: int, end: int, root_nid: int, chunk_size: int, shift: int, targets: Targets
) -> array[int]:
    """The metadata area (bytes ``meta`` to ``end`` of the bootstrap, whole blocks), to lie ``shift`` blocks higher.

    Args:
        targets: each chunk index of the image, as a 64-bit word, -> (the new one, bytes of the chunk).

    FormatError when something points nowhere, is not what it should be, or is no chunk of ``targets``.
    """
    area = _Area(bootstrap, meta, end, chunk_size, shift)
    try:
        files, symlinks = area.move_directories(root_nid)
        area.move_symlinks(symlinks)
        area.point_files(files, targets)
    except IndexError:
        raise FormatError("an inode or directory entry points outside the bootstrap") from None
    except KeyError:
        raise FormatError("a chunk index does not fit the blob's chunk-info array") from None
    return little_endian(area.new)


class _Area:
    """The metadata area as 64-bit words; word ``nid * 4`` is the head of inode ``nid``.

    Reads come from ``old`` and writes go to ``new``, so that nothing is ever changed twice.
    """

    def __init__(self, bootstrap: Buffer, meta: int, end: int, chunk_size: int, shift: int) -> None:
        self.image = memoryview(bootstrap)
        self.meta, self.chunk_size, self.shift = meta, chunk_size, shift
        self.old = integers("Q", self.image[meta:end])
        self.new = array("Q")
        self.new.frombytes(self.old.cast("B"))
        # Bounds on all work: no image has more directory bytes or chunk indexes than bytes of metadata.
        self.dirent_budget = end
        self.index_budget = len(self.old)
        self.large: set[int] = set()  # files of several chunks that are done

    def move_directories(self, root_nid: int) -> tuple[list[int], list[int]]:
        """Walk and move all directories; what they list as regular files and as symlinks (some twice, maybe)."""
        files: list[int] = []
        symlinks: list[int] = []
        known = bytearray(len(self.old) // 4 + 1)  # 1 for each directory that was met
        level = [root_nid]
        known[root_nid] = 1
        while level:
            entries = b"".join(self._move_level(level))
            types = entries[10 :: DIRENT.size]
            if types.translate(None, _TYPES):
                raise FormatError("a directory entry of an unknown type")
            halves = integers("I", entries)
            if any(halves[1::3]):
                raise FormatError("a directory entry points outside the bootstrap")
            nids = halves[0::3].tolist()
            files += compress(nids, types.translate(_IS_FILE))
            symlinks += compress(nids, types.translate(_IS_SYMLINK))
            level = []
            for nid in compress(nids, types.translate(_IS_DIRECTORY)):
                if not known[nid]:  # "." and ".." are
                    known[nid] = 1
                    level.append(nid)
        return files, symlinks

    def _move_level(self, nids: Iterable[int]) -> list[memoryview]:
        """Move some directories; the entries of all their blocks, without the names."""
        image, old, new, shift = self.image, self.old, self.new, self.shift
        tails, size_of_image, size_of_entry = self.meta + 64, len(image), DIRENT.size
        highest, used = _ADDRESS - shift, 0
        entries: list[memoryview] = []
        for nid in nids:
            at = nid * 4
            size, third = old[at + 1], old[at + 2]
            if old[at] & _HEAD == _USUAL_DIRECTORY and 0 < size < BLOCK_SIZE:
                start = tails + nid * SLOT_SIZE
                names = old[at + 9] & 0xFFFF  # the first entry says where its name is: behind all entries
                if not 0 < names <= size or names % size_of_entry or start + size > size_of_image:
                    raise _bad_block(nid, names)
                used += size
                entries.append(image[start : start + names])
            else:
                entries += self._entries(nid)
            new[at + 2] = third + shift if third & _ADDRESS <= highest else third & ~_ADDRESS  # as _moved
        self.dirent_budget -= used
        if self.dirent_budget < 0:
            raise FormatError("directories larger than the whole bootstrap")
        return entries

    def _entries(self, nid: int) -> Iterator[memoryview]:
        """The entries in each block of a directory of any kind."""
        word, size, third = self.old[nid * 4 : nid * 4 + 3]
        if word & _TYPE != _DIRECTORY:
            raise FormatError(f"nid {nid} is listed as a directory and is none")
        tail, size = _tail(word, size)
        self.dirent_budget -= size
        if self.dirent_budget < 0:
            raise FormatError("directories larger than the whole bootstrap")
        inline = size % BLOCK_SIZE if word & _LAYOUT == _INLINE else 0
        start = (third & _ADDRESS) << BLOCK_BITS
        end = start + size - inline
        blocks = [(block, min(BLOCK_SIZE, end - block)) for block in range(start, end, BLOCK_SIZE)]
        if inline:
            blocks.append((self.meta + nid * SLOT_SIZE + tail, inline))
        for block, length in blocks:
            names = self.image[block + 8] | self.image[block + 9] << 8
            if not 0 < names <= length or names % DIRENT.size or block + length > len(self.image):
                raise _bad_block(nid, names)
            yield self.image[block : block + names]

    def move_symlinks(self, nids: Iterable[int]) -> None:
        for nid in nids:
            at = nid * 4
            if self.old[at] & _TYPE != _SYMLINK:
                raise FormatError(f"nid {nid} is listed as a symlink and is none")
            self.new[at + 2] = _moved(self.old[at + 2], self.shift)

    def point_files(self, nids: Iterable[int], targets: Targets) -> None:
        """Point every chunk index of these regular files at its segment."""
        old, new, chunk_size = self.old, self.new, self.chunk_size
        for nid in nids:
            at = nid * 4
            word, size = old[at], old[at + 1]
            if word & _HEAD == _USUAL_FILE:
                place = at + 8
            elif word & (_TYPE | _LAYOUT) == _REGULAR:
                tail, size = _tail(word, size)
                place = at + (tail + 7 >> 3)
            else:
                raise FormatError(f"nid {nid} is listed as a regular file and is none")
            if size > chunk_size:
                self._point_large(nid, place, size, targets)
            elif size:
                new[place], length = targets[old[place]]
                if length != size:
                    raise _wrong_size(nid)

    def _point_large(self, nid: int, place: int, size: int, targets: Targets) -> None:
        """Point the chunk indexes of a file of several chunks, from word ``place`` on."""
        if nid in self.large:
            return
        self.large.add(nid)
        chunk_size = self.chunk_size
        count = -(-size // chunk_size)
        self.index_budget -= count
        if self.index_budget < 0:
            raise FormatError(f"nid {nid}: more chunk indexes than the bootstrap has room for")
        # A file of consecutive chunks may carry a larger chunk size for the kernel; its pieces are in several
        # segments now.
        chunk_format = CHUNK_FORMAT_INDEXES | chunk_size.bit_length() - 1 - BLOCK_BITS
        self.new[nid * 4 + 2] = self.old[nid * 4 + 2] & ~_ADDRESS | chunk_format
        for position in range(place, place + count):
            self.new[position], length = targets[self.old[position]]
            if length != min(size, chunk_size):
                raise _wrong_size(nid)
            size -= chunk_size


def _tail(word: int, size: int) -> tuple[int, int]:
    """Of any inode's first two words: (bytes from its start to its tail, behind the xattrs; its size)."""
    tail = 64
    if not word & _EXTENDED:
        tail, size = 32, size & 0xFFFFFFFF
    if xattrs := word >> 16 & 0xFFFF:
        tail += XATTR_HEADER_SIZE + 4 * (xattrs - 1)
    return tail, size


def _moved(third: int, shift: int) -> int:
    """The third word with its block address moved; an address that would not fit belongs to a tail alone."""
    return third + shift if (third & _ADDRESS) + shift <= _ADDRESS else third & ~_ADDRESS


def _bad_block(nid: int, names: int) -> FormatError:
    return FormatError(f"nid {nid}: a directory block with {names} bytes of entries, or outside the bootstrap")


def _wrong_size(nid: int) -> FormatError:
    return FormatError(f"nid {nid}: a chunk has not the size that the file needs")
