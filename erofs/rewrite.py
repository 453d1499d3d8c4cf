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
from .inode import MAX_SYMLINK
from .ondisk import (
    BLOCK_BITS,
    BLOCK_SIZE,
    CHUNK_FORMAT_BITS_MASK,
    CHUNK_FORMAT_INDEXES,
    DIRENT,
    FILE_TYPE_OF_MODE,
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
_FORM = 0xF << 44 | 0xFFFE  # file type and layout, and bits that must be 0
_HEAD = _FORM | 0xFFFF << 16 | _EXTENDED
_DIRECTORY, _SYMLINK, _REGULAR = 0x4 << 44, 0xA << 44, 0x8 << 44 | Layout.CHUNK_BASED << 1
_INLINE = Layout.FLAT_INLINE << 1
# What nearly all inodes are: extended, without xattrs; directories and symlinks with everything in the tail.
_USUAL_DIRECTORY, _USUAL_SYMLINK = _DIRECTORY | _INLINE | _EXTENDED, _SYMLINK | _INLINE | _EXTENDED
_USUAL_FILE = _REGULAR | _EXTENDED
_ADDRESS = 0xFFFFFFFF
_PLACE = _ADDRESS << 32 | 0xFF << 16  # of a chunk index: start block and device

# For bytes.translate: 1 for one type of directory entry, 0 for the others.
_IS_FILE, _IS_DIRECTORY, _IS_SYMLINK = (
    bytes(kind == wanted for kind in range(256)) for wanted in (FileType.REG, FileType.DIR, FileType.SYMLINK)
)
_WITH_DATA = bytes((FileType.REG, FileType.DIR, FileType.SYMLINK))
_HAS_NO_DATA = bytes(kind not in _WITH_DATA for kind in range(256))
# The types of other files, and the _FORM of their inodes.
_WITHOUT_DATA: dict[int, int] = {
    kind: mode << 32 for mode, kind in FILE_TYPE_OF_MODE.items() if kind not in _WITH_DATA
}


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
        raise FormatError("a file has a chunk that the blob's chunk info or the chunk table has not") from None
    return little_endian(area.new)


class _Area:
    """The metadata area as 64-bit words; word ``nid * 4`` is the head of inode ``nid``.

    Reads come from ``old`` and writes go to ``new``, so that nothing is ever changed twice.
    """

    def __init__(self, bootstrap: Buffer, meta: int, end: int, chunk_size: int, shift: int) -> None:
        self.image = memoryview(bootstrap)
        self.meta, self.chunk_size, self.shift = meta, chunk_size, shift
        self.chunk_format = CHUNK_FORMAT_INDEXES | chunk_size.bit_length() - 1 - BLOCK_BITS
        self.end = end
        self.old = integers("Q", self.image[meta:end])
        self.formats = integers("I", self.image[meta:end])[4:]  # number nid * 8 is the chunk format of a file
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
            halves = integers("I", entries)
            if any(halves[1::3]):
                raise FormatError("a directory entry points outside the bootstrap")
            nids = halves[0::3].tolist()
            if types.translate(None, _WITH_DATA):
                self._check_without_data(compress(zip(nids, types, strict=True), types.translate(_HAS_NO_DATA)))
            files += compress(nids, types.translate(_IS_FILE))
            symlinks += compress(nids, types.translate(_IS_SYMLINK))
            level = []
            for nid in compress(nids, types.translate(_IS_DIRECTORY)):
                if not known[nid]:  # "." and ".." are
                    known[nid] = 1
                    level.append(nid)
        return files, symlinks

    def _check_without_data(self, entries: Iterable[tuple[int, int]]) -> None:
        """Entries (nid, type) of other types are what they say: anything else would keep its old addresses."""
        for nid, kind in entries:
            if kind not in _WITHOUT_DATA:
                raise FormatError(f"a directory entry of the unknown type {kind}")
            word, size = self.old[nid * 4], self.old[nid * 4 + 1]
            if word & _FORM != _WITHOUT_DATA[kind] or _tail(word, size)[1]:
                raise FormatError(f"nid {nid} is listed as a file of type {kind} and is none")

    def _move_level(self, nids: Iterable[int]) -> list[memoryview]:
        """Move some directories; the entries of all their blocks, without the names."""
        image, old, new, shift = self.image, self.old, self.new, self.shift
        tails, end, size_of_entry = self.meta + 64, self.end, DIRENT.size
        highest, used = _ADDRESS - shift, 0
        entries: list[memoryview] = []
        for nid in nids:
            at = nid * 4
            size, third = old[at + 1], old[at + 2]
            if old[at] & _HEAD == _USUAL_DIRECTORY and 0 < size < BLOCK_SIZE:
                start = tails + nid * SLOT_SIZE
                names = old[at + 9] & 0xFFFF  # the first entry says where its name is: behind all entries
                if not 0 < names <= size or names % size_of_entry or start + size > end:
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
        for block, length in self._data(nid, _DIRECTORY):
            self.dirent_budget -= length
            if self.dirent_budget < 0:
                raise FormatError("directories larger than the whole bootstrap")
            names = self.image[block + 8] | self.image[block + 9] << 8
            if not 0 < names <= length or names % DIRENT.size:
                raise _bad_block(nid, names)
            yield self.image[block : block + names]

    def _data(self, nid: int, kind: int) -> Iterator[tuple[int, int]]:
        """(byte of the bootstrap, bytes) of what a directory or symlink holds, block by block and the tail."""
        at = nid * 4
        word, size, third = self.old[at], self.old[at + 1], self.old[at + 2]
        if word & _FORM not in (kind, kind | _INLINE):
            raise FormatError(f"nid {nid} is listed as a {_NAMES[kind]} and is none")
        tail, size = _tail(word, size)
        inline = size % BLOCK_SIZE if word & _FORM == kind | _INLINE else 0
        start, tail = (third & _ADDRESS) << BLOCK_BITS, self.meta + nid * SLOT_SIZE + tail
        end = start + size - inline
        outside = start != end and (start < self.meta or end > self.end)
        if not size or outside or tail + inline > self.end:
            raise FormatError(f"nid {nid}: its {size} bytes lie outside the metadata")
        for block in range(start, end, BLOCK_SIZE):
            yield block, min(BLOCK_SIZE, end - block)
        if inline:
            yield tail, inline

    def move_symlinks(self, nids: Iterable[int]) -> None:
        for nid in nids:
            at = nid * 4
            usual = self.old[at] & _HEAD == _USUAL_SYMLINK and 0 < self.old[at + 1] < BLOCK_SIZE
            if not usual and sum(length for _, length in self._data(nid, _SYMLINK)) > MAX_SYMLINK:
                raise FormatError(f"nid {nid}: a symlink of more than {MAX_SYMLINK} bytes")
            self.new[at + 2] = _moved(self.old[at + 2], self.shift)

    def point_files(self, nids: Iterable[int], targets: Targets) -> None:
        """Point every chunk index of these regular files at its segment."""
        old, new, chunk_size = self.old, self.new, self.chunk_size
        formats, usual = self.formats, self.chunk_format
        for nid in nids:
            at = nid * 4
            word, size = old[at], old[at + 1]
            if word & _HEAD == _USUAL_FILE:
                place = at + 8
            elif word & _FORM == _REGULAR:
                tail, size = _tail(word, size)
                place = at + (tail + 7 >> 3)
            else:
                raise FormatError(f"nid {nid} is listed as a regular file and is none")
            if size > chunk_size:
                self._point_large(nid, place, size, targets)
                continue
            if formats[nid * 8] != usual:
                self._check_format(nid, place, size)
            if size:
                new[place], length = targets[old[place]]
                if length != size:
                    raise _wrong_size(nid)

    def _check_format(self, nid: int, place: int, size: int) -> None:
        """A file with another chunk size for the kernel than the image's is one extent for it, and must be one."""
        found = self.formats[nid * 8]
        if found == self.chunk_format:
            return
        bits = found ^ CHUNK_FORMAT_INDEXES
        if bits > CHUNK_FORMAT_BITS_MASK or size > BLOCK_SIZE << bits:
            raise FormatError(f"nid {nid}: the kernel would read it by other chunk indexes than the image has")
        first = self.old[place] & _PLACE if size else 0
        for number in range(1, -(-size // self.chunk_size)):
            follows = first + (number * self.chunk_size >> BLOCK_BITS << 32)
            if self.old[place + number] & _PLACE != follows:
                raise FormatError(f"nid {nid}: chunk {number} does not follow the one before, as its format says")

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
        self._check_format(nid, place, size)
        # A file of consecutive chunks may carry a larger chunk size for the kernel; its pieces are in several
        # segments now.
        self.new[nid * 4 + 2] = self.old[nid * 4 + 2] & ~_ADDRESS | self.chunk_format
        for position in range(place, place + count):
            self.new[position], length = targets[self.old[position]]
            if length != min(size, chunk_size):
                raise _wrong_size(nid)
            size -= chunk_size


_NAMES = {_DIRECTORY: "directory", _SYMLINK: "symlink"}


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
