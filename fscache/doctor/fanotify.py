"""Does the fanotify engine work here? Tried on a tiny image rather than guessed from a version.

The image has one file whose only block lies on a device file of size 0, reached through a marked private
bind mount, exactly as a real image. What must hold: a read raises an event that names its range; allowed
with nothing there it gives EIO, not zeros; filled and allowed it gives the bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

from ...erofs.ondisk import BLOCK_SIZE
from ..kernel.fanotify import Group
from ..kernel.mount import bind_private, mount_erofs, unmount
from ..kernel.process import call_in_child
from ..proto import fanotify as proto
from .checks import Check
from .tiny_image import PAYLOAD, tiny_image

_PATIENCE = 5.0  # seconds for one read of one block
_RIGHT, _EIO, _WRONG = 10, 11, 12


def fanotify_engine(directory: str) -> list[Check]:
    """Run the self-test in a new folder below ``directory``, which must be on the cache's filesystem.

    Returns the checks in order, ending with the first that failed. Needs root.
    """
    checks: list[Check] = []
    work = os.path.join(directory, f".selftest-{os.getpid()}")
    os.makedirs(work, mode=0o700)
    try:
        for check in _steps(work):
            checks.append(check)
            if not check.ok:
                break
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return checks


def _steps(work: str) -> Iterator[Check]:
    store, through, target, boot = (os.path.join(work, n) for n in ("store", "through", "mnt", "boot"))
    for path in (store, through, target):
        os.mkdir(path)
    device = os.path.join(store, "0")
    with open(boot, "wb") as file:
        file.write(tiny_image(len(PAYLOAD)))
    with open(device, "wb"):
        pass
    with contextlib.ExitStack() as cleanup:
        try:
            group = Group()
        except OSError as error:
            number = error.errno or 0
            yield Check("pre-content events", False, os.strerror(number), _init_fix(number))
            return
        cleanup.callback(group.close)
        try:
            bind_private(store, through)
            cleanup.callback(unmount, through, lazy=True)
            group.mark_mount(through)
        except OSError as error:
            number = error.errno or 0
            yield Check("pre-content events", False, f"marking the cache: {os.strerror(number)}", _mark_fix(number))
            return
        yield Check("pre-content events", True, "fanotify accepts a pre-content mark on the cache's filesystem")
        if failure := call_in_child(partial(mount_erofs, boot, through, ["0"], target)):
            yield Check("file-backed EROFS", False, failure, "needs CONFIG_EROFS_FS_BACKED_BY_FILE (Linux 6.12+)")
            return
        cleanup.callback(unmount, target, lazy=True)
        yield Check("file-backed EROFS", True, "the kernel mounts an EROFS image from files")
        yield from _reads(group, device, os.path.join(target, "file"))


def _reads(group: Group, device: str, path: str) -> Iterator[Check]:
    outcome, ranged = _read_once(group, path, lambda: None)
    if not ranged:
        yield Check("event ranges", False, "no event, or one without a range", "needs Linux 6.14 or later")
        return
    yield Check("event ranges", True, "a read raises an event that names its range")
    if outcome != _EIO:
        fix = (
            "needs the EROFS fix 'short read of a backing file is EIO' of 2026 (in 6.18.44 and later stable kernels)"
        )
        yield Check("unfetched is EIO", False, "a block that is not there was read as data", fix)
        return
    yield Check("unfetched is EIO", True, "a block that nobody fetched is EIO, never zeros")

    def fill() -> None:
        with open(device, "r+b") as file:
            file.write(PAYLOAD.ljust(BLOCK_SIZE, b"\0"))

    outcome, _ = _read_once(group, path, fill)
    if outcome == _RIGHT:
        yield Check("lazy read", True, "a block fetched while its reader waits is read right")
    else:
        yield Check("lazy read", False, "a fetched block was not read back", "please report this kernel")


def _read_once(group: Group, path: str, fill: Callable[[], None]) -> tuple[int, bool]:
    """Let a child read the file, allow each of its events after ``fill()``; (the child's verdict, saw a range)."""
    pid = os.fork()
    if not pid:
        _read_and_exit(path)
    ranged = False
    deadline = time.monotonic() + _PATIENCE
    pidfd = os.pidfd_open(pid)
    try:
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([group.fd, pidfd], [], [], left)
            if group.fd in ready:
                for event in proto.parse(group.read(16 * proto.EVENT_SIZE)):
                    ranged |= event.offset is not None
                    fill()
                    group.answer(proto.response(event.fd, True))
                    os.close(event.fd)
            elif pidfd in ready:
                break
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), ranged


def _read_and_exit(path: str) -> None:
    verdict = _WRONG
    try:
        with open(path, "rb", buffering=0) as file:
            verdict = _RIGHT if file.read(len(PAYLOAD)) == PAYLOAD else _WRONG
    except OSError as error:
        verdict = _EIO if error.errno == errno.EIO else _WRONG
    finally:
        os._exit(verdict)


def _init_fix(number: int) -> str:
    if number == errno.EPERM:
        return "run as root (CAP_SYS_ADMIN in the first user namespace)"
    if number == errno.EMFILE:
        return "all of this user's groups are taken: raise fs.fanotify.max_user_groups (sysctl)"
    return "needs Linux 6.14 or later with CONFIG_FANOTIFY_ACCESS_PERMISSIONS"


def _mark_fix(number: int) -> str:
    if number == errno.EOPNOTSUPP:
        return "put the cache (--state-dir) on ext4, xfs or btrfs"
    if number == errno.EINVAL:
        return "needs Linux 6.14 or later"
    return "needs root and a cache on ext4, xfs or btrfs"
