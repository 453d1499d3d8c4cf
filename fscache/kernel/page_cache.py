"""Have the kernel read files again that it has in memory. For children: it may be many files."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from ...erofs.errors import BusyError
from . import statx
from .fd import Fd
from .libc import checked, ffi, integer, lib, text

_OPEN_TREE, _CACHESTAT = 428, 451  # the same numbers on every architecture
_CLONE, _CLOEXEC, _AT_EMPTY_PATH = 1, os.O_CLOEXEC, 0x1000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE, _PAGE = 128 << 10, os.sysconf("SC_PAGE_SIZE")  # bytes


def tree(target: str, mount_id: int) -> Fd:
    """The filesystem mounted there with this id, without what is mounted over its folders; BusyError when something
    is mounted over all of it."""
    with Fd(os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        if statx.of_fd(root.fd).mount_id != mount_id:
            raise BusyError(f"something else is mounted over {target}", hint="unmount that first")
        flags = integer(_CLONE | _CLOEXEC | _AT_EMPTY_PATH)
        return Fd(checked(lib.syscall(_OPEN_TREE, integer(root.fd), text(""), flags), f"open_tree {target}"))


def forget(root: Fd) -> list[str]:
    """Forget what the kernel has in memory of each file of a filesystem; names of those of which something is there
    all the same: somebody has it mapped, or has just read it again."""
    left = []
    for name, folder, path in _files(root):
        with Fd(os.open(name, _FILE, dir_fd=folder)) as file:
            os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if _cached(file, 0, 0):
                left.append(f"{path}{name}")
    return left


def forget_mounted(target: str, mount_id: int) -> None:
    """The same of what is mounted there with this id; BusyError as of ``tree``."""
    with tree(target, mount_id) as root:
        forget(root)


def differs(path: str, root: Fd, anew: Fd) -> bool:
    """Whether what the kernel has in memory of a file is something else than what is read of it anew, by another
    mount of the same image. What cannot be read anew cannot be right."""
    with Fd(os.open(path, _FILE, dir_fd=root.fd)) as file, Fd(os.open(path, _FILE, dir_fd=anew.fd)) as right:
        size = os.fstat(file.fd).st_size
        pieces = (at for at in range(0, size, _PIECE) if _cached(file, at, _PIECE))
        return any(_piece_differs(file, right, at) for at in pieces)


def _piece_differs(file: Fd, right: Fd, at: int) -> bool:
    for start in range(at, at + _PIECE, _PAGE):
        if _cached(file, start, _PAGE):
            try:
                if os.pread(file.fd, _PAGE, start) != os.pread(right.fd, _PAGE, start):
                    return True
            except OSError:
                return True
    return False


def _cached(file: Fd, start: int, length: int) -> int:
    """Pages of a part of a file that are in memory (cachestat(2), Linux 6.5); ``length`` 0: to its end."""
    span, found = ffi.new("uint64_t[2]", [start, length]), ffi.new("uint64_t[5]")
    try:
        checked(lib.syscall(_CACHESTAT, integer(file.fd), span, found, integer(0)), "cachestat")
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return 0  # no such kernel has the engine that asks
    return int(found[0])


class _Folder(NamedTuple):
    fd: Fd
    path: str
    entries: Iterator[os.DirEntry[str]]


def _files(root: Fd) -> Iterator[tuple[str, int, str]]:
    """Name, folder and the folder's path of each regular file. Nothing else is opened: devices do things then."""
    with contextlib.ExitStack() as opened:
        stack = [_folder(os.open(".", _FOLDER, dir_fd=root.fd), "")]
        opened.callback(_close, stack)
        while stack:
            fd, path, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop().fd.close()
            elif entry.is_dir(follow_symlinks=False):
                stack.append(_folder(os.open(entry.name, _FOLDER, dir_fd=fd.fd), f"{path}{entry.name}/"))
            elif entry.is_file(follow_symlinks=False):
                yield entry.name, fd.fd, path


def _close(folders: list[_Folder]) -> None:
    for folder in folders:
        folder.fd.close()


def _folder(fd: int, path: str) -> _Folder:
    return _Folder(Fd(fd), path, os.scandir(fd))


def forget_everything() -> None:
    """Of every file that nobody has mapped: for a filesystem that is not mounted any more where we can see it."""
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("1")
