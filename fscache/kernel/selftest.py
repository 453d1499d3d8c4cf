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
from typing import NamedTuple

from ...erofs import ondisk, rafs
from ...erofs.errors import KernelError
from ...erofs.ondisk import BLOCK_BITS, BLOCK_SIZE, FileType, Layout
from ..proto import fanotify as proto
from .fanotify import Group
from .mount import bind_private, mount_erofs, unmount
from .process import call_in_child

_PATIENCE = 5.0  # seconds for one read of one block
PAYLOAD = b"nydus-erofs self-test\n" * 186  # a little less than a block
_RIGHT, _EIO, _WRONG = 10, 11, 12


class Check(NamedTuple):
    """One thing this host must be able to do; ``fix`` tells a person what to change when it cannot."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


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
        if failure := call_in_child(lambda: mount_erofs(boot, through, ["0"], target)):
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


def tiny_image(size: int) -> bytes:
    """An EROFS image of three blocks: superblocks and device slot, inodes, root directory; one file ``file`` of
    ``size`` bytes (one block at most) in block 0 of device 1."""
    superblock = ondisk.SuperBlock(
        magic=ondisk.SUPERBLOCK_MAGIC, checksum=0, feature_compat=0, block_bits=BLOCK_BITS, ext_slots=0, root_nid=2,
        inodes=2, epoch=0, epoch_nsec=0, blocks=3, meta_block=1, xattr_block=0, uuid=b"", volume_name=b"",
        feature_incompat=rafs.INCOMPAT_RAFS_V6, u1=0, extra_devices=1, device_table_slot=rafs.DEVICE_TABLE_SLOT,
        reserved=b"",
    )  # fmt: skip
    names = [(b".", 2, FileType.DIR), (b"..", 2, FileType.DIR), (b"file", 4, FileType.REG)]
    at = ondisk.DIRENT.size * len(names)
    entries = b""
    for name, nid, kind in names:
        entries += ondisk.DIRENT.pack(nid, at, kind, 0)
        at += len(name)
    entries += b"".join(name for name, _, _ in names)
    image = bytearray(3 * BLOCK_SIZE)
    _put(image, ondisk.SUPERBLOCK_OFFSET, superblock.pack())
    _put(image, rafs.DEVICE_TABLE_OFFSET, ondisk.DeviceSlot(b"0", 1, 0, b"").pack())
    _put(image, BLOCK_SIZE + 2 * ondisk.SLOT_SIZE, _inode(Layout.FLAT_PLAIN, 0o40755, len(entries), 2, 2))
    chunk_format = ondisk.CHUNK_FORMAT_INDEXES
    _put(image, BLOCK_SIZE + 4 * ondisk.SLOT_SIZE, _inode(Layout.CHUNK_BASED, 0o100644, size, chunk_format, 1))
    _put(image, BLOCK_SIZE + 6 * ondisk.SLOT_SIZE, ondisk.CHUNK_INDEX.pack(0, 1, 0))
    _put(image, 2 * BLOCK_SIZE, entries)
    return bytes(image)


def _inode(layout: Layout, mode: int, size: int, u: int, nlink: int) -> bytes:
    return ondisk.ExtendedInode(layout << 1 | 1, 0, mode, 0, size, u, 1, 0, 0, 0, 0, nlink, b"").pack()


def _put(image: bytearray, at: int, data: bytes) -> None:
    image[at : at + len(data)] = data


def _init_fix(number: int) -> str:
    if number == errno.EPERM:
        return "run as root (CAP_SYS_ADMIN in the first user namespace)"
    return "needs Linux 6.14 or later with CONFIG_FANOTIFY_ACCESS_PERMISSIONS"


def _mark_fix(number: int) -> str:
    if number == errno.EOPNOTSUPP:
        return "put the cache (--state-dir) on ext4, xfs or btrfs"
    if number == errno.EINVAL:
        return "needs Linux 6.14 or later"
    return "needs root and a cache on ext4, xfs or btrfs"


def failure(checks: list[Check]) -> str:
    """What failed, one phrase; empty when all is well."""
    return next((f"{check.name}: {check.detail}" for check in checks if not check.ok), "")


def require(checks: list[Check]) -> None:
    """KernelError for the first check that failed, if any."""
    for check in checks:
        if not check.ok:
            raise KernelError(f"the fanotify engine does not work here: {failure(checks)}", hint=check.fix)
