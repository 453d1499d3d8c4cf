"""Logs through structlog: for people on a terminal, JSON where a journal or another program reads them.

Logging never waits and never fails: who reads the log (a terminal stopped with Ctrl-S, a journal that is busy, a pipe
that nobody empties) must not hold up the readers of images, nor end the service by going away.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

# structlog loads rich, if it is there, to draw tracebacks: 4 MiB and 15 ms that the keeper has no use for.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
import structlog  # noqa: E402

if sys.modules["rich"] is None:
    del sys.modules["rich"]

LEVELS = ("trace", "debug", "info", "warn", "error")
_NUMBERS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "error": 40}
_MOST_WAITING = 1000  # lines kept for a reader that is slow; older ones are lost
_LINE = 16384  # bytes of one line


class _Stream:
    """Standard error, for whole lines. Structlog's logger: each of its methods takes a line."""

    def __init__(self, fd: int) -> None:
        self._write = _writer(fd)
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._cut = False  # half of a line is written

    def msg(self, message: str) -> None:
        self._waiting.append(message.encode(errors="replace")[:_LINE] + b"\n")
        try:
            while self._waiting:
                done = self._write(self._waiting[0])
                self._cut = done < len(self._waiting[0])
                if self._cut:
                    self._waiting[0] = self._waiting[0][done:]
                else:
                    self._waiting.popleft()
        except BlockingIOError:
            pass  # with the next line, perhaps
        except OSError:  # nobody reads it any more; or its disk is full, and some day there is room
            self._waiting.clear()
            if self._cut:
                self._waiting.append(b"\n")

    debug = info = warning = error = critical = msg


def _writer(fd: int) -> Callable[[bytes], int]:
    """How to write to a descriptor without waiting, and without changing it for others who have it too."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):  # the journal
        stream = socket.socket(fileno=os.dup(fd))
        return lambda line: stream.send(line, socket.MSG_DONTWAIT)
    if stat.S_ISFIFO(mode) or os.isatty(fd):
        with contextlib.suppress(OSError):  # opened again, it has flags of its own
            fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return lambda line: os.write(fd, line)


def configure(level: str = "info") -> None:
    """Set up logging to standard error once, for this process."""
    terminal = sys.stderr.isatty()
    journal = "JOURNAL_STREAM" in os.environ
    processors: list[Any] = [structlog.processors.add_log_level]
    if not journal:
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=False))
    if terminal:
        processors.append(structlog.dev.ConsoleRenderer(colors=True))
    else:
        processors.append(structlog.processors.JSONRenderer(ensure_ascii=False))
    stream = _Stream(sys.stderr.fileno())
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_NUMBERS[level]),
        logger_factory=lambda *_: stream,
        cache_logger_on_first_use=True,
    )


def logger() -> Any:
    """The project's logger: ``logger().info("what happened", key=value)``."""
    return structlog.get_logger()
