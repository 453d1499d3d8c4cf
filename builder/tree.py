"""What an image is made of, wherever it comes from: nodes, and directories in the order of the image.

A source is an iterator of *listings*: the sorted nodes of one directory after the other, in pre-order
(a directory, then the tree below its first subdirectory, then the next). The first listing is the root's.
Whoever takes listings needs no recursion and, apart from directories still to come, no memory of the tree.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Stamp(NamedTuple):
    """What tells that a file is still the one that was looked at. Times in nanoseconds."""

    size: int
    mtime: int
    ctime: int
    ino: int
    dev: int

    @classmethod
    def of(cls, st: os.stat_result) -> Stamp:
        return cls(st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino, st.st_dev)


class Node(NamedTuple):
    """One file of any type under one of its names.

    ``size`` is a regular file's length, a symlink's target's, and 0 for all others; ``rdev`` is as the
    kernel encodes it in 32 bits; ``xattrs`` is a packed area (``erofs.xattr``).
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    mtime: int  # nanoseconds
    size: int
    rdev: int = 0
    xattrs: bytes = b""
    target: bytes = b""  # of a symlink
    link: tuple[int, int] | None = None  # the same for all names of one regular file that has several
    path: bytes = b""  # of a regular file: where its bytes are read
    stamp: Stamp | None = None
    sparse: bool = False  # it has fewer blocks than its size asks for


class Listing(NamedTuple):
    """What one directory holds, sorted by name; ``xattrs`` are the directory's own, and replace its node's."""

    xattrs: bytes
    nodes: list[Node]
