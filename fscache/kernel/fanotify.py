"""A fanotify pre-content group (Linux 6.14+): its descriptor and the few calls made on it."""

from __future__ import annotations

import contextlib
import os

from .libc import checked, ffi, lib

_CLASS_PRE_CONTENT, _CLOEXEC, _NONBLOCK = 0x08, 0x01, 0x02
_UNLIMITED_QUEUE, _UNLIMITED_MARKS = 0x10, 0x20
_MARK_ADD, _MARK_REMOVE, _MARK_MOUNT, _MARK_FLUSH = 0x01, 0x02, 0x10, 0x80
_MARK_IGNORED_SURV_MODIFY, _MARK_EVICTABLE, _MARK_IGNORE = 0x40, 0x200, 0x400
_PRE_ACCESS = 0x0010_0000
_AT_FDCWD = -100


class Group:
    """Owns one group. Once its last descriptor is closed the kernel allows every pending and future event."""

    def __init__(self) -> None:
        flags = _CLASS_PRE_CONTENT | _UNLIMITED_QUEUE | _UNLIMITED_MARKS | _CLOEXEC | _NONBLOCK
        self.fd = checked(
            lib.fanotify_init(flags, os.O_RDONLY | os.O_LARGEFILE | os.O_CLOEXEC | os.O_NOATIME), "fanotify_init"
        )

    def mark_mount(self, path: str) -> None:
        """Raise an event for every read of file contents through the mount at ``path``."""
        self._mark(_MARK_ADD | _MARK_MOUNT, _AT_FDCWD, path)

    def ignore(self, path: str) -> None:
        """Raise no more events for the file at ``path``: its bytes are all there.

        The kernel forgets it with the file's inode, which stays as long as somebody has the file open.
        """
        self._mark(_MARK_ADD | _MARK_IGNORE | _MARK_IGNORED_SURV_MODIFY | _MARK_EVICTABLE, _AT_FDCWD, path)

    def unignore(self, path: str) -> None:
        """Raise events for it again."""
        with contextlib.suppress(FileNotFoundError):  # there is no such mark
            self._mark(_MARK_REMOVE | _MARK_IGNORE, _AT_FDCWD, path)

    def ignore_nothing(self) -> None:
        """Raise events again for all files that were ignored."""
        self._mark(_MARK_FLUSH, _AT_FDCWD, "/", 0)

    def _mark(self, flags: int, dirfd: int, path: str, mask: int = _PRE_ACCESS) -> None:
        name = ffi.new("char[]", os.fsencode(path))
        checked(lib.fanotify_mark(self.fd, flags, mask, dirfd, name), f"fanotify_mark {path}")

    def read(self, size: int) -> bytes:
        """Event records, whole ones only; empty when none waits. Each carries an open descriptor.

        OSError for an event whose file cannot be opened, for want of descriptors or as its disk is gone: the kernel
        has denied it, and there is nothing to answer.
        """
        try:
            return os.read(self.fd, size)
        except BlockingIOError:
            return b""

    def answer(self, response: bytes) -> None:
        """Write one response record; a reader that was killed meanwhile has no use for it."""
        with contextlib.suppress(FileNotFoundError):
            os.write(self.fd, response)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
