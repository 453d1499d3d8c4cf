"""What both engines do the same way around a mount."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from ....erofs.errors import BusyError, KernelError, ServiceError
from ...kernel.process import fork_call
from ..spawn import exited


async def in_child(call: Callable[[], None]) -> None:
    """Run one system call that may block in a forked child; KernelError with its errno when it fails."""
    pid, pipe = fork_call(call)
    code = await exited(pid)
    with os.fdopen(pipe, "rb") as file:
        number, _, text = file.read().decode(errors="replace").partition(" ")
    if code or number:
        raise KernelError(text or f"a helper process ended with {code}", number=int(number or errno.EIO))


def check_target(target: str) -> None:
    """ServiceError unless something can be mounted on ``target`` now."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        raise ServiceError(f"mountpoint {target} does not exist", hint="create it with mkdir") from None
    except OSError as error:
        raise ServiceError(f"mountpoint {target}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise ServiceError(f"mountpoint {target} is not a directory")
    if os.path.ismount(target):
        raise BusyError(f"something is mounted on {target} already", hint="unmount it, or choose another mountpoint")
