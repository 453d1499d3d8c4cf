"""What the worker is asked to fill, and how the next one is asked the same.

A worker may have died over what it was asked, and so would the next one, again and again, serving nobody. Nobody can
tell over which store; but one that is brought something is innocent. So a store that several workers in a row brought
nothing before they died is asked for apart: after all others, one such store after the other and ever later. Of those
that were asked for apart when a worker dies, the first is the likeliest culprit: it comes last the next time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from ...kernel.fd import Fd
from ...proto import worker as proto
from .kept_store import KeptStore

SUSPICIOUS = 3  # workers in a row that were asked, brought nothing, and died
_STEP, _LONGEST_STEP = 0.2, 5.0  # seconds between two suspects, and up to what they double


class Asking:
    """Puts to the worker what readers and prefetch want of stores.

    Args:
        send: reaches the worker, if there is one just now; takes the descriptors.
        later: calls something in so many seconds.
    """

    def __init__(
        self,
        send: Callable[[proto.ToWorker, Sequence[Fd]], None],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._send, self._later = send, later
        self._workers = 0
        self._asked: dict[KeptStore, None] = {}  # this worker has brought nothing of them yet
        self._died: Counter[KeptStore] = Counter()  # workers since they were brought something
        self._likely: Counter[KeptStore] = Counter()  # of these, those that they were the likeliest culprits of
        self._apart: set[KeptStore] = set()  # this worker is asked for them apart
        self._held: set[KeptStore] = set()  # of these, those that it will be asked for

    def fill(self, store: KeptStore, segment: int, end: int) -> None:
        """A reader waits for the first ``end`` bytes of a segment."""
        if not self._cannot(store):
            self._asked[store] = None
            self._send(proto.Fill(store.number, segment, end), [])

    def all_of(self, store: KeptStore) -> None:
        """Everything that readers wait for, and prefetch, if that is wanted."""
        for segment, end in store.waits.ask_again():
            self.fill(store, segment, end)
        if store.prefetching and not store.complete:
            self.prefetch(store)

    def prefetch(self, store: KeptStore) -> None:
        """Everything, or nothing any more, as its mounts want it."""
        if not (store.complete or self._cannot(store)):
            self._asked[store] = None
            self._send(proto.Prefetch(store.number, store.prefetching > 0), [])

    def touch(self, store: KeptStore, segment: int) -> None:
        """A reader came to a segment that was there: the worker may look ahead of him."""
        if not (store.complete or self._cannot(store)):
            self._send(proto.Touch(store.number, segment), [])

    def unwanted(self, store: KeptStore) -> None:
        """No reader waits for any of it any more."""
        if store.known:
            self._send(proto.Unwanted(store.number), [])

    def _cannot(self, store: KeptStore) -> bool:
        """Whether the worker could do nothing about it yet, or does not know of it."""
        return store.pending or not store.known or store in self._held

    def answered(self, store: KeptStore) -> None:
        """The worker brought something of it, or said that it cannot: it is not what workers die over."""
        self._asked.pop(store, None)
        self._died.pop(store, None)
        self._likely.pop(store, None)

    def forget(self, store: KeptStore) -> None:
        """It is closed."""
        self.answered(store)
        self._apart.discard(store)
        self._held.discard(store)

    def new_worker(self, stores: Iterable[KeptStore]) -> None:
        """The last one is dead: ask the next one the same."""
        self._workers += 1
        self._died.update(self._asked.keys())
        self._likely.update([store for store in self._asked if store in self._apart][:1])
        self._asked.clear()
        suspects = [store for store, died in self._died.items() if died >= SUSPICIOUS]
        self._apart, self._held = set(suspects), set(suspects)
        for store in stores:
            self.all_of(store)
        delay = 0.0
        for store in sorted(suspects, key=lambda store: (not store.waits, self._likely[store])):
            delay += min(_LONGEST_STEP, _STEP * 2 ** min(10, self._died[store] - SUSPICIOUS))
            self._later(delay, partial(self._ask_apart, store, self._workers))

    def _ask_apart(self, store: KeptStore, worker: int) -> None:
        if worker == self._workers and store in self._held:
            self._held.discard(store)
            self.all_of(store)
