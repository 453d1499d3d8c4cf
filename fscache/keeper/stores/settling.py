"""Stores on their way to the disk: once what is there is written out, their epoch ends (``epoch.py``)."""

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

WriteOut = Callable[[Callable[[bool], None]], None]


class Settling:
    """Has stores of segment files written to disk, and settles those that nobody has written to since.

    Args:
        show: reaches the verifier, if there is one just now.
        is_open: whether somebody has the store of this key open.
        write_out: has all that was written until now written to the disk, and then tells whether it is there.
        discard: has a folder removed, if there is one.
    """

    def __init__(
        self,
        show: Callable[[verifier.ToVerifier, Sequence[Fd]], None],
        is_open: Callable[[str], bool],
        write_out: WriteOut,
        discard: Callable[[str], None],
    ) -> None:
        self._show, self._is_open, self._write_out, self._discard = show, is_open, write_out, discard
        self._closing: dict[int, KeptStore] = {}  # closed: the verifier may be writing to it still
        self._written: dict[int, KeptStore] = {}  # closed: nobody writes to it any more
        self._opening: Counter[str] = Counter()  # keys of stores about to be opened

    @property
    def closing(self) -> bool:
        """Whether the verifier has yet to say that it is done with a store."""
        return bool(self._closing)

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

    def complete(self, store: KeptStore) -> None:
        """An open store is complete: nobody writes to it any more."""
        if store.folder is not None and not store.synced:
            self._write_out(partial(self._settle_open, store, store.folder.directory, store.emptied))

    def _settle_open(self, store: KeptStore, directory: str, emptied: int, written: bool) -> None:
        as_it_was = store.emptied == emptied and not (store.suspect or store.key in self._opening)
        if written and not store.synced and as_it_was:
            store.synced = self._settle(store, directory)

    def close(self, store: KeptStore) -> None:
        """It is closed: the verifier forgets it, and what it wrote is written out."""
        if store.folder is not None and not store.synced and store.barred is None:
            self._closing[store.number] = store
        if store.shown:
            self._show(verifier.CloseStore(store.number), [])
        else:
            self.closed(store.number)

    def closed(self, number: int) -> None:
        """The verifier has forgotten a store."""
        if (store := self._closing.pop(number, None)) is not None:
            self._written[number] = store
            self._write_out(partial(self._settle_closed, number))

    def on_no_verifier(self) -> None:
        """The one that wrote is dead, so nothing is under way."""
        for number in list(self._closing):
            self.closed(number)

    def _settle_closed(self, number: int, written: bool) -> None:
        store = self._written.pop(number)
        key, others = store.key, [*self._closing.values(), *self._written.values()]
        again = self._is_open(key) or key in self._opening or any(other.key == key for other in others)
        if written and not again and store.folder is not None:  # else somebody may have written again since
            self._settle(store, store.folder.directory)

    def _settle(self, store: KeptStore, directory: str) -> bool:
        settled = epoch.settle(directory)
        if settled and store.complete:
            self._discard(os.path.join(directory, SET_ASIDE))
        return settled
