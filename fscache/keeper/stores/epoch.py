"""What counts: files that are known to be on the disk, and those that are on their way there under our eyes.

A folder with an ``epoch`` file holds data that may not have reached the disk. The file names the *era* in which it
was written: one begins with each service, and whenever the disk loses a write (``keeper/disk.py``). Within it, a sync
of the filesystem that succeeds says that all of the era is on the disk: then the file is removed, and the data counts
for good. Of another era nobody can say that any more: neither after a crash of the machine, nor in the same boot,
where the kernel may have dropped what it could not write. The data has to be verified (stores) or made anew (images).
"""

from __future__ import annotations

import os
import stat

from ...kernel.fd import Fd
from ...kernel.plain import pass_on_unless_damage, read_plain
from ...state.layout import EPOCH
from ..trouble import report

_NOBODYS = b"nobody's"  # era of what nobody vouches for
_ON_DISK = 0o400  # mode of a note that is there, so that nobody has to wait for the disk again
_era = os.urandom(16).hex().encode()


def era() -> bytes:
    """The name of this one, in this process and those forked from it since."""
    return _era


def new_era() -> None:
    """Nothing of what was begun can be settled any more."""
    global _era
    _era = os.urandom(16).hex().encode()


def begin(directory: str, *, anew: bool = False) -> None:
    """Note, on the disk, that the folder is written to. Call it before the first write.

    Args:
        anew: what another era has left in it does not count any more. Else its note stays.
    """
    path = os.path.join(directory, EPOCH)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        there = os.pread(fd, 64, 0)
        if not there or (anew and there != _era):
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, 0)
            os.pwrite(fd, _era, 0)
        elif stat.S_IMODE(os.fstat(fd).st_mode) == _ON_DISK:
            return
        # The name of a new file is on disk with the file on ext4, xfs and btrfs; syncing the folder as well would
        # only make a mount wait for the disk a second time.
        os.fsync(fd)
        os.fchmod(fd, _ON_DISK)
    finally:
        os.close(fd)


def distrust(directory: str) -> None:
    """Note, on the disk, that nothing in the folder counts before it is verified, or made anew."""
    fd = os.open(os.path.join(directory, EPOCH), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with Fd(fd):
        os.ftruncate(fd, 0)
        os.pwrite(fd, _NOBODYS, 0)
        os.fsync(fd)


def settle(directory: str) -> bool:
    """Everything of this era is on the disk; whether the folder is of this era, and settled. Not to be able to note
    it is no error: it costs a verification."""
    path = os.path.join(directory, EPOCH)
    try:
        if read_plain(path, 64) != _era:
            return False
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        report("a folder cannot be settled", error)
        return False
    return True


def begun(directory: str) -> bool:
    """Whether the folder has an epoch, of this era or another."""
    return os.path.lexists(os.path.join(directory, EPOCH))


def trusted(directory: str) -> bool:
    """Whether what the folder holds counts without being verified; OSError when that cannot be found out now."""
    try:
        return read_plain(os.path.join(directory, EPOCH), 64) == _era
    except FileNotFoundError:
        return True
    except OSError as error:
        pass_on_unless_damage(error)
        return False
