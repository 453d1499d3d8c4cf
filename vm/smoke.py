"""The smoke battery: is this guest the machine the engines' tests need?

Runs inside a guest (``vm/matrix``), one check after another. Numbers of the kernel's interfaces:
include/uapi/linux/fanotify.h (6.14), fs/cachefiles/daemon.c (6.1).
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import report

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_FAN_CLASS_PRE_CONTENT, _FAN_CLOEXEC, _FAN_NONBLOCK = 0x8, 0x1, 0x2
_FAN_MARK_ADD, _FAN_MARK_MOUNT = 0x1, 0x10
_FAN_PRE_ACCESS = 0x100000
_FAN_ALLOW = 1
_EVENT = struct.Struct("=IBBHQii")  # event_len, vers, reserved, metadata_len, mask, fd, pid
_RANGE = struct.Struct("=BBHIQQ")  # info_type, pad, len, pad, offset, count
_INFO_TYPE_RANGE = 6
_ANSWER_SECONDS = 20


def _call(name: str, *arguments: object) -> int:
    """A libc function that returns -1 and sets errno; raises OSError."""
    result: int = getattr(_libc, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def right_kernel() -> str:
    release, series = os.uname().release, os.environ["NYDUS_EROFS_VM_SERIES"]
    assert release.startswith(f"{series}."), f"{release} is not {series}"
    return release


def project_imports() -> str:
    import nydus_erofs

    return nydus_erofs.__version__


def scratch_disk() -> str:
    mounts = Path("/proc/mounts").read_text().splitlines()
    fs = next(words[2] for words in map(str.split, mounts) if words[1] == "/scratch")
    probe = Path("/scratch/probe")
    with _closing(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)) as descriptor:
        assert os.write(descriptor, mmap.mmap(-1, 4096)) == 4096
    probe.unlink()
    return fs


def cachefiles_binds() -> str:
    """The device takes a cache folder and goes on demand."""
    with _closing(os.open("/dev/cachefiles", os.O_RDWR)) as device:
        Path("/scratch/smoke-cache").mkdir(exist_ok=True)
        for command in ("dir /scratch/smoke-cache", "tag smoke", "bind ondemand"):
            os.write(device, command.encode())
    return "bind ondemand"


def erofs_takes_fsid() -> str:
    """With nobody serving, mount(2) fails for want of a cache (ENOBUFS), not for an unknown option (EINVAL)."""
    try:
        _call("mount", b"none", b"/mnt", b"erofs", ctypes.c_ulong(1), b"fsid=smoke")
    except OSError as error:
        assert error.errno == 105, error
        return "-o fsid="
    raise AssertionError("mounted without a service")


def pre_content_event() -> str:
    """A read under a mount mark waits, tells its range, and goes on when it is allowed."""
    source, private = Path("/scratch/smoke-source"), Path("/scratch/smoke-bind")
    source.mkdir(exist_ok=True)
    private.mkdir(exist_ok=True)
    (source / "file").write_bytes(b"x" * 8192)
    _call("mount", bytes(source), bytes(private), None, ctypes.c_ulong(4096), None)  # MS_BIND
    try:
        flags = _FAN_CLASS_PRE_CONTENT | _FAN_CLOEXEC | _FAN_NONBLOCK
        with _closing(_call("fanotify_init", flags, os.O_RDONLY | os.O_CLOEXEC)) as group:
            mark = _FAN_MARK_ADD | _FAN_MARK_MOUNT
            _call("fanotify_mark", group, mark, ctypes.c_uint64(_FAN_PRE_ACCESS), _AT_FDCWD, bytes(private))
            reader = subprocess.Popen(
                ["dd", f"if={private}/file", "bs=4096", "skip=1", "count=1", "status=none"],
                stdout=subprocess.PIPE,
            )
            offset, count = _allow_one(group)
            data, _ = reader.communicate(timeout=_ANSWER_SECONDS)
        assert data == b"x" * 4096, data[:16]
        assert offset <= 4096 < offset + count, (offset, count)
        return f"range {offset}+{count}"
    finally:
        _call("umount2", bytes(private), 2)  # MNT_DETACH


def doctor_agrees() -> str:
    """The project's own probe comes to the same opinion as the table of kernels."""
    done = subprocess.run(["nydus-erofs", "doctor", "--json"], capture_output=True, text=True)
    engine = json.loads(done.stdout)["engines"][os.environ[report.ENGINE]]
    failed = [f"{check['name']}: {check['detail']}" for check in engine["checks"] if not check["ok"]]
    assert engine["works"], failed
    return f"{len(engine['checks'])} checks"


def _allow_one(group: int) -> tuple[int, int]:
    ready, _, _ = select.select([group], [], [], _ANSWER_SECONDS)
    assert ready, "no event"
    data = os.read(group, 4096)
    _, _, _, header, mask, descriptor, _ = _EVENT.unpack_from(data)
    with _closing(descriptor):
        os.write(group, struct.pack("=iI", descriptor, _FAN_ALLOW))
    kind, _, _, _, offset, count = _RANGE.unpack_from(data, header)
    assert mask == _FAN_PRE_ACCESS, hex(mask)
    assert kind == _INFO_TYPE_RANGE, kind
    return offset, count


if __name__ == "__main__":
    sys.exit(
        report.run(
            {
                ("any", "the kernel asked for"): right_kernel,
                ("any", "the checkout's nydus_erofs imports"): project_imports,
                ("any", "scratch disk with direct I/O"): scratch_disk,
                ("cachefiles", "/dev/cachefiles binds on demand"): cachefiles_binds,
                ("cachefiles", "EROFS takes fsid="): erofs_takes_fsid,
                ("fanotify", "a read waits for a pre-content event"): pre_content_event,
                ("fanotify", "nydus-erofs doctor: the engine works"): doctor_agrees,
            }
        )
    )
