"""statx(2): what os.stat does not tell, above all through which mount a file was opened."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from .libc import checked, ffi, lib

_INO, _SIZE, _MNT_ID = 0x100, 0x200, 0x1000  # STATX_MNT_ID: Linux 5.8
_AT_FDCWD, _AT_EMPTY_PATH, _AT_NO_AUTOMOUNT = -100, 0x1000, 0x800
_AT_STATX_DONT_SYNC = 0x4000
_STATUS = struct.Struct("<32xQQ96xQ")  # of struct statx: ino, size, mnt_id
_IDENTITY = struct.Struct("<32xQ96xII")  # ino, dev_major, dev_minor
_BUFFER = ffi.new("char[256]")
_VIEW = ffi.buffer(_BUFFER)
_EMPTY = ffi.new("char[]", b"")


class Status(NamedTuple):
    """Of a file: inode number, bytes, and the id of the mount (as in mountinfo) that it was reached through."""

    inode: int
    size: int
    mount_id: int


def of_fd(fd: int) -> Status:
    """Of an open file."""
    checked(lib.statx(fd, _EMPTY, _AT_EMPTY_PATH, _INO | _SIZE | _MNT_ID, _BUFFER), "statx")
    return Status._make(_STATUS.unpack_from(_VIEW))


class Identity(NamedTuple):
    """Which file it is, as os.stat numbers it."""

    device: int
    inode: int


def identity(fd: int) -> Identity:
    """Of an open file, from what the kernel knows: os.fstat would ask a file server that may be away."""
    checked(lib.statx(fd, _EMPTY, _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _INO, _BUFFER), "statx")
    inode, major, minor = _IDENTITY.unpack_from(_VIEW)
    return Identity(os.makedev(major, minor), inode)


def mount_id(path: str) -> int:
    """Id of the mount that a path leads to: the topmost, if several are stacked there."""
    name = ffi.new("char[]", os.fsencode(path))
    checked(lib.statx(_AT_FDCWD, name, _AT_NO_AUTOMOUNT, _MNT_ID, _BUFFER), f"statx {path}")
    return Status._make(_STATUS.unpack_from(_VIEW)).mount_id
