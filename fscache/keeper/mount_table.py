"""The host's mount table: told when it changes, and not at every change (proc(5): POLLPRI on mountinfo)."""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Callable

from ..kernel.fd import Fd

_LOOK_AGAIN = 5.0  # seconds between looks, for mounts that were in use when last looked at
_SOON = 0.05  # seconds after a change, for those that follow it
_SHARE = 20  # of the time at most goes into looks: one in so many parts


class MountTable:
    """Calls ``look`` soon after a change, and now and then; reading a long table takes its time, so not too often."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._table = Fd(os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC))
        self._epoll = select.epoll()
        self._epoll.register(self._table, select.EPOLLPRI | select.EPOLLERR)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll, self._changed)
        self._next = self._loop.call_later(_LOOK_AGAIN, self._now)
        self._not_before = 0.0

    def _changed(self) -> None:
        self._epoll.poll(0)
        self._at(max(time.monotonic() + _SOON, self._not_before))

    def _at(self, when: float) -> None:
        if when < self._next.when():
            self._next.cancel()
            self._next = self._loop.call_at(when, self._now)

    def _now(self) -> None:
        started = time.monotonic()
        self._look()
        ended = time.monotonic()
        self._not_before = ended + _SHARE * (ended - started)
        self._next = self._loop.call_later(_LOOK_AGAIN, self._now)

    def close(self) -> None:
        self._next.cancel()
        self._loop.remove_reader(self._epoll)
        self._epoll.close()
        self._table.close()
