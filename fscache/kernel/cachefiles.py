"""``/dev/cachefiles`` in on-demand mode (Linux 5.19 to 6.x): the device, and the objects it hands out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable

from ...erofs.errors import BusyError, KernelError
from ..proto import cachefiles as proto

DEVICE = "/dev/cachefiles"


class Device:
    """The open device. While any descriptor of it is open, readers wait for answers; without one they fail."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open(cls) -> Device:
        """Open the device; there is one opener in the whole system."""
        try:
            return cls(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError:
            raise KernelError(
                f"no {DEVICE}",
                hint="from Linux 6.14 on the fanotify engine serves without it; before, load it with 'modprobe "
                "cachefiles' (it needs CONFIG_CACHEFILES_ONDEMAND)",
            ) from None
        except OSError as error:
            if error.errno == errno.EBUSY:
                holders = ", ".join(holders_of(DEVICE)) or "another process"
                raise BusyError(f"{DEVICE} is in use by {holders}", hint="stop it first") from None
            raise KernelError(f"{DEVICE}: {error.strerror}", hint="run as root") from None

    def bind(self, commands: Iterable[bytes]) -> None:
        """Set the device up; KernelError naming the command that the kernel refuses."""
        for command in commands:
            try:
                self.command(command)
            except OSError as error:
                raise KernelError(
                    f"{DEVICE}: '{command.decode(errors='replace')}': {error.strerror}",
                    hint=_bind_hint(command, error.errno or 0),
                ) from None

    def command(self, command: bytes) -> None:
        """One command, one write; OSError as it comes."""
        os.write(self.fd, command)

    def read(self) -> proto.Message | None:
        """The next message, or None when none waits."""
        packet = os.read(self.fd, proto.BUFFER_SIZE)
        message = proto.parse(packet) if packet else None
        if isinstance(message, proto.Open):
            os.set_inheritable(message.fd, False)  # the kernel does not make it so
        return message

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def complete(object_fd: int, msg_id: int) -> None:
    """Let the reader of a message go on. Without its bytes in place it gets EIO; one that is gone is no error."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(object_fd, proto.READ_COMPLETE, msg_id)


def holders_of(path: str) -> list[str]:
    """Processes that have ``path`` open, as ``name (pid)``."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            links = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
            if path in links:
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                    found.append(f"{file.read().strip()} (pid {pid})")
    return found


def _bind_hint(command: bytes, number: int) -> str:
    if command.startswith(b"bind") and number == errno.EINVAL:
        return "the kernel needs CONFIG_CACHEFILES_ONDEMAND: 'scripts/kernel-modules' builds it for Debian's kernels"
    if command.startswith((b"bind", b"dir")):
        return "the cache folder must be on a local filesystem with extended attributes, such as ext4 or xfs"
    return "see the kernel log"
