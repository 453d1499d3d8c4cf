"""The part of the checker that walks the tree: directories, inodes, link counts."""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterator

from .check_chunks import ChunkCheck
from .dirent import Dirent, first_disorder, parse_block
from .errors import FormatError
from .findings import Report
from .ids import printable
from .image import MAX_PATH, Bootstrap
from .inode import Inode, parse_inode
from .ondisk import FILE_TYPE_OF_MODE, SLOT_SIZE, FileType
from .rules import Rule
from .xattr import parse as parse_xattrs

_BILLION = 10**9
_MAX_SHOWN = 4096  # bytes of a path that a finding shows


class TreeCheck:
    """One walk over everything that can be reached from the root.

    State is kept in arrays over the metadata's 32-byte slots, so that a hostile image cannot make it grow:
    which slots some inode owns, and how many names each inode still lacks.
    """

    def __init__(self, bootstrap: Bootstrap, report: Report) -> None:
        self._bootstrap = bootstrap
        self._report = report
        self._chunks = ChunkCheck(bootstrap, report)
        area = bootstrap.area
        self._slots = (area.end - area.start) // SLOT_SIZE + 1
        self._owned = bytearray(self._slots)
        self._seen = bytearray(self._slots)
        self._missing_names = array("q", bytes(8 * self._slots))
        self._prefix = b"/"  # path of the directory being read
        self._whole = True  # nothing was left out: what counts the whole tree may be compared

    def run(self) -> None:
        """Walk the tree; findings go to the report."""
        self._chunks.check_rows()
        nid = self._bootstrap.root_nid
        self._report.names = 1
        root = self._first(nid, b"")
        if root is None:
            return
        if not root.is_dir:
            self._add(Rule.INODE_FORMAT, nid, b"", "the root is not a directory")
            return
        stack = [(b"", root.nid, self._children(root, root.nid))]
        while stack:
            name, parent, entries = stack[-1]
            for entry in entries:
                inode = self._name(entry)
                if inode is not None and inode.is_dir:
                    self._prefix += entry.name + b"/"
                    stack.append((entry.name, inode.nid, self._children(inode, parent)))
                    break
            else:
                stack.pop()
                self._prefix = self._prefix[: -len(name) - 1] or b"/"
        self._totals()

    def _add(self, rule: Rule, nid: int, name: bytes, detail: str) -> None:
        path = (self._prefix + name)[-_MAX_SHOWN:].rstrip(b"/") or b"/"
        self._report.add(rule, f"nid {nid} {printable(path)}", detail)

    # --- names ---

    def _name(self, entry: Dirent) -> Inode | None:
        """Check a name; its inode if this is the first name that leads to it and it can be followed."""
        name, nid, file_type = entry
        self._report.names += 1
        known = nid < self._slots and self._seen[nid]
        inode = self._again(nid) if known else self._first(nid, name)
        if inode is None:
            return None
        kind = FILE_TYPE_OF_MODE[stat.S_IFMT(inode.mode)]
        if file_type != kind:
            self._add(Rule.DIRENT_TYPE, nid, name, f"its name says type {file_type}, its mode {kind:d}")
        if not inode.is_dir:
            self._missing_names[nid] -= 1
            if self._missing_names[nid] == -1:
                self._add(Rule.NLINK, nid, name, f"more names than its {inode.nlink} links")
        elif known:
            self._add(Rule.DIRECTORY_LOOP, nid, name, "another name leads to this directory")
            self._whole = False
            return None
        elif len(self._prefix) + len(name) > MAX_PATH:
            self._add(Rule.PATH_LENGTH, nid, name, f"a path of {len(self._prefix) + len(name)} bytes")
            self._whole = False
            return None
        return None if known else inode

    def _again(self, nid: int) -> Inode | None:
        """An inode seen before; None if it was broken, which has been said."""
        try:
            return parse_inode(self._bootstrap.data, nid, self._bootstrap.area)
        except FormatError:
            return None

    def _children(self, inode: Inode, parent: int) -> Iterator[Dirent]:
        """The children of a directory, everything about it checked on the way."""
        nid = inode.nid
        last, dots, subdirs, whole = b"", 0, 0, True
        for block in self._bootstrap.blocks(inode):
            try:
                entries = parse_block(block)
            except FormatError as error:
                self._add(error.rule, nid, b"", error.message)
                whole = False
                continue
            at = first_disorder(entries, last)
            if at is not None:
                before = entries[at - 1].name if at else last
                detail = f'"{printable(entries[at].name)}" comes after "{printable(before)}"'
                self._add(Rule.DIRENT_ORDER, nid, b"", detail)
            last = entries[-1].name
            for entry in entries:
                if entry.name in (b".", b".."):
                    dots += 1
                    expected = nid if entry.name == b"." else parent
                    if entry.nid != expected:
                        detail = f'"{entry.name.decode()}" is nid {entry.nid}, not {expected}'
                        self._add(Rule.DIRENT_DOTS, nid, b"", detail)
                    if entry.file_type != FileType.DIR:
                        detail = f'"{entry.name.decode()}" says type {entry.file_type}, not {FileType.DIR:d}'
                        self._add(Rule.DIRENT_TYPE, nid, b"", detail)
                    continue
                subdirs += entry.file_type == FileType.DIR
                yield entry
        if not whole:
            self._whole = False
            return
        if dots != 2:
            self._add(Rule.DIRENT_DOTS, nid, b"", f'{dots} entries "." and ".."')
        if inode.nlink != 2 + subdirs:
            self._add(Rule.NLINK, nid, b"", f"{inode.nlink} links with {subdirs} subdirectories")

    # --- inodes ---

    def _first(self, nid: int, name: bytes) -> Inode | None:
        """Parse and check an inode seen for the first time; None if it is not to be followed."""
        if nid < self._slots:
            self._seen[nid] = 1
        try:
            inode = parse_inode(self._bootstrap.data, nid, self._bootstrap.area)
        except FormatError as error:
            self._add(error.rule, nid, name, error.message)
            self._whole = False
            return None
        if not inode.is_dir:
            self._missing_names[nid] = inode.nlink
        if not self._claim(inode):
            self._add(Rule.METADATA_OVERLAP, nid, name, "it shares bytes with another inode")
            self._whole = False
            return None
        if inode.mtime_nsec >= _BILLION:
            self._add(Rule.INODE_TIME, nid, name, f"{inode.mtime_nsec} nanoseconds")
        if inode.xattr_size:
            try:
                parse_xattrs(self._bootstrap.data[inode.xattr_offset : inode.tail_offset])
            except FormatError as error:
                self._add(error.rule, nid, name, error.message)
        if inode.is_regular:
            for rule, detail in self._chunks.faults(inode):
                self._add(rule, nid, name, detail)
        elif inode.is_symlink and b"\0" in b"".join(self._bootstrap.blocks(inode)):
            self._add(Rule.SYMLINK, nid, name, "its target has a NUL byte")
        return inode

    def _claim(self, inode: Inode) -> bool:
        """Mark what an inode owns; False if some of it belongs to another already."""
        area = self._bootstrap.area
        start, length = inode.blocks(area)
        for first, end in ((inode.offset, inode.body_end(area)), (start, start + length)):
            low, high = (first - area.start) // SLOT_SIZE, -((area.start - end) // SLOT_SIZE)
            if first == end:
                continue
            if self._owned.find(1, low, high) >= 0:
                return False
            self._owned[low:high] = b"\1" * (high - low)
        return True

    def _totals(self) -> None:
        """What can be said only when everything has been seen."""
        if not self._whole:
            return
        for nid in self._bootstrap.prefetch_nids():
            if nid >= self._slots or not self._seen[nid]:
                self._report.add(Rule.PREFETCH_TABLE, f"nid {nid}", "not in the tree")
        for nid, missing in enumerate(self._missing_names):
            if missing > 0:
                self._report.add(Rule.NLINK, f"nid {nid}", f"{missing} names fewer than links")
        counted = self._bootstrap.head.superblock.inodes
        if counted != self._report.names:
            detail = f"it counts {counted} names, there are {self._report.names}"
            self._report.add(Rule.TOTALS, "superblock", detail)
