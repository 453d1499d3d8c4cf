"""Does the cachefiles engine work here? Tried on a tiny image: bind the device, mount by fsid, read a file.

The mount and the read happen in a child that does not hold the device: it waits until it is answered, and
could not be killed otherwise.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import select
import shutil
import time
from collections.abc import Callable, Iterator

from ...erofs.errors import BusyError, NydusErofsError
from ...erofs.ondisk import BLOCK_SIZE
from ..kernel.cachefiles import Device, complete
from ..kernel.mount import fsid_support, mount_fsid, unmount
from ..kernel.process import fork_call
from ..proto import cachefiles as proto
from .checks import Check
from .tiny_image import PAYLOAD, tiny_image

_PATIENCE = 20.0  # seconds
_FSID = "nydus-erofs-selftest"
# Bugs of the on-demand protocol that corrupt data or crash the kernel were fixed up to these versions.
_FLOOR = {(6, 1): 106, (6, 6): 42, (6, 9): 11}
_NO_FSID = "from Linux 6.14 on, the fanotify engine is the one to use; this one needs 5.19 to 7.1"
_NO_ONDEMAND = "'scripts/kernel-modules' builds the two modules for Debian's kernels"


def cachefiles_engine(directory: str) -> list[Check]:
    """Run the self-test with its cache in a new folder below ``directory``. Needs root.

    Returns the checks in order, ending with the first that failed.
    """
    checks: list[Check] = []
    work = os.path.join(directory, f".selftest-cachefiles-{os.getpid()}")
    os.makedirs(os.path.join(work, "mnt"), mode=0o700)
    try:
        with contextlib.ExitStack() as cleanup:
            for check in _steps(work, cleanup):
                checks.append(check)
                if not check.ok:
                    break
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return checks


def kernel_floor(release: str, version: str) -> Check:
    """Whether a kernel (uname's release and version) has the fixes that the engine needs."""
    found = re.search(r"Debian (\d+)\.(\d+)\.(\d+)", version) or re.match(r"(\d+)\.(\d+)\.(\d+)", release)
    if found is None:
        return Check("kernel version", True, f"{release}: of no known series")
    major, minor, patch = (int(part) for part in found.groups())
    series = f"{major}.{minor}.{patch}"
    floor = _FLOOR.get((major, minor), 0 if (major, minor) > (6, 9) else 1 << 30)
    if patch >= floor:
        return Check("kernel version", True, f"{series} has the known fixes of the on-demand protocol")
    return Check(
        "kernel version",
        False,
        f"{series} has known bugs in the on-demand protocol that can crash it or lose reads",
        "use 6.1.106, 6.6.42, 6.9.11 or later; or go on at your own risk with allow_old_kernel = true",
    )


def _steps(work: str, cleanup: contextlib.ExitStack) -> Iterator[Check]:
    if fsid_support() is False:
        yield Check("EROFS over fscache", False, "this kernel's EROFS knows no mounts by fsid", _NO_FSID)
        return
    try:
        device = Device.open()
    except BusyError as error:
        ours = "nydus-erofs" in error.message
        yield Check("device", ours, error.message, error.hint or "")
        return
    except NydusErofsError as error:
        yield Check("device", False, error.message, error.hint or "")
        return
    cleanup.callback(device.close)
    try:
        device.bind(proto.set_up(work, "nydus-erofs-selftest", proto.CullLimits()))
    except NydusErofsError as error:
        yield Check("on-demand cache", False, error.message, error.hint or "")
        return
    yield Check("on-demand cache", True, "the kernel binds an on-demand cache to this filesystem")
    target = os.path.join(work, "mnt")
    said = _serve(device, lambda: _mount_and_read(device, target))
    _serve(device, lambda: _unmount(device, target))
    if said:
        fix = f"the kernel needs CONFIG_EROFS_FS_ONDEMAND: {_NO_ONDEMAND}"
        yield Check("EROFS over fscache", False, said, fix)
        return
    yield Check("EROFS over fscache", True, "an image mounts by fsid, and a block fetched on demand is read right")
    try:
        device.command(proto.RESTORE)
    except OSError:
        yield Check("restore", True, "absent: readers fail when the service dies with requests open")
    else:
        yield Check("restore", True, "requests can be taken up again after a crash")


def _mount_and_read(device: Device, target: str) -> None:
    device.close()
    mount_fsid(f"fsid={_FSID}", target)
    with open(os.path.join(target, "file"), "rb") as file:
        if file.read() != PAYLOAD:
            raise OSError(5, "a fetched block was not read back")


def _unmount(device: Device, target: str) -> None:
    device.close()
    unmount(target)


def _serve(device: Device, call: Callable[[], None]) -> str:
    """Run ``call`` in a child while answering the kernel; empty when it succeeded, else what it said."""
    pid, pipe = fork_call(call)
    image = tiny_image(len(PAYLOAD))
    contents = {_FSID: image, "0": PAYLOAD.ljust(BLOCK_SIZE, b"\0")}
    objects: dict[int, tuple[int, bytes]] = {}
    deadline = time.monotonic() + _PATIENCE
    said = b""
    with os.fdopen(pipe, "rb", buffering=0) as file:
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([device.fd, pipe], [], [], left)
            if device.fd in ready:
                _answer(device, contents, objects)
            if pipe in ready:
                part = file.read(4096)
                if not part:
                    break
                said += part
        else:
            said = b"5 the kernel did not finish in time"
            os.kill(pid, 9)
    for fd, _ in objects.values():
        os.close(fd)
    os.waitpid(pid, 0)
    return said.decode(errors="replace").partition(" ")[2]


def _answer(device: Device, contents: dict[str, bytes], objects: dict[int, tuple[int, bytes]]) -> None:
    while (message := device.read()) is not None:
        match message:
            case proto.Open(msg_id=msg_id, object_id=number, cookie=cookie, fd=fd):
                content = contents.get(cookie)
                if content is None:
                    device.command(proto.refused(msg_id, 2))
                    os.close(fd)
                else:
                    objects[number] = (fd, content)
                    device.command(proto.opened(msg_id, len(content)))
            case proto.Read(msg_id=msg_id, object_id=number, offset=offset, length=length):
                fd, content = objects[number]
                with mmap.mmap(-1, length) as buffer:
                    part = content[offset : offset + length]
                    buffer[: len(part)] = part
                    os.pwrite(fd, buffer, offset)
                complete(fd, msg_id)
            case proto.Close(object_id=number):
                os.close(objects.pop(number)[0])
