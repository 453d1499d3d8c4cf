"""What verifier and worker say of stores, and what becomes of it. Neither is believed: what cannot be true is a lie.

Which message is for which handler says ``children/dispatch.py``.
"""

from __future__ import annotations

import errno

from ...proto import verifier, worker
from ...proto.worker import FillReason
from ..log import logger
from .kept_store import KeptStore
from .lies import LieError
from .table import StoreTable


class News:
    """Hears of the stores of a table. Each handler: LieError for what cannot be true."""

    def __init__(self, table: StoreTable) -> None:
        self._table = table

    def _segment(self, number: int, segment: int) -> KeptStore | None:
        store = self._table.known(number)
        if store is not None and segment >= len(store.have):
            raise LieError(f"store {store.label} has no segment {segment}")
        return store

    # --- the verifier ---

    def on_present(self, message: verifier.Present) -> None:
        """What was there of a store when a verifier opened it. From now on the worker knows of it."""
        store = self._table.known(message.store)
        if store is None:
            return
        bits = int(message.segments, 16)
        if bits >> len(store.have) or store.looked or not store.shown:
            raise LieError(f"store {store.label} has other segments, or was looked at before")
        complete = store.complete
        for segment, size in enumerate(store.spec.sizes):
            if bits >> segment & 1 and segment not in store.shortening:
                store.counters.cached += store.grow(segment, size)
                self._table.answer(segment, store.waits.take_all(segment), store, allow=True, done=True)
        self._completed(store, before=complete)
        store.looked = True
        self._table.introduce(store)
        self._table.asking.all_of(store)
        self._table.cut_again(store)

    def on_progress(self, message: verifier.Progress) -> None:
        segment, have = message.segment, message.have
        store = self._segment(message.store, segment)
        if store is None:
            return
        if have > store.size(segment) or message.done != (have == store.size(segment)):
            raise LieError(f"segment {segment} of store {store.label} has no {have} bytes, done: {message.done}")
        if segment in store.shortening:
            return  # it has them, and they are wrong
        complete, waited = store.complete, segment in store.waits
        new = store.grow(segment, have)
        self._table.asking.answered(store)
        counters = store.counters
        counters.waiting_for = ""
        match message.why:
            case FillReason.DEMAND:
                counters.demand += new
            case FillReason.AHEAD:
                counters.ahead += new
            case FillReason.PREFETCH:
                counters.prefetch += new
        ready = store.waits.take_all(segment) if message.done else store.waits.take_ready(segment, have)
        # What nobody waits for says nothing to those who wait for something else. But what readers gave up, and has
        # come after all, says that more will.
        waited |= store.clock.stalled and message.why is FillReason.DEMAND
        if (ready or (new and waited)) and store.clock.progress(self._table.ticker.now()):
            logger().info("blob comes again", store=store.label)
        self._table.answer(segment, ready, store, allow=True, done=message.done)
        self._completed(store, before=complete)

    def _completed(self, store: KeptStore, *, before: bool) -> None:
        if store.complete and not before:
            self._table.completed(store)

    def on_closed(self, message: verifier.Closed) -> None:
        if self._table.known(message.store) is not None:
            raise LieError(f"store {message.store} is open")
        self._table.settling.closed(message.store)

    # --- the worker ---

    def on_fetched(self, message: worker.Fetched) -> None:
        if (store := self._table.known(message.store)) is not None:
            store.counters.fetched += message.bytes

    def on_postponed(self, message: worker.Postponed) -> None:
        store = self._segment(message.store, message.segment)
        if store is not None and (message.segment in store.waits or store.prefetching):
            store.counters.waiting_for = message.message

    def on_failed(self, message: worker.Failed) -> None:
        store = self._segment(message.store, message.segment)
        if store is None:
            return
        waits = store.waits.take_all(message.segment)
        self._table.asking.answered(store)
        counters = store.counters
        if waits or (message.message != counters.last_error and store.may_say(self._table.ticker.now())):
            logger().error(
                "segment not filled", store=store.label, segment=message.segment, error=message.message,
                hint=message.hint, readers=len(waits),
            )  # fmt: skip
        counters.failures += 1
        counters.waiting_for = ""
        counters.last_error = message.message
        number = errno.ENOSPC if message.full else errno.EIO
        self._table.answer(message.segment, waits, store, allow=False, number=number)
        if store.reopen is not None and not message.full:
            store.reopen()  # somebody may have put an intact copy in the blob's place
        if message.full and store.prefetching:
            self._table.prefetch_later(store)
