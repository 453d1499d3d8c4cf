"""Stores of which the disk has lost something while images are mounted from them: emptied, and filled again.

The kernel drops from memory what it could not write, and goes by the sizes of files. So from then on nobody is let to
such a store, and the verifier is ended: when nobody writes any more, segment files are cut to nothing, and all begins
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from ....erofs.errors import KernelError, NydusErofsError
from ...kernel.fd import Fd
from ...state.layout import segment_name
from ..children.errands import Say, said_by
from ..disk import LOST
from ..stores import epoch
from ..stores.kept_store import KeptStore
from ..stores.table import StoreTable
from ..tasks import background
from ..trouble import report

_AGAIN = 5.0  # seconds until it is tried again
_PATIENCE = 300.0  # seconds
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 300.0  # seconds: from the second time on, with a disk that goes on failing
_WELL = 600.0  # seconds after which it counts as the first time


class Emptying:
    """Empties stores of a table.

    Args:
        restoring: held while files of stores that are not open are changed.
        forget: has the kernel read again what it has in memory of a store's images.
    """

    def __init__(
        self, table: StoreTable, restoring: asyncio.Lock, forget: Callable[[KeptStore], Awaitable[None]]
    ) -> None:
        self._table, self._restoring, self._forget = table, restoring, forget
        self._waiting: list[KeptStore] = []  # for the verifier's end
        self._last, self._pause = -_WELL, 0.0

    def on_lost(self) -> bool:
        """The disk has lost something of what is not settled; whether the verifier must end."""
        for store in self._table.open_stores():
            if store.folder is not None and not store.synced and not store.suspect and any(store.have):
                store.suspect, store.barred = True, KernelError(LOST)
                self._table.fail(store)
                self._waiting.append(store)
        return bool(self._waiting)

    def on_nobody_writes(self) -> None:
        """The verifier has ended, or a new one knows nothing yet."""
        stores, self._waiting = self._waiting, []
        if stores:
            background(self._empty(stores), "a store is not emptied")

    def _next_pause(self) -> float:
        now = time.monotonic()
        well, self._last = now - self._last >= _WELL, now
        self._pause = 0.0 if well else min(_LONGEST_PAUSE, max(_FIRST_PAUSE, 2 * self._pause))
        return self._pause

    async def _empty(self, stores: Sequence[KeptStore]) -> None:
        await asyncio.sleep(self._next_pause())
        while stores := list(filter(self._table.is_open, stores)):
            try:
                async with self._restoring:
                    folders = [(s.folder.folder, len(s.have)) for s in stores if s.folder is not None]
                    call = partial(_cut, [(folder.fd, segments) for folder, segments in folders])
                    await said_by(call, "emptying stores", _PATIENCE, [folder for folder, _ in folders])
            except NydusErofsError as error:
                report("a store is not emptied", error)
                await asyncio.sleep(_AGAIN)
                continue
            for store in filter(self._table.is_open, stores):
                store.empty()
                self._table.admit(store)
                await self._forget(store)
            return


def _cut(folders: Sequence[tuple[int, int]], _: Say) -> None:
    """In a child. From then on they are this era's."""
    for folder, segments in folders:
        for number in range(segments):
            _cut_one(segment_name(number), folder)
        epoch.begin(f"/proc/self/fd/{folder}", anew=True)  # whatever has come in its place by name


def _cut_one(name: str, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        file = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with Fd(file):
            os.ftruncate(file, 0)
