"""Stores of which the disk has lost something while images are mounted from them: emptied, and filled again.

The kernel drops from memory what it could not write, and goes by the sizes of files. So from then on nobody is let to
such a store, and the verifier is ended: when nobody writes any more, segment files are cut to nothing, and all begins
again. What EROFS itself has in memory stays there.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from functools import partial

from ....erofs.errors import KernelError, NydusErofsError
from ...kernel.fd import Fd
from ...state.layout import segment_name
from ..children.errands import in_child
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
    """

    def __init__(self, table: StoreTable, restoring: asyncio.Lock) -> None:
        self._table, self._restoring = table, restoring
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

    def on_no_verifier(self) -> None:
        """Nobody writes any more."""
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
                    folders = [(s.folder.directory, len(s.have)) for s in stores if s.folder is not None]
                    await in_child(partial(_cut, folders), "emptying stores", _PATIENCE)
            except NydusErofsError as error:
                report("a store is not emptied", error)
                await asyncio.sleep(_AGAIN)
                continue
            for store in filter(self._table.is_open, stores):
                store.empty()
                self._table.admit(store)
            return


def _cut(folders: Sequence[tuple[str, int]]) -> None:
    """In a child. From then on it is this era's."""
    for directory, segments in folders:
        with Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as folder:
            for number in range(segments):
                flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                with Fd(os.open(segment_name(number), flags, dir_fd=folder.fd)) as file:
                    os.ftruncate(file.fd, 0)
        epoch.begin(directory, anew=True)
