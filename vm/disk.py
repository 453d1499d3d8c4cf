"""The guest's scratch disk: a sparse file with one filesystem, no partitions."""

from __future__ import annotations

import os
from pathlib import Path

from .host import require
from .process import VmError, output

_MKFS = {
    "ext4": ("e2fsprogs", ["mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard"]),
    "xfs": ("xfsprogs", ["mkfs.xfs", "-q", "-f", "-K"]),
    "btrfs": ("btrfs-progs", ["mkfs.btrfs", "-q", "-f", "-K"]),
}
"""Filesystem -> host package and command; 4 KiB blocks, as cachefiles wants at most the page size."""
FILESYSTEMS = tuple(_MKFS)


def scratch(path: Path | None, mebibytes: int, fs: str, work: Path) -> tuple[Path, str]:
    """The disk to attach and its filesystem.

    Without ``path`` a new one in ``work``; with it that file, made first if it does not exist. An
    existing file keeps its size and filesystem, whatever is asked for.
    """
    if path is not None and path.exists():
        found = output(["blkid", "-p", "-o", "value", "-s", "TYPE", str(path)]).strip()
        if found not in _MKFS:
            raise VmError(f"{path} holds {found or 'nothing'}", hint=f"a disk is one of {', '.join(_MKFS)}")
        return path, found
    package, command = _MKFS[fs]
    require([package])
    target = path or work / "scratch.img"
    new = target.with_name(f"{target.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as file:
            file.truncate(mebibytes << 20)
        output([*command, str(new)])
        new.rename(target)
    finally:
        new.unlink(missing_ok=True)
    return target, fs
