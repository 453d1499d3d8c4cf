"""Mounts: EROFS from files through the new mount API, private bind mounts, and what is mounted where."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...erofs.errors import KernelError
from . import statx
from .fd import Fd
from .libc import checked, ffi, integer, lib, text

_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432  # the same numbers on every architecture
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 1, 1
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6
_MOVE_MOUNT_F_EMPTY_PATH = 4
_ATTR_RDONLY = 1
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_PRIVATE = 1, 0x20, 0x1000, 1 << 18
_MNT_DETACH = 2
_AT_FDCWD = -100
_PIECE = 64 << 10  # bytes
FS_TYPE = "erofs"
# Mount options and their flags, the same numbers for mount(2) (MS_*) and fsmount(2) (MOUNT_ATTR_*).
MOUNT_FLAGS = {"nosuid": 2, "nodev": 4, "noexec": 8}


class MountEntry(NamedTuple):
    """One line of mountinfo."""

    mount_id: int
    target: str
    flags: int  # MS_* of the mount: those of MOUNT_FLAGS that it has
    fs_type: str
    source: str
    options: dict[str, str]  # of the filesystem; an option without a value has ""
    device: int  # number of the filesystem, as st_dev


def mount_erofs(
    bootstrap: str,
    directory: str,
    devices: Sequence[str],
    target: str,
    *,
    flags: int = 0,
    read_ahead_kib: int | None = None,
) -> int:
    """Mount the EROFS image in file ``bootstrap`` read-only on ``target`` (Linux 6.12+); the mount's id.

    Args:
        devices: names of the device files, relative to ``directory``, in device table order. The kernel
            takes at most 255 bytes a value, hence relative names; **this changes the working directory**
            (to ``/`` in the end, so that it holds nothing), so call it in a child process.
        flags: MOUNT_ATTR_* besides read-only.
        read_ahead_kib: how far the kernel reads ahead on this filesystem; None for its default (128).

    Raises:
        KernelError: the kernel refused; the message holds what it logged about it.
    """
    target = os.path.abspath(target)
    with made_erofs(bootstrap, directory, devices, flags=flags, read_ahead_kib=read_ahead_kib) as mount:
        arguments = (
            integer(mount.fd),
            text(""),
            integer(_AT_FDCWD),
            text(target),
            integer(_MOVE_MOUNT_F_EMPTY_PATH),
        )
        checked(lib.syscall(_MOVE_MOUNT, *arguments), f"mounting on {target}")
        return statx.of_fd(mount.fd).mount_id


@contextlib.contextmanager
def made_erofs(
    bootstrap: str, directory: str, devices: Sequence[str], *, flags: int = 0, read_ahead_kib: int | None = None
) -> Iterator[Fd]:
    """The same, mounted nowhere: it is gone with the last who uses it. Its root, as an O_PATH descriptor."""
    bootstrap = os.path.abspath(bootstrap)
    os.chdir(directory)
    context = checked(lib.syscall(_FSOPEN, text(FS_TYPE), integer(_FSOPEN_CLOEXEC)), "fsopen erofs")
    try:
        _configure(context, _SET_STRING, "source", bootstrap)
        _configure(context, _SET_FLAG, "ro")
        _add_devices(context, devices)
        _configure(context, _CMD_CREATE)
        if read_ahead_kib is not None:
            _set_read_ahead(read_ahead_kib)
        attributes = integer(_ATTR_RDONLY | flags)
        arguments = (integer(context), integer(_FSMOUNT_CLOEXEC), attributes)
        with Fd(checked(lib.syscall(_FSMOUNT, *arguments), "fsmount")) as mount:
            yield mount
    finally:
        os.close(context)
        os.chdir("/")


def mount_fsid(options: str, target: str, flags: int = 0) -> None:
    """Mount an EROFS image by fsid (Linux 5.19+); it waits until the daemon has answered, and cannot be killed.

    Call it in a child process that does not hold ``/dev/cachefiles``.
    """
    data = ffi.new("char[]", options.encode())
    checked(lib.mount(b"nydus-erofs", os.fsencode(target), FS_TYPE.encode(), _MS_RDONLY | flags, data), "mount")


def _configure(context: int, command: int, key: str | None = None, value: str | None = None) -> None:
    if lib.syscall(_FSCONFIG, integer(context), integer(command), text(key), text(value), integer(0)) < 0:
        raise _refused(context, key)


def _add_devices(context: int, devices: Sequence[str]) -> None:
    """The same for each of what may be thousands of devices: arguments are made once."""
    call, key = lib.syscall, "device"
    arguments = (integer(context), integer(_SET_STRING), text(key))
    zero = integer(0)
    for device in devices:
        if call(_FSCONFIG, *arguments, text(device), zero) < 0:
            raise _refused(context, key)


def _refused(context: int, key: str | None) -> KernelError:
    """Why the kernel does not take an option, or does not mount."""
    number = ffi.errno
    said = _kernel_log(context)
    what = f"erofs {key or 'mount'}: {os.strerror(number)}{f' ({said})' if said else ''}"
    hint = None
    if number in (errno.ENOTBLK, errno.ENODEV):
        hint = "the kernel needs CONFIG_EROFS_FS_BACKED_BY_FILE (Linux 6.12 or later)"
    return KernelError(what, hint=hint)


def _kernel_log(context: int) -> str:
    """What the kernel says about the last failure of a mount context, one line."""
    lines = []
    try:
        while line := os.read(context, 4096):
            lines.append(line.decode(errors="replace").strip())
    except OSError:
        pass  # ENODATA: nothing more
    return "; ".join(lines)


def _set_read_ahead(kib: int) -> None:
    """Set the read-ahead of the newest EROFS filesystem: /sys/class/bdi has erofs-N, numbered as they are made.

    Speed only: failing is quiet, and should somebody have made another one in this moment, that one gets it.
    """
    with contextlib.suppress(OSError):
        folder, prefix = "/sys/class/bdi", f"{FS_TYPE}-"
        numbers = [int(name.removeprefix(prefix)) for name in os.listdir(folder) if name.startswith(prefix)]
        with open(f"{folder}/{prefix}{max(numbers, default=0)}/read_ahead_kb", "wb", buffering=0) as file:
            file.write(b"%d" % kib)


def fsid_support() -> bool | None:
    """Whether EROFS here mounts by fsid: None when it is built without (CONFIG_EROFS_FS_ONDEMAND), False when this
    kernel does not know of it at all (before 5.19, and since 7.2)."""
    context = lib.syscall(_FSOPEN, text(FS_TYPE), integer(_FSOPEN_CLOEXEC))
    if context < 0:
        return None
    try:
        arguments = (integer(context), integer(_SET_STRING), text("fsid"), text("probe"), integer(0))
        if lib.syscall(_FSCONFIG, *arguments) < 0:
            return False
        return None if "not supported" in _kernel_log(context) else True
    finally:
        os.close(context)


def bind(source: str, target: str, flags: int | None = None) -> None:
    """Bind-mount directory ``source`` on ``target``; read-only with MS_* ``flags`` of its own, if they are given."""
    checked(lib.mount(os.fsencode(source), os.fsencode(target), ffi.NULL, _MS_BIND, ffi.NULL), f"bind {target}")
    if flags is not None:
        what = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | flags
        if lib.mount(ffi.NULL, os.fsencode(target), ffi.NULL, what, ffi.NULL) < 0:
            number = ffi.errno
            unmount(target)
            raise OSError(number, f"mounting on {target}: {os.strerror(number)}")


def bind_private(source: str, target: str) -> None:
    """Bind-mount directory ``source`` on ``target``, not shared with any other mount namespace."""
    bind(source, target)
    checked(lib.mount(ffi.NULL, os.fsencode(target), ffi.NULL, _MS_PRIVATE, ffi.NULL), f"private {target}")


def unmount(target: str, *, lazy: bool = False) -> None:
    """umount2(2); OSError as it comes (EBUSY when in use, EINVAL when nothing is mounted there)."""
    checked(lib.umount2(os.fsencode(target), _MNT_DETACH if lazy else 0), f"umount {target}")


def sync_filesystem(fd: int) -> None:
    """Write everything of the filesystem that ``fd`` lies on to disk."""
    checked(lib.syncfs(fd), "syncfs")


def mounts(fs_type: str = "") -> Iterator[MountEntry]:
    """Mounts of this process's mount namespace, oldest first: all, or those of one type of filesystem.

    Anybody may have named what is mounted, so lines are told apart as bytes, and one that makes no sense is left out.
    """
    for lines in _pieces(fs_type):
        yield from filter(None, map(_entry, lines))


def mount_ids(fs_type: str) -> Iterator[set[int]]:
    """Ids of all mounts of one type of filesystem, a piece of the table at a time: a long one takes milliseconds."""
    for lines in _pieces(fs_type):
        yield {int(line.partition(b" ")[0]) for line in lines}


def _pieces(fs_type: str) -> Iterator[list[bytes]]:
    """The lines of ``/proc/self/mountinfo`` (proc(5)) for a type, if there is one, as the kernel gives them: a page
    at a time. What is mounted all the while is in one of them."""
    wanted = b" - %b " % fs_type.encode() if fs_type else b" - "
    rest = b""
    with open("/proc/self/mountinfo", "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            *lines, rest = (rest + piece).split(b"\n")
            yield [line for line in lines if wanted in line]


def _entry(line: bytes) -> MountEntry | None:
    left, _, right = line.partition(b" - ")
    try:
        number, _, device, _, target, flags = left.split(b" ")[:6]
        kind, source, options = right.split(b" ")[:3]
        pairs = (option.partition("=") for option in os.fsdecode(options).split(","))
        has = sum(MOUNT_FLAGS.get(flag, 0) for flag in os.fsdecode(flags).split(","))
        named = {name: value for name, _, value in pairs}
        major, minor = map(int, device.split(b":"))
        return MountEntry(
            int(number), _unescape(target), has, os.fsdecode(kind), _unescape(source), named, os.makedev(major, minor)
        )
    except (ValueError, OverflowError):
        return None


def _unescape(field: bytes) -> str:
    """Undo mountinfo's octal escapes of blank, tab, newline and backslash."""
    first, *rest = field.split(b"\\")
    return os.fsdecode(b"".join([first, *(bytes([int(part[:3], 8)]) + part[3:] for part in rest)]))
