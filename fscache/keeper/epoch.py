"""What may be believed after a crash: files written since this boot, and files known to be on disk.

A folder with an ``epoch`` file holds data that may not have reached the disk. The file names the boot that
wrote them. In the same boot the page cache still has everything, so the data counts; in a later boot it has
to be verified (stores) or made anew (images). After a sync the file is removed and the data counts for good.
"""

from __future__ import annotations

import contextlib
import os

EPOCH = "epoch"


def boot_id() -> str:
    """This boot's random name (Linux: /proc/sys/kernel/random/boot_id)."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def begin(directory: str) -> None:
    """Note, on disk, that this boot writes to the folder. Call it before the first write."""
    path = os.path.join(directory, EPOCH)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, boot_id().encode())
        # The name of a new file is on disk with the file on ext4, xfs and btrfs; syncing the folder as well would
        # only make a mount wait for the disk a second time.
        os.fsync(fd)
    finally:
        os.close(fd)


def settle(directory: str) -> None:
    """Everything in the folder is on disk."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, EPOCH))


def trusted(directory: str) -> bool:
    """Whether what the folder holds counts without being verified."""
    try:
        with open(os.path.join(directory, EPOCH), encoding="ascii", errors="replace") as file:
            return file.read() == boot_id()
    except FileNotFoundError:
        return True
