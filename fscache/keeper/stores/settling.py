"""Stores on their way to the disk: what is there is written out, and its epoch then ends (``epoch.py``)."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ...kernel.fd import Fd
from ...proto import verifier
from ...state.layout import SET_ASIDE
from . import epoch
from .kept_store import KeptStore


class Settling:
    """Has stores of segment files written to disk, and settles those that nobody has written to since.

    Args:
        show: reaches the verifier, if there is one just now.
        is_open: whether somebody has the store of this key open.
        write_out: has a folder written to the disk, and then calls back.
        discard: has a folder removed, if there is one.
    """

    def __init__(
        self,
        show: Callable[[verifier.ToVerifier, Sequence[Fd]], None],
        is_open: Callable[[str], bool],
        write_out: Callable[[str, Callable[[], None]], None],
        discard: Callable[[str], None],
    ) -> None:
        self._show, self._is_open, self._write_out, self._discard = show, is_open, write_out, discard
        self._closing: dict[int, KeptStore] = {}  # closed, being written to disk
        self._opening: Counter[str] = Counter()  # keys of stores about to be opened

    @contextlib.contextmanager
    def opening(self, key: str) -> Iterator[None]:
        """While a store is about to be opened, nothing of it is settled: its epoch is what was noted for it."""
        self._opening[key] += 1
        try:
            yield
        finally:
            self._opening[key] -= 1
            if not self._opening[key]:
                del self._opening[key]

    def is_opening(self, key: str) -> bool:
        """Whether it is about to be opened."""
        return key in self._opening

    def sync(self, store: KeptStore) -> None:
        """An open store is complete."""
        if store.folder is not None and store.shown and not store.synced:
            store.syncing += 1
            self._show(verifier.Sync(store.number), [])

    def close(self, store: KeptStore) -> None:
        """It is closed: the verifier forgets it, and writes out what it has not yet."""
        sync = store.folder is not None and not store.synced and store.barred is None
        if store.shown:
            self._show(verifier.CloseStore(store.number, sync), [])
        if sync:
            self._closing[store.number] = store

    def new_verifier(self) -> None:
        """The one that wrote is dead, so nothing is under way, and nobody is left to write out what was closed."""
        for number, store in list(self._closing.items()):
            assert store.folder is not None
            self._write_out(store.folder.directory, partial(self._settle_closed, number))

    def synced(self, number: int, store: KeptStore | None) -> None:
        """Store ``number`` is on disk: ``store``, or one that was closed."""
        if number in self._closing:
            self._settle_closed(number)
        elif store is not None and store.folder is not None:
            store.syncing = max(0, store.syncing - 1)
            # What was asked for before it was written to again says nothing.
            if store.complete and not (store.syncing or store.key in self._opening):
                store.synced = True
                self._settle(store, store.folder.directory)

    def _settle_closed(self, number: int) -> None:
        closed = self._closing.pop(number, None)
        if closed is None or closed.folder is None:
            return
        key = closed.key
        again = self._is_open(key) or key in self._opening or any(o.key == key for o in self._closing.values())
        if not again:  # else somebody has written again since
            self._settle(closed, closed.folder.directory)

    def _settle(self, store: KeptStore, directory: str) -> None:
        epoch.settle(directory)
        if store.complete:
            self._discard(os.path.join(directory, SET_ASIDE))
