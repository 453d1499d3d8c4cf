"""Have the kernel read files again that it has in memory. For children: it may be many files."""

from __future__ import annotations

import contextlib
import os

from ...erofs.errors import BusyError
from . import statx


def forget(target: str, mount_id: int) -> None:
    """Of each file of the filesystem mounted there with this id. What a process has mapped stays: nothing takes that
    away from it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    root = os.open(target, flags)
    try:
        if statx.of_fd(root).mount_id != mount_id:
            raise BusyError(f"something else is mounted over {target}", hint="unmount that first")
        device = os.fstat(root).st_dev
        for _, folders, names, fd in os.fwalk(".", dir_fd=root):
            if os.fstat(fd).st_dev != device:  # another mount inside of it
                folders.clear()
                continue
            for name in names:
                with contextlib.suppress(OSError):  # no regular file
                    _forget(name, fd)
    finally:
        os.close(root)


def _forget(name: str, folder: int) -> None:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def forget_everything() -> None:
    """Of every file that nobody has mapped: for a filesystem that is not mounted any more where we can see it."""
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("1")
