"""Files of the service's own, read as if anything could be in their place: a disk may bring back what it likes."""

from __future__ import annotations

import errno
import os
import stat

from .fd import Fd

_HOST = frozenset({
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EPERM,
    errno.EACCES, errno.ESHUTDOWN,
})  # fmt: skip


def pass_on_unless_damage(error: Exception) -> None:
    """Raise an OSError that says nothing of the file: the host is out of something, or its disk takes nothing. A file
    that is damaged is made anew, for which the host must be well."""
    if isinstance(error, OSError) and error.errno in _HOST:
        raise error


def open_plain(name: str, folder: Fd | None = None) -> Fd:
    """A regular file, to be read; OSError for anything else. It never waits, as to open a FIFO would, and follows no
    link."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = Fd(os.open(name, flags, dir_fd=folder.fd if folder else None))
    if not stat.S_ISREG(os.fstat(fd.fd).st_mode):
        raise OSError(errno.EINVAL, "Not a file", name)
    return fd


def read_plain(name: str, most: int) -> bytes:
    """Its first ``most`` bytes."""
    with open_plain(name) as fd:
        return os.pread(fd.fd, most, 0)
