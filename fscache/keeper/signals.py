"""Signals that a person may send: some mean something, none of the others ends the service or lets readers hang."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# Those whose default ends the process, or stops it: SIGTSTP is Ctrl-Z in the terminal.
_IGNORED = (
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR,
    signal.SIGSTKFLT, signal.SIGXCPU, signal.SIGPIPE, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)  # fmt: skip
CHANGED = frozenset({*_STOP, signal.SIGHUP, *_IGNORED})  # what a program started from here must have at its default


class Signals:
    """Handles them until ``close``."""

    def __init__(self, *, stop: Callable[[], object], reload: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        for number in _STOP:
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGHUP, reload)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (*_STOP, signal.SIGHUP):
            loop.remove_signal_handler(number)
