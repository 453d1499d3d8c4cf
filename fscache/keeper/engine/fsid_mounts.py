"""Mounts by fsid: which there are, and the calls that make them, for children of the keeper."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import NamedTuple

from ....erofs.errors import BusyError, KernelError
from ...kernel import mount as kernel
from ...kernel import statx


class FsidMount(NamedTuple):
    """One mount. There is one filesystem for each (volume, fsid), however often it is mounted."""

    volume: str  # the domain, or the fsid
    fsid: str
    domain: str | None
    target: str
    mount_id: int
    flags: int  # of MOUNT_FLAGS


def is_ours(entry: kernel.MountEntry) -> bool:
    """/dev/cachefiles has one owner, so they are this service's, or dead."""
    return "fsid" in entry.options


def live() -> list[FsidMount]:
    """All of this host, oldest first."""
    return [
        FsidMount(domain or fsid, fsid, domain, entry.target, entry.mount_id, entry.flags)
        for entry in kernel.mounts(kernel.FS_TYPE)
        if (fsid := entry.options.get("fsid"))
        for domain in [entry.options.get("domain_id")]
    ]


def mounts_of(volume: str, fsid: str) -> list[FsidMount]:
    """Those of one image."""
    return [one for one in live() if (one.volume, one.fsid) == (volume, fsid)]


def mount(fsid: str, domain: str | None, target: str, flags: int) -> None:
    """Mount an image that is not mounted anywhere yet. It waits for the service, and cannot be killed meanwhile."""
    try:
        kernel.mount_fsid(f"fsid={fsid}" + (f",domain_id={domain}" if domain else ""), target, flags)
    except OSError as error:
        number = error.errno or errno.EIO
        raise KernelError(f"mounting on {target}: {error.strerror}", hint=_hint(number), number=number) from None


def bind_again(mounts: Sequence[FsidMount], target: str, flags: int) -> None:
    """Mount an image once more, on another target: the kernel mounts an fsid once, so it is bound to one of these."""
    for one in mounts:
        if statx.mount_id(one.target) == one.mount_id:
            kernel.bind(one.target, target, flags)
            return
    raise BusyError(f"something else is mounted over {mounts[0].target}", hint="unmount that first")


def _hint(number: int) -> str:
    if number == errno.EINVAL:
        return "the kernel needs CONFIG_EROFS_FS_ONDEMAND: 'scripts/kernel-modules' builds it for Debian's kernels"
    if number in (errno.EBUSY, errno.EEXIST):
        return "something of the image is still in use"
    return "the log of the service says why"
