"""What worker and prepare write to standard error: into the keeper's log, as what a stranger says."""

from __future__ import annotations

import asyncio
import os
import time

from ...kernel.fd import Fd
from ...proto.fault import printable
from ..log import logger

_LINE = 1000  # bytes of one line
_PIECE = 16 << 10  # bytes
_AT_ONCE, _RATE = 64 << 10, 4 << 10  # bytes of all processes together: without a pause, and a second


class _Budget:
    """How much may be logged, however many processes follow one another."""

    def __init__(self) -> None:
        self._left, self._since = float(_AT_ONCE), time.monotonic()

    def spend(self, size: int) -> float:
        """Take ``size`` bytes of it; seconds until it is even again."""
        now = time.monotonic()
        self._left = min(_AT_ONCE, self._left + (now - self._since) * _RATE) - size
        self._since = now
        return max(0.0, -self._left / _RATE)


_budget = _Budget()


async def read_log(process: str, pid: int, pipe: Fd) -> None:
    """Log, line by line, what comes through a pipe until nobody can write to it. Who writes too much has to wait."""
    rest = b""
    with pipe:
        os.set_blocking(pipe.fd, False)
        while piece := await _read(pipe):
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > _LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                _log(process, pid, line)
            await asyncio.sleep(_budget.spend(len(piece)))
    if rest:
        _log(process, pid, rest)


def _log(process: str, pid: int, line: bytes) -> None:
    shown = printable(line[:_LINE].decode("utf-8", "backslashreplace"))
    if shown:
        logger().warning("a process wrote", process=process, pid=pid, line=shown)


async def _read(pipe: Fd) -> bytes:
    """What there is to read, as soon as there is something; empty at the end."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(pipe.fd, _PIECE)
        except BlockingIOError:
            readable = asyncio.Event()
            loop.add_reader(pipe.fd, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(pipe.fd)
