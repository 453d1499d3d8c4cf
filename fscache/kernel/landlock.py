"""Landlock: a process gives up, for good, what it does not need of the file system and the network.

Structures and rights are those of include/uapi/linux/landlock.h (Linux 6.18). A kernel that knows less of them
restricts less; one without Landlock nothing. What is open already stays usable whatever the rules say.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Sequence
from enum import IntFlag
from typing import NamedTuple

from .fd import Fd
from .libc import checked, ffi, integer, lib

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION = 1  # flag: tell the version of the interface
_PATH_BENEATH = 1
_RULESET = struct.Struct("<QQQ")  # rights handled: of files, of TCP, scopes
_PATH_RULE = struct.Struct("<Qi")
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPES = 3  # abstract unix sockets, signals


class Right(IntFlag):
    """What may be done with files beneath a place (LANDLOCK_ACCESS_FS_*)."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ = Right.READ_FILE | Right.READ_DIR
FILL = Right.READ_FILE | Right.WRITE_FILE | Right.TRUNCATE
MAKE = Right.WRITE_FILE | Right.TRUNCATE | Right.MAKE_REG | Right.MAKE_DIR
_OF_A_FILE = Right.EXECUTE | FILL | Right.IOCTL_DEV
# Version of the interface from which on rights are known.
_KNOWN = ((5, Right(0xFFFF)), (3, Right(0x7FFF)), (2, Right(0x3FFF)), (1, Right(0x1FFF)))
_TCP_SINCE, _SCOPES_SINCE = 4, 6


class Rule(NamedTuple):
    """Rights beneath a folder (its path, or an open descriptor of it), or on one file."""

    place: str | int
    rights: Right


def version() -> int:
    """Of the kernel's Landlock; 0 where it has none, or was started without it."""
    found = lib.syscall(_CREATE_RULESET, ffi.NULL, integer(0), integer(_VERSION))
    return max(0, int(found))


def restrict(rules: Sequence[Rule], *, connect: bool) -> int:
    """Forbid this thread, and what it starts, everything with files but what the rules allow, and to listen on TCP.

    Needs PR_SET_NO_NEW_PRIVS or CAP_SYS_ADMIN. Places that do not exist are passed over.

    Args:
        connect: TCP connections are allowed.

    Returns:
        The version that enforces it; 0 when nothing does.

    Raises:
        OSError: the kernel has Landlock and refuses.
    """
    if not (known := version()):
        return 0
    files = next(rights for since, rights in _KNOWN if known >= since)
    tcp = 0 if known < _TCP_SINCE else _BIND_TCP | (0 if connect else _CONNECT_TCP)
    handled = _RULESET.pack(files, tcp, _SCOPES if known >= _SCOPES_SINCE else 0)
    made = lib.syscall(_CREATE_RULESET, ffi.from_buffer(handled), integer(len(handled)), integer(0))
    with Fd(checked(made, "landlock_create_ruleset")) as ruleset:
        for rule in rules:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                _allow(ruleset, rule, files)
        checked(lib.syscall(_RESTRICT_SELF, integer(ruleset.fd), integer(0)), "landlock_restrict_self")
    return known


def _allow(ruleset: Fd, rule: Rule, handled: Right) -> None:
    if isinstance(rule.place, str):
        with Fd(os.open(rule.place, os.O_PATH | os.O_CLOEXEC)) as place:
            _allow(ruleset, Rule(place.fd, rule.rights), handled)
        return
    folder = stat.S_ISDIR(os.fstat(rule.place).st_mode)
    rights = rule.rights & handled & (handled if folder else _OF_A_FILE)
    raw = _PATH_RULE.pack(rights, rule.place)
    arguments = integer(ruleset.fd), integer(_PATH_BENEATH), ffi.from_buffer(raw), integer(0)
    if lib.syscall(_ADD_RULE, *arguments) < 0 and ffi.errno != errno.EBADFD:  # EBADFD: a place in no real filesystem
        raise OSError(ffi.errno, f"landlock_add_rule: {os.strerror(ffi.errno)}")
