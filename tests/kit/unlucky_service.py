"""``nydus-erofs`` whose keeper is out of luck: ``unlucky_service.py FLAG SEED ARGUMENTS``.

As long as there is a file FLAG some of the calls fail that its thread makes of the host, by whatever errno a call
may have; each is written to FLAG.calls. Its children are not touched, nor what the engine's own descriptor is for.
"""

import builtins
import errno
import functools
import os
import random
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

flag, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
keeper = os.getpid()
_exists, _open, _write, _close = os.path.exists, os.open, os.write, os.close

_FDS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_DISK = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EPERM, errno.EDQUOT, errno.ESHUTDOWN)
_FAILING: dict[str, tuple[int, ...]] = {
    "open": (*_FDS, *_DISK), "dup": _FDS, "pipe": _FDS, "pidfd_open": _FDS, "memfd_create": _FDS, "statvfs": _DISK,
    "fork": (errno.EAGAIN, errno.ENOMEM), "posix_spawn": (errno.EAGAIN, errno.ENOMEM),
    "posix_spawnp": (errno.EAGAIN, errno.ENOMEM), "listdir": (*_FDS, errno.EIO), "scandir": (*_FDS, errno.EIO),
    **dict.fromkeys(("unlink", "rename", "replace", "mkdir", "rmdir", "chown", "fsync"), _DISK),
}  # fmt: skip


def unlucky(
    name: str, function: Callable[..., Any], numbers: tuple[int, ...], share: float = 0.1
) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if os.getpid() == keeper and _exists(flag) and rng.random() < share:
            number = rng.choice(numbers)
            where = traceback.extract_stack(limit=2)[0]
            line = f"{name} {errno.errorcode[number]} {os.path.basename(where.filename)}:{where.lineno}\n"
            fd = _open(f"{flag}.calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            _write(fd, line.encode())
            _close(fd)
            raise OSError(number, os.strerror(number))
        return function(*arguments, **options)

    return call


from nydus_erofs.cli import main  # noqa: E402 - before anything fails

for _name, _numbers in _FAILING.items():
    setattr(os, _name, unlucky(_name, getattr(os, _name), _numbers))
builtins.open = unlucky("open()", builtins.open, _FAILING["open"])
socket.socketpair = unlucky("socketpair", socket.socketpair, _FDS)
socket.socket.accept = unlucky("accept", socket.socket.accept, _FDS, 0.01)  # type: ignore[method-assign]
sys.argv[1:3] = []
sys.argv[0] = "nydus-erofs"
main()
