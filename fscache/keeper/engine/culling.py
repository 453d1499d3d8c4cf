"""Making room in the kernel's cache: idle cache files go, those used longest ago first, when the kernel asks.

On disk (fs/cachefiles/key.c, 6.1 to 6.12): ``<root>/cache/I<volume key>/@<hash>/D<cookie>``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from functools import partial

import msgspec

from ...kernel.cachefiles import Device
from ...proto import cachefiles as proto
from ..children.errands import Say, errand

_AT_ONCE = 64  # files that the child names at a time
_FILES = msgspec.json.Decoder(list[tuple[str, str]])


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


async def make_room(device: Device, root: str, run: int) -> int:
    """Cull idle cache files until ``run`` percent are free; how many went."""
    gone, cache = 0, os.path.join(root, "cache")
    look = errand(partial(list_files, cache), "looking for idle cache files")
    async with contextlib.aclosing(look) as said:
        async for packet in said:
            for folder, name in _FILES.decode(packet.data):
                gone += _cull(device, os.path.join(cache, folder), name)
                if not short(root, run):
                    return gone
                await asyncio.sleep(0)  # readers first
    return gone


def _cull(device: Device, folder: str, name: str) -> bool:
    """Whether a cache file was idle, and is gone. The command names a file of the working directory."""
    try:
        os.chdir(folder)
        device.command(proto.cull(name))
    except OSError:
        return False
    finally:
        os.chdir("/")
    return True


def list_files(cache: str, say: Say) -> None:
    """Say every cache file, those used longest ago first: lists of (folder below ``cache``, name)."""
    found = []
    for folder, _, names in os.walk(cache):
        for name in names:
            if name.startswith("D"):
                with contextlib.suppress(OSError):
                    status = os.stat(os.path.join(folder, name))
                    found.append((max(status.st_atime, status.st_mtime), os.path.relpath(folder, cache), name))
    found.sort()
    for start in range(0, len(found), _AT_ONCE):
        say(msgspec.json.encode([(folder, name) for _, folder, name in found[start : start + _AT_ONCE]]), [])
