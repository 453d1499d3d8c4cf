"""What bounds how many images this host can serve: each limit with its value, and with the fix when it is near."""

from __future__ import annotations

import contextlib
import errno
import os
import resource

from ...erofs.segments import MAX_DEVICES
from ..kernel import statx
from ..kernel.fanotify import Group
from ..kernel.mount import mounts
from ..kernel.process import raise_file_limit
from .checks import Check

_MANY = 1000  # images that there should be room for
_GROUPS = 8  # that are tried: not all of them, or a service that starts meanwhile would find none
_FDS_OF_AN_IMAGE = 3  # with one blob: plan, folder, blob; half of all are for readers that wait
_MOUNTS_OF_AN_IMAGE = 2  # on its target, and its way to the segments
_FULL = 0.8  # of a limit of the whole host
_GOOD = ("ext4", "xfs", "btrfs")
_NO_EVENTS = "it raises no pre-content events"
_BAD = {
    "overlay": "kernels since 6.19 refuse images whose files lie on overlayfs",
    "tmpfs": f"{_NO_EVENTS}, and what is cached ends with the machine",
    **dict.fromkeys(("nfs", "nfs4", "cifs", "smb3", "ceph", "9p"), f"{_NO_EVENTS}, and would wait for a server"),
}


def limits(directory: str) -> list[Check]:
    """All that counts here for a cache in ``directory``; some is known to root alone."""
    found = [_groups(), _marks(), _descriptors(), _open_files(), _segments(), _mounts(), _filesystem(directory)]
    return [check for check in found if check is not None]


def _groups() -> Check | None:
    most, free = _value("fanotify/max_user_groups"), _free_groups()
    if most is None:
        return None
    left = {None: "", _GROUPS: f", {_GROUPS} or more are free"}.get(free, f", {free} are free")
    fix = f"end what holds them, or: sysctl fs.fanotify.max_user_groups={8 * most}"
    detail = f"fs.fanotify.max_user_groups = {most}{left}; a service takes one for all its images"
    return Check("fanotify groups", True, detail, fix if free is not None and free < _GROUPS else "")


def _free_groups() -> int | None:
    """How many groups this user can still make, up to _GROUPS; None if none for another reason."""
    with contextlib.ExitStack() as made:
        for number in range(_GROUPS):
            try:
                made.callback(Group().close)
            except OSError as error:
                return number if error.errno == errno.EMFILE else None
    return _GROUPS


def _marks() -> Check | None:
    most = _value("fanotify/max_user_marks")
    detail = f"fs.fanotify.max_user_marks = {most}, which does not bind the service"
    return None if most is None else Check("fanotify marks", True, detail)


def _descriptors() -> Check:
    most = raise_file_limit() if os.geteuid() == 0 else resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    images = most // 2 // _FDS_OF_AN_IMAGE
    detail = f"{most} for a process (RLIMIT_NOFILE; fs.nr_open = {_value('nr_open')}): {images} images of one blob"
    fix = f"LimitNOFILE={1 << 20} in the service's unit, and: sysctl fs.nr_open={1 << 20}"
    return Check("descriptors", True, detail, fix if images < _MANY else "")


def _open_files() -> Check:
    with open("/proc/sys/fs/file-nr", "rb") as file:
        used, _, most = map(int, file.read().split())
    fix = f"end what holds them, or: sysctl fs.file-max={2 * most}"
    return Check("open files", True, f"{used} of fs.file-max = {most}", fix if used > _FULL * most else "")


def _segments() -> Check:
    return Check("segments", True, f"{MAX_DEVICES} for an image: a larger image gets larger ones")


def _mounts() -> Check | None:
    most, used = _value("mount-max"), sum(1 for _ in mounts())
    if most is None:
        return None
    images = max(0, most - used) // _MOUNTS_OF_AN_IMAGE
    fix = f"sysctl fs.mount-max={used + 100 * _MANY}" if images < _MANY else ""
    return Check("mounts", True, f"{used} of fs.mount-max = {most}: room for {images} images", fix)


def _filesystem(directory: str) -> Check:
    ours = statx.mount_id(directory)
    kind = next((entry.fs_type for entry in mounts() if entry.mount_id == ours), "unknown")
    if kind in _GOOD:
        return Check("cache's filesystem", True, kind)
    why = _BAD.get(kind, "not known to work")
    fix = "put the cache (--state-dir) on ext4, xfs or btrfs: in a container, on a volume of the host's"
    return Check("cache's filesystem", True, f"{kind}: {why}", fix)


def _value(name: str) -> int | None:
    """A limit of the kernel's (sysctl fs.NAME); None where there is none."""
    try:
        with open(f"/proc/sys/fs/{name}", "rb") as file:
            return int(file.read())
    except FileNotFoundError:
        return None
