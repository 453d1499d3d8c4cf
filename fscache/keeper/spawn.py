"""Starting the keeper's helpers: a Python process with one end of a socket as descriptor 3."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import Sequence

from ..kernel import channel

_SOCKET_FD = 3
_PACKAGE = __package__.rpartition(".")[0]
_ENVIRONMENT = re.compile(
    "PATH|HOME|LANG|LC_ALL|TZ|SSL_CERT_(FILE|DIR)|AWS_[A-Z_]+|(https?|no|HTTPS?|NO)_(proxy|PROXY)"
)


def spawn(module: str, *arguments: object) -> tuple[int, socket.socket]:
    """Start ``python -m nydus_erofs.fscache.<module> 3 ARGUMENTS``; (its process id, our end of the socket).

    It inherits standard error and nothing else, and of the environment what finds programs, certificates, proxies and
    S3 credentials.
    """
    ours, theirs = channel.pair()
    # -I: neither the environment nor the working directory can add modules to the program.
    command = [sys.executable, "-I", "-m", f"{_PACKAGE}.{module}", str(_SOCKET_FD), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if _ENVIRONMENT.fullmatch(name)}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [
            (os.POSIX_SPAWN_DUP2, null, 0),
            (os.POSIX_SPAWN_DUP2, null, 1),
            (os.POSIX_SPAWN_DUP2, theirs.fileno(), _SOCKET_FD),
        ]
        with theirs:
            if theirs.fileno() == _SOCKET_FD:
                os.set_inheritable(_SOCKET_FD, True)
            # A process group of its own: Ctrl-C in the terminal is for the keeper.
            pid = os.posix_spawn(sys.executable, command, environment, file_actions=actions, setpgroup=0)
    finally:
        os.close(null)
    return pid, ours


async def write_out(paths: Sequence[str]) -> bool:
    """Write files and folders to the disk, however long that takes; whether it was done (sync(1) does it)."""
    try:
        pid = os.posix_spawnp("sync", ["sync", "--", *paths], os.environ)
    except OSError:
        return False
    return await exited(pid) == 0


async def exited(pid: int) -> int:
    """Wait for a child without blocking; its exit code, negative for a signal."""
    loop = asyncio.get_running_loop()
    pidfd = os.pidfd_open(pid)
    try:
        done = asyncio.Event()
        loop.add_reader(pidfd, done.set)
        try:
            await done.wait()
        finally:
            loop.remove_reader(pidfd)
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
