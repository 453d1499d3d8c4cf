"""Objects of the kernel's cache and the readers that wait for their bytes (the cachefiles engine's hot path).

The keeper holds every object's descriptor and the table of unanswered reads, so a worker may die at any
moment: the next one is given the same object and asked the same again. Every read is completed, with its
bytes in place or without (the reader then gets EIO).
"""

from __future__ import annotations

import bisect
import errno
import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

from ....erofs.errors import FormatError
from ...config.backend import Remote
from ...kernel.cachefiles import complete
from ...kernel.fd import Fd
from ...proto import cachefiles as proto
from ..log import logger
from ..stores.clock import Clock
from ..stores.kept_store import KeptStore, Waiter
from ..stores.spec import StoreSpec
from ..stores.table import StoreTable
from .counters import EventCounters
from .names import Cached


class Early(NamedTuple):
    """A read that waits until it can be served at all; ``since`` is the ticker's seconds."""

    since: float
    read: proto.Read


@dataclass(eq=False, slots=True)
class CacheObject:
    """One open object. Owns its descriptor.

    ``cached`` is what it was opened with. ``stores`` fill it, by the key of their plan: images that share a blob may
    use different chunks of it, so each has its own plan, cut into the same segments. Reads wait until what fills
    the object is known.
    """

    fd: Fd
    volume: str
    cookie: str
    cached: Cached
    counters: EventCounters = field(default_factory=EventCounters)
    stores: dict[str, KeptStore] = field(default_factory=dict)
    ready: bool = False  # reads are served
    closed: bool = False
    starts: list[int] = field(default_factory=list)  # of each segment, bytes from the object's start
    early: list[Early] = field(default_factory=list)  # reads that came before it was ready
    clock: Clock | None = None  # of these
    hopeless: bool = False  # its bytes cannot be had: no plan
    trouble: str = ""  # why it is not ready yet, when that is not only a matter of time

    @property
    def stalled(self) -> bool:
        """Whether early reads have waited in vain."""
        return self.clock is not None and self.clock.stalled


class ObjectTable:
    """All open objects by the kernel's number."""

    def __init__(self, table: StoreTable) -> None:
        self._table, self._ticker = table, table.ticker
        self._ticker.add(self._tick)
        self._waiting: set[CacheObject] = set()  # objects that may have early reads
        self._objects: dict[int, CacheObject] = {}
        self._by_name: dict[tuple[str, str], CacheObject] = {}  # the one opened last
        self._served = 0  # stores that objects were given, ever

    def add(self, object_id: int, cache_object: CacheObject) -> None:
        self._objects[object_id] = cache_object
        self._by_name[cache_object.volume, cache_object.cookie] = cache_object

    def all(self) -> list[CacheObject]:
        return list(self._objects.values())

    def find(self, volume: str, cookie: str) -> CacheObject | None:
        """The object with these names, if the kernel has it open."""
        return self._by_name.get((volume, cookie))

    def add_store(
        self, cache_object: CacheObject, plan: str, spec: StoreSpec, source: Fd | Remote | None
    ) -> KeptStore:
        """One more store that fills the object. Takes the spec, and the descriptor of its blob.

        Args:
            plan: key of its plan; empty for a bootstrap.
        """
        starts = [0, *itertools.accumulate(spec.sizes[:-1])]
        if cache_object.stores and starts != cache_object.starts:
            raise FormatError(f"object {cache_object.cookie}: plans with different segments")
        # The kernel may open an object again before it has closed the last one of that name.
        self._served += 1
        key = f"{self._served}/{cache_object.volume}/{cache_object.cookie}"
        cache_object.starts = starts
        cache_object.stores[plan] = store = self._table.open(key, spec, source)
        return store

    def serve(self, cache_object: CacheObject) -> None:
        """All its stores are there: answer those who wait, and from now on everybody."""
        cache_object.ready, cache_object.hopeless, cache_object.trouble = True, False, ""
        cache_object.clock = None
        early, cache_object.early = cache_object.early, []
        for one in early:
            self._serve_read(cache_object, one.read)

    def give_up(self, cache_object: CacheObject) -> None:
        """The object's bytes cannot be had: its readers get EIO, until it is served all the same."""
        cache_object.hopeless = True
        early, cache_object.early = cache_object.early, []
        for one in early:
            _fail(cache_object, one.read)

    def on_read(self, read: proto.Read) -> None:
        cache_object = self._objects.get(read.object_id)
        if cache_object is None:
            return  # closed meanwhile: the kernel has failed the read
        cache_object.counters.events += 1
        if cache_object.hopeless:
            _fail(cache_object, read)
        elif not cache_object.ready:
            self._wait(cache_object, read)
        else:
            self._serve_read(cache_object, read)

    def _wait(self, cache_object: CacheObject, read: proto.Read) -> None:
        """A read that came before it can be served, which may take for ever."""
        now = self._ticker.now()
        clock = cache_object.clock = cache_object.clock or self._table.clock()
        if not clock.arrive(now, others=bool(cache_object.early)):
            _fail(cache_object, read)
            return
        cache_object.early.append(Early(now, read))
        self._waiting.add(cache_object)
        self._ticker.wake()

    def _tick(self, now: float) -> bool:
        """Let no early read wait for too long; whether any waits still."""
        for cache_object in list(self._waiting):
            if cache_object.early and cache_object.clock is not None:
                stalled, until = cache_object.stalled, cache_object.clock.look(now)
                if cache_object.stalled and not stalled:
                    why = cache_object.trouble or f"no plan of it for {cache_object.clock.patience:g} s"
                    cache_object.trouble = why
                    logger().error("blob cannot be served", blob=cache_object.cookie, error=why, passing=True)
                for one in cache_object.early:
                    if one.since <= until:
                        _fail(cache_object, one.read)
                cache_object.early = [one for one in cache_object.early if one.since > until]
            if not cache_object.early:
                self._waiting.discard(cache_object)
        return bool(self._waiting)

    def _serve_read(self, cache_object: CacheObject, read: proto.Read) -> None:
        stores = list(cache_object.stores.values())
        sizes = stores[0].spec.sizes
        end = min(read.offset + read.length, cache_object.starts[-1] + sizes[-1])
        if read.offset >= end:
            _fail(cache_object, read)
            return
        first = bisect.bisect_right(cache_object.starts, read.offset) - 1
        last = bisect.bisect_left(cache_object.starts, end) - 1
        cache_object.counters.waited += 1
        waiter = _Reader(cache_object, read.msg_id, (last - first + 1) * len(stores))
        for segment in range(first, last + 1):
            upto = min(end - cache_object.starts[segment], sizes[segment])
            for store in stores:
                if store.have[segment] >= upto:  # they came while the kernel was asking
                    waiter.answer(True, 0.0)
                else:
                    self._table.wait(store, segment, upto, waiter)

    def on_close(self, object_id: int) -> CacheObject | None:
        """Let go of an object, if it is open."""
        cache_object = self._objects.pop(object_id, None)
        if cache_object is None:
            return None
        name = cache_object.volume, cache_object.cookie
        if self._by_name.get(name) is cache_object:
            del self._by_name[name]
        for store in cache_object.stores.values():
            self._table.close(store)
        cache_object.fd.close()
        cache_object.closed = True
        self._waiting.discard(cache_object)
        return cache_object


def _fail(cache_object: CacheObject, read: proto.Read) -> None:
    cache_object.counters.denied += 1
    complete(cache_object.fd.fd, read.msg_id)


class _Reader(Waiter):
    """One unanswered read, which may need bytes of several segments."""

    __slots__ = ("_left", "_msg_id", "_object", "_ok", "_waited")

    def __init__(self, cache_object: CacheObject, msg_id: int, parts: int) -> None:
        self._object, self._msg_id, self._left = cache_object, msg_id, parts
        self._ok, self._waited = True, 0.0

    def answer(self, allow: bool, waited: float, number: int = errno.EIO) -> None:
        self._left -= 1
        self._ok &= allow
        self._waited = max(self._waited, waited)
        if self._left:
            return
        counters = self._object.counters
        counters.stall_total += self._waited
        counters.stall_max = max(counters.stall_max, self._waited)
        counters.denied += not self._ok
        if not self._object.closed:
            complete(self._object.fd.fd, self._msg_id)

    def completed(self, store: KeptStore, segment: int) -> None:
        """The kernel asks no more for what is there."""
