"""What may be believed after a crash: files written since this boot, and files known to be on disk.

A folder with an ``epoch`` file holds data that may not have reached the disk. The file names the boot that
wrote them. In the same boot the page cache still has everything, so the data counts; in a later boot it has
to be verified (stores) or made anew (images). After a sync the file is removed and the data counts for good.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from functools import cache

from ...kernel.fd import Fd
from ...kernel.mount import sync_filesystem
from ...kernel.plain import pass_on_unless_damage, read_plain
from ...state.layout import EPOCH
from ..trouble import report


@cache
def boot_id() -> str:
    """This boot's random name (Linux: /proc/sys/kernel/random/boot_id)."""
    return read_plain("/proc/sys/kernel/random/boot_id", 64).decode().strip()


def begin(directory: str) -> None:
    """Note, on disk, that this boot writes to the folder. Call it before the first write."""
    path = os.path.join(directory, EPOCH)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        now = boot_id().encode()
        if os.pread(fd, 64, 0) != now:  # else there is nothing new for the disk, as a rule
            os.ftruncate(fd, 0)
            os.pwrite(fd, now, 0)
        # The name of a new file is on disk with the file on ext4, xfs and btrfs; syncing the folder as well would
        # only make a mount wait for the disk a second time.
        os.fsync(fd)
    finally:
        os.close(fd)


def distrust(directory: str) -> None:
    """Note, on disk, that nothing in the folder counts before it is verified, or made anew."""
    with Fd(
        os.open(os.path.join(directory, EPOCH), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    ) as fd:
        os.ftruncate(fd.fd, 0)
        os.fsync(fd.fd)


def settle(directory: str) -> None:
    """Everything in the folder is on disk. Not to be able to note it is no error: it costs a verification."""
    try:
        os.unlink(os.path.join(directory, EPOCH))
    except FileNotFoundError:
        pass
    except OSError as error:
        report("a folder cannot be settled", error)


def settle_all(root: str, directories: Sequence[str]) -> None:
    """Write the filesystem of ``root`` to disk, then settle folders on it. For children: it waits for the disk.

    One that somebody has put in a folder's place meanwhile is not settled.
    """
    with contextlib.ExitStack() as opened:
        folders = []
        for directory in directories:
            with contextlib.suppress(FileNotFoundError):
                folders.append(opened.enter_context(Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))))
        with Fd(os.open(root, os.O_RDONLY | os.O_DIRECTORY)) as fd:
            sync_filesystem(fd.fd)
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(EPOCH, dir_fd=folder.fd)


def begun(directory: str) -> bool:
    """Whether the folder has an epoch, of this boot or another."""
    return os.path.lexists(os.path.join(directory, EPOCH))


def trusted(directory: str) -> bool:
    """Whether what the folder holds counts without being verified; OSError when that cannot be found out now."""
    try:
        return read_plain(os.path.join(directory, EPOCH), 64) == boot_id().encode()
    except FileNotFoundError:
        return True
    except OSError as error:
        pass_on_unless_damage(error)
        return False
