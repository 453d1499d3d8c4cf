"""Starting worker and prepare: a Python process in a session of its own, with one end of a socket as descriptor 3."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys

from ...kernel import channel
from ...kernel.fd import Fd
from ...processes import Process
from ..log import logger
from ..signals import CHANGED
from ..tasks import background
from .child_log import read_log
from .errands import exited

_SOCKET_FD = 3
_ABOVE = 16  # what is passed on is kept apart from the descriptors that it becomes
_PACKAGE = __package__.removesuffix(".keeper.children")


def program(process: Process) -> list[str]:
    """What is run. -I: neither the environment nor the working directory can add modules to it."""
    return [sys.executable, "-I", "-m", f"{_PACKAGE}.{process.name}"]


def spawn(process: Process, *arguments: object) -> tuple[int, socket.socket]:
    """Start ``python -m nydus_erofs.fscache.<name> 3 ARGUMENTS``; (its process id, our end of the socket).

    It is given what the table of processes says, and nothing else; what it writes to standard error goes to our log.
    """
    ours, theirs = channel.pair()
    command = [*program(process), str(_SOCKET_FD), *map(str, arguments)]
    log, written = map(Fd, os.pipe())
    with theirs, written, Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) as null:
        places: dict[int, Fd | socket.socket] = {0: null, 1: null, 2: written, _SOCKET_FD: theirs}
        high = {number: _high(source.fileno()) for number, source in places.items()}
        pid = os.posix_spawn(
            sys.executable,
            command,
            process.variables(os.environ),
            file_actions=[(os.POSIX_SPAWN_DUP2, source.fd, number) for number, source in high.items()],
            # No terminal can be reached from there, and Ctrl-C in ours is for the keeper.
            setsid=True,
            setsigmask=(),
            setsigdef=CHANGED,
        )
    background(read_log(process.name, pid, log), "the log of a process is lost")
    return pid, ours


async def ended(process: Process, pid: int) -> int:
    """Wait for the end of one; its exit code, negative for a signal."""
    code = await exited(pid)
    if code == -signal.SIGSYS:
        logger().error("a process made a system call that it may not make", process=process.name, pid=pid)
    return code


def _high(fd: int) -> Fd:
    return Fd(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE))
