"""All open stores: who has them open, what verifier and worker are told of them, and who waits for them.

A new store is shown to the verifier. When that has said what of it is there, the worker is told to fill the rest.
What the two may say is in ``news.py``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from math import inf

from ....erofs.errors import KernelError, ServiceError
from ...config.backend import Remote
from ...kernel.fd import Fd
from ...proto import verifier
from ...proto import worker as proto
from ..log import logger
from ..ticker import Ticker
from ..trouble import refusal, report
from .asking import Asking
from .clock import MOST, Clock
from .kept_store import Added, KeptStore, Waiter
from .lies import LieError
from .settling import Settling, WriteOut
from .spec import FolderSpec, StoreSpec
from .waits import Wait

_AGAIN = 5.0  # seconds until a worker is told of a store for which there were no descriptors
_RETRY_PREFETCH = 10.0  # seconds until prefetch is tried again when the disk was full


class StoreTable:
    """All open stores.

    Args:
        send: reaches the worker, if there is one just now; takes the descriptors.
        show: the same for the verifier.
        later: calls something in so many seconds.
        write_out, discard: as of ``Settling``.
        patience: seconds that readers wait for a store that brings nothing (``clock.py``).
        on_stall: told ``patience`` whenever readers waited in vain.
    """

    def __init__(
        self,
        send: Callable[[proto.ToWorker, Sequence[Fd]], None],
        show: Callable[[verifier.ToVerifier, Sequence[Fd]], None],
        later: Callable[[float, Callable[[], None]], object],
        write_out: WriteOut,
        discard: Callable[[str], None],
        ticker: Ticker,
        patience: float,
        on_stall: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._send, self._show = send, show
        self._later = later
        self.ticker, self._patience, self._on_stall = ticker, patience, on_stall
        ticker.add(self._tick)
        self._waiting: dict[KeptStore, None] = {}  # stores that may have readers waiting
        self.asking = Asking(send, later)
        self._by_key: dict[str, KeptStore] = {}
        self._by_number: dict[int, KeptStore] = {}
        self.settling = Settling(show, self._by_key.__contains__, write_out, discard)
        self._next = 0

    def clock(self) -> Clock:
        """For readers of something new."""
        return Clock(self._patience)

    def open_stores(self) -> list[KeptStore]:
        return list(self._by_key.values())

    def bytes_written(self) -> int:
        """Bytes that were written to stores which are open."""
        return sum(store.counters.written for store in self._by_key.values())

    def opened(self, key: str) -> KeptStore | None:
        """The store if somebody has it open."""
        return self._by_key.get(key)

    def open(
        self, key: str, spec: StoreSpec, source: Fd | Remote | None = None, *,
        pending: bool = False, barred: KernelError | None = None,
    ) -> KeptStore:  # fmt: skip
        """Open a store, or join those who have it open. Takes the spec, and the descriptor of its blob.

        A folder that is not complete must have its epoch noted on disk before (``epoch.begin``). ServiceError when
        another folder has come in the place of one that is open.

        Args:
            pending: where its blob is, is said later (``add_source``, ``sourced``); readers wait until then.
            barred: why nothing may be written to it, until ``admit``; readers get what is there.
        """
        store = self._by_key.get(key)
        if store is None:
            self._next += 1
            store = KeptStore(self._next, key, spec, self.clock(), pending=pending, barred=barred)
            if source is not None:
                store.sources.add(source)
            self._by_key[key] = self._by_number[store.number] = store
            self._show_store(store)
            if store.complete:
                self.settling.complete(store)
        else:
            same = store.folder is None or not isinstance(spec, FolderSpec) or spec.inodes == store.folder.inodes
            spec.close()
            if not same:
                if isinstance(source, Fd):
                    source.close()
                raise ServiceError(
                    f"store {store.label} is in use, and other files are in its place",
                    hint="unmount the images that use it, and mount them again",
                )
            if source is not None:
                self.add_source(store, source)
                self.sourced(store)
        store.users += 1
        return store

    def add_source(self, store: KeptStore, source: Fd | Remote) -> None:
        """One more place of a blob; nothing to a store that was closed meanwhile. Takes the descriptor."""
        if not self.is_open(store):
            if isinstance(source, Fd):
                source.close()
            return
        match store.sources.add(source):
            case Added.NEW:
                self._tell_source(store, source)
            case Added.INSTEAD:
                self._tell_anew(store)

    def _tell_source(self, store: KeptStore, source: Fd | Remote) -> None:
        if not self.is_open(store):
            return
        try:
            fds, remotes = ([source.dup()], []) if isinstance(source, Fd) else ([], [source])
        except OSError as error:
            report("a worker cannot be told where a blob is", error, store=store.label)
            self._later(_AGAIN, lambda: self._tell_source(store, source))
        else:
            self._tell(store, proto.AddSource(store.number, remotes), fds)

    def sourced(self, store: KeptStore) -> None:
        """All that can be said about where its blob is has been said."""
        if store.pending and self.is_open(store):
            store.pending = False
            self.asking.all_of(store)

    def _tell(self, store: KeptStore, message: proto.ToWorker, fds: Sequence[Fd] = ()) -> None:
        """Tell the worker something of a store, if it knows of it."""
        if store.known:
            self._send(message, fds)

    def _tell_anew(self, store: KeptStore) -> None:
        """What the worker knows of a store is not so any more."""
        self._tell(store, proto.CloseStore(store.number))
        self.introduce(store)
        self.asking.all_of(store)

    def _show_store(self, store: KeptStore) -> None:
        """Let the verifier look at it, and nobody write to it before."""
        if store.barred is not None:
            return
        try:
            message, descriptors = store.spec.for_verifier(store.number, store.sources.files)
        except OSError as error:
            self._bar(store, error)
        else:
            store.shown = True
            self._show(message, descriptors)

    def introduce(self, store: KeptStore) -> None:
        """Tell the worker of a store that the verifier has looked at."""
        if not store.known:
            return
        try:
            message, descriptors = store.spec.for_worker(store.number, store.filled, store.sources.remotes)
            descriptors += [fd.dup() for fd in store.sources.files]
        except OSError as error:
            self._bar(store, error)
        else:
            self._send(message, descriptors)

    def _bar(self, store: KeptStore, error: OSError) -> None:
        """There are no descriptors for it: try again later."""
        report("nothing can be fetched", error, store=store.label)
        store.barred = refusal(error)
        self.fail(store)
        self._later(_AGAIN, lambda: self.admit(store))

    def fail(self, store: KeptStore) -> None:
        """Nobody who waits for it will get anything soon."""
        for segment, waits in store.waits.take_older(inf):
            self.answer(segment, waits, store, allow=False, number=store.denial)

    def admit(self, store: KeptStore) -> None:
        """What barred a store is over: tell all of it."""
        if store.barred is None or store.suspect or not self.is_open(store):
            return
        store.barred = None
        if store.looked:
            self.introduce(store)
            self.asking.all_of(store)
        elif not store.shown:
            self._show_store(store)

    def close(self, store: KeptStore) -> None:
        """One user less; the last one closes it, and what it holds is written to disk in the background."""
        store.users -= 1
        if store.users:
            return
        self._tell(store, proto.CloseStore(store.number))
        self.settling.close(store)
        store.spec.close()
        store.sources.close()
        self._waiting.pop(store, None)
        self.asking.forget(store)
        del self._by_key[store.key]
        del self._by_number[store.number]

    def is_open(self, store: KeptStore) -> bool:
        """Whether somebody has it open still."""
        return self._by_number.get(store.number) is store

    def prefetch(self, store: KeptStore, on: bool) -> None:
        """One mount more, or one less, wants everything fetched."""
        store.prefetching += 1 if on else -1
        self.asking.prefetch(store)

    def wait(self, store: KeptStore, segment: int, end: int, waiter: Waiter) -> None:
        """A reader waits for the first ``end`` bytes of a segment; he gets an error at once, if the store stalls."""
        now = self.ticker.now()
        if store.barred is not None:
            waiter.answer(False, 0.0, store.denial)
            return
        if not store.clock.arrive(now, others=bool(store.waits)):
            waiter.answer(False, 0.0)
            return
        self._waiting[store] = None
        self.ticker.wake()
        if store.waits.add(segment, Wait(end, now, waiter)):
            self.asking.fill(store, segment, end)

    def forget(self, waiter: Waiter) -> None:
        """A waiter is gone."""
        for store in self._by_key.values():
            store.waits.drop(waiter)

    def touch(self, store: KeptStore, segment: int) -> None:
        """A reader came to a segment that was there."""
        self.asking.touch(store, segment)

    def _tick(self, now: float) -> bool:
        """Let nobody wait for too long; whether anybody waits still."""
        for store in list(self._waiting):
            stalled = store.clock.stalled
            for segment, waits in (given_up := store.waits.take_older(store.clock.look(now))):
                store.counters.failures += 1
                self.answer(segment, waits, store, allow=False)
            if given_up:
                self._on_stall(self._patience)
                if store.reopen is not None:
                    store.reopen()  # somebody may have put a copy of the blob where it can be read
            if given_up and not stalled:
                self._tell_stalled(store, given_up)
            if not store.waits:
                self._waiting.pop(store, None)
                if given_up and self.is_open(store):
                    self.asking.unwanted(store)
                    store.counters.waiting_for = ""
        return bool(self._waiting)

    def _tell_stalled(self, store: KeptStore, given_up: Sequence[tuple[int, Sequence[Wait[Waiter]]]]) -> None:
        error = f"nothing came for {self._patience if store.clock.stalled else MOST * self._patience:g} s"
        if store.counters.waiting_for:
            error = f"{error}: {store.counters.waiting_for}"
        store.counters.last_error = error
        logger().error(
            "segment not filled", store=store.label, segment=given_up[0][0], error=error,
            readers=sum(len(waits) for _, waits in given_up),
        )  # fmt: skip

    # --- what was there, and turned out to be wrong ---

    def shorten(self, store: KeptStore, segment: int, have: int) -> None:
        """From now on only the first ``have`` bytes of a segment count, and it is cut there."""
        store.shrink(segment, have)
        if store.shown:
            self._show(verifier.Cut(store.number, segment, have), [])

    def cut_again(self, store: KeptStore) -> None:
        """A new verifier does what the last one was to do."""
        for segment, have in store.shortening.items():
            self._show(verifier.Cut(store.number, segment, have), [])

    def shortened(self, store: KeptStore, segment: int, have: int) -> None:
        """That was done, or could not be: then it counts again once the verifier says how much there is."""
        if store.shortening.get(segment) != have:
            raise LieError(f"segment {segment} of store {store.label} was not to be cut at {have}")
        del store.shortening[segment]
        self._tell_anew(store)

    # --- processes come and go ---

    def introduce_all(self) -> None:
        """Tell a new worker everything: stores, readers that wait, prefetch."""
        for store in self._by_key.values():
            self.introduce(store)
        self.asking.new_worker(self._by_key.values())

    def on_no_verifier(self) -> None:
        """Nobody writes any more, and no worker can do anything."""
        for store in self._by_key.values():
            store.shown = store.looked = False
        self.settling.on_no_verifier()

    def show_all(self) -> None:
        """Show a new verifier everything."""
        for store in self._by_key.values():
            self._show_store(store)

    # --- for those who hear of stores (news.py) ---

    def known(self, number: int) -> KeptStore | None:
        """The store that a message is about; None when it was closed meanwhile."""
        if not 0 < number <= self._next:
            raise LieError(f"there was never a store {number}")
        return self._by_number.get(number)

    def completed(self, store: KeptStore) -> None:
        """Nothing of it is missing any more."""
        logger().info("blob complete", store=store.label, bytes=store.total)
        self.settling.complete(store)

    def prefetch_later(self, store: KeptStore) -> None:
        """There was no room to go on."""
        self._later(_RETRY_PREFETCH, lambda: self._resume_prefetch(store))

    def _resume_prefetch(self, store: KeptStore) -> None:
        if store.prefetching and self.is_open(store):
            self.asking.prefetch(store)

    def answer(
        self, segment: int, waits: Sequence[Wait[Waiter]], store: KeptStore, *,
        allow: bool, done: bool = False, number: int = errno.EIO,
    ) -> None:  # fmt: skip
        now = self.ticker.now()
        for wait in waits:
            if done:
                wait.token.completed(store, segment)
            wait.token.answer(allow, now - wait.since, number)
