"""The host's mount table: told when it changes, and not at every change (proc(5): POLLPRI on mountinfo)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import time
from collections.abc import Awaitable, Callable

from ..kernel.fd import Fd
from .tasks import background, steadily

_LOOK_AGAIN = 5.0  # seconds between looks, for mounts that were in use when last looked at
_SOON = 0.05  # seconds after a change, for those that follow it
_WHAT = "the mount table cannot be looked at"
_SHARE = 50  # of the time at most goes into looks: one in so many parts


class MountTable:
    """Calls ``look`` soon after a change, and now and then; reading a long table takes its time, so not too often."""

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._table = Fd(os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC))
        self._epoll = select.epoll()
        self._epoll.register(self._table, select.EPOLLPRI | select.EPOLLERR)
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll, self._on_change)
        self._task = background(steadily(self._step, _WHAT), _WHAT)

    def _on_change(self) -> None:
        self._epoll.poll(0)
        self._changed.set()

    async def _step(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), _LOOK_AGAIN)
        await asyncio.sleep(_SOON)
        self._changed.clear()
        started = time.monotonic()
        await self._look()
        await asyncio.sleep(_SHARE * (time.monotonic() - started))

    def close(self) -> None:
        self._task.cancel()
        self._loop.remove_reader(self._epoll)
        self._epoll.close()
        self._table.close()
