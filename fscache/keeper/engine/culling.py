"""Making room in the kernel's cache: idle cache files go, those used longest ago first, when the kernel asks.

On disk (fs/cachefiles/key.c, 6.1 to 6.12): ``<root>/cache/I<volume key>/@<hash>/D<cookie>``.
"""

from __future__ import annotations

import contextlib
import os

from ...kernel.cachefiles import Device
from ...proto import cachefiles as proto
from ..log import logger


def short(root: str, percent: int) -> bool:
    """Whether less than that much of the cache's filesystem is free, in blocks or in inodes.

    The kernel says that it wants room (POLLOUT) only after it has looked, that is after the next write; what
    others write it does not see.
    """
    try:
        status = os.statvfs(root)
    except OSError:
        return False  # the filesystem is gone: so is what could be culled
    return status.f_bavail * 100 < status.f_blocks * percent or status.f_favail * 100 < status.f_files * percent


def make_room(device: Device, root: str, run: int) -> int:
    """Cull idle cache files until ``run`` percent are free; how many went."""
    gone = 0
    for _, folder, name in sorted(_files(os.path.join(root, "cache"))):
        if not short(root, run):
            break
        try:
            os.chdir(folder)  # the command names a file of the working directory
            device.command(proto.cull(name))
        except OSError:
            continue  # in use
        finally:
            os.chdir("/")
        gone += 1
    if gone:
        logger().info("made room", files=gone)
    return gone


def _files(cache: str) -> list[tuple[float, str, str]]:
    """(last use, folder, name) of every cache file."""
    out = []
    for folder, _, names in os.walk(cache):
        for name in names:
            if name.startswith("D"):
                with contextlib.suppress(OSError):
                    status = os.stat(os.path.join(folder, name))
                    out.append((max(status.st_atime, status.st_mtime), folder, name))
    return out
