"""Stores as the keeper sees them: sizes of segment files, who waits, what the worker was told.

The keeper never opens a segment for its bytes. A segment's fill state is its file size, which comes with
every event for free; only stores that may have lost data in a crash are tracked by what the worker verified.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import gt

from ...erofs.errors import FormatError, NydusErofsError
from ..config.backend import Remote
from ..proto import worker as proto
from ..proto.worker import Why
from ..state.layout import PLAN
from ..state.plan import Plan
from . import epoch
from .log import logger
from .waits import Wait, Waits

_MAX_SOURCES = 8  # files that one blob is read from; all their descriptors must fit into one message
_RETRY_PREFETCH = 10.0  # seconds until prefetch is tried again when the disk was full


@dataclass(slots=True)
class Counters:
    """Bytes of segments by how they came, since the store was opened."""

    cached: int = 0
    demand: int = 0
    ahead: int = 0
    prefetch: int = 0
    fetched: int = 0
    failures: int = 0
    last_error: str = ""
    waiting_for: str = ""  # why readers have to wait longer than usual


@dataclass(eq=False, slots=True)
class KeptStore:
    """One open store."""

    number: int
    key: str
    sizes: list[int]
    have: list[int]  # bytes from each segment's start that are known to be there
    introduce: Callable[[], tuple[proto.ToWorker, list[int]]]  # what a worker is told, and the descriptors for it
    directory: str = ""  # of the segment files; none for an object of the kernel's cache
    inodes: dict[int, int] = field(default_factory=dict)  # inode number of a segment file -> segment
    trusted: bool = True
    left: int = 0  # segments that are not complete
    users: int = 0
    prefetching: int = 0  # mounts that want it prefetched
    held_fds: list[int] = field(default_factory=list)  # plan and folder
    source_fds: list[int] = field(default_factory=list)
    remotes: list[Remote] = field(default_factory=list)  # where else the blob is
    reopen: Callable[[], int | Remote] | None = None  # its blob anew, which may be another file by now
    counters: Counters = field(default_factory=Counters)
    waits: Waits[Waiter] = field(default_factory=Waits)

    def __post_init__(self) -> None:
        self.left = sum(map(gt, self.sizes, self.have))

    @property
    def label(self) -> str:
        """Enough of the key for a log line."""
        return self.key.rpartition("/")[2][:12]

    @property
    def total(self) -> int:
        return sum(self.sizes)

    @property
    def complete(self) -> bool:
        return self.left == 0

    def present(self, segment: int, size: int) -> int:
        """Bytes of a segment that count, given its file's size."""
        return size if self.trusted else self.have[segment]

    def grow(self, segment: int, have: int) -> int:
        """Note that the first ``have`` bytes of a segment are there; how many are new."""
        new = have - self.have[segment]
        if new <= 0:
            return 0
        self.have[segment] = have
        self.left -= have == self.sizes[segment]
        return new


StoreMessage = proto.Progress | proto.Failed | proto.Postponed | proto.Present | proto.Synced


class Waiter:
    """Someone with an unanswered event (one engine's kind of it)."""

    __slots__ = ()

    def answer(self, allow: bool, waited: float) -> None:
        """Let the reader go on, or give it EIO."""
        raise NotImplementedError

    def completed(self, store: KeptStore, segment: int) -> None:
        """The segment is complete for good."""
        raise NotImplementedError


class StoreTable:
    """All open stores. ``send`` reaches the worker, if there is one just now."""

    def __init__(self, send: Callable[..., None], later: Callable[[float, Callable[[], None]], object]) -> None:
        self._send, self._later = send, later
        self._by_key: dict[str, KeptStore] = {}
        self._by_number: dict[int, KeptStore] = {}
        self._closing: dict[int, KeptStore] = {}  # closed, being written to disk
        self._next = 0

    def opened(self, key: str) -> KeptStore | None:
        """The store if somebody has it open."""
        return self._by_key.get(key)

    def open(self, key: str, directory: str, source: int | Remote | None) -> KeptStore:
        """Open a store, or join those who have it open. Takes the descriptor of its blob, if there is one."""
        store = self._by_key.get(key)
        if store is None:
            store = _load(self._number(), key, directory)
            if isinstance(source, int):
                store.source_fds.append(source)
            elif source is not None:
                store.remotes.append(source)
            if not store.complete and store.trusted:
                epoch.begin(directory)
            self._add(store)
        elif source is not None:
            self.add_source(store, source)
        store.users += 1
        return store

    def add_source(self, store: KeptStore, source: int | Remote) -> None:
        """One more place of a blob, unless it is known: many images share a blob. Takes the descriptor."""
        if not isinstance(source, int):
            if source not in store.remotes and len(store.remotes) < _MAX_SOURCES:
                store.remotes.append(source)
                self._send(proto.AddSource(store.number, [source]))
            return
        self._add_file(store, source)

    def _add_file(self, store: KeptStore, fd: int) -> None:
        known = [(status.st_dev, status.st_ino) for status in map(os.fstat, store.source_fds)]
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) in known or len(known) >= _MAX_SOURCES:
            os.close(fd)
            return
        store.source_fds.append(fd)
        self._send(proto.AddSource(store.number), [os.dup(fd)])

    def open_object(
        self, key: str, sizes: list[int], introduce: Callable[[int], tuple[proto.ToWorker, list[int]]]
    ) -> KeptStore:
        """Open a store whose bytes go to an object of the kernel's cache; ``introduce`` is given its number."""
        number = self._number()
        store = KeptStore(number, key, sizes, [0] * len(sizes), lambda: introduce(number), users=1)
        self._add(store)
        return store

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _add(self, store: KeptStore) -> None:
        self._by_key[store.key] = self._by_number[store.number] = store
        self._send(*store.introduce())

    def close(self, store: KeptStore) -> None:
        """One user less; the last one closes it, and what it holds is written to disk in the background."""
        store.users -= 1
        if store.users:
            return
        sync = bool(store.directory) and store.trusted and not store.complete
        self._send(proto.CloseStore(store.number, sync))
        if sync:
            self._closing[store.number] = store
        for fd in store.held_fds + store.source_fds:
            os.close(fd)
        del self._by_key[store.key]
        del self._by_number[store.number]

    def is_open(self, store: KeptStore) -> bool:
        """Whether somebody has it open still."""
        return self._by_number.get(store.number) is store

    def prefetch(self, store: KeptStore, on: bool) -> None:
        """One mount more, or one less, wants everything fetched."""
        store.prefetching += 1 if on else -1
        if not store.complete:
            self._send(proto.Prefetch(store.number, store.prefetching > 0))

    def wait(self, store: KeptStore, segment: int, end: int, waiter: Waiter) -> None:
        """A reader waits for the first ``end`` bytes of a segment."""
        if store.waits.add(segment, Wait(end, time.monotonic(), waiter)):
            self._send(proto.Fill(store.number, segment, end))

    def forget(self, waiter: Waiter) -> None:
        """A waiter is gone."""
        for store in self._by_key.values():
            store.waits.drop(waiter)

    def touch(self, store: KeptStore, segment: int) -> None:
        """A reader came to a segment that was there."""
        if not store.complete:
            self._send(proto.Touch(store.number, segment))

    def introduce_all(self) -> None:
        """Tell a new worker everything: stores, readers that wait, prefetch."""
        for store in self._by_key.values():
            self._send(*store.introduce())
            for segment, end in store.waits.ask_again():
                self._send(proto.Fill(store.number, segment, end))
            if store.prefetching and not store.complete:
                self._send(proto.Prefetch(store.number, True))

    def on_message(self, message: StoreMessage) -> None:
        """The worker says something about a store that may be closed by now."""
        if isinstance(message, proto.Synced) and (closed := self._closing.pop(message.store, None)):
            again = closed.key in self._by_key or any(other.key == closed.key for other in self._closing.values())
            if not again:  # else somebody has written again since
                epoch.settle(closed.directory)
            return
        store = self._by_number.get(message.store)
        if store is None:
            return
        match message:
            case proto.Synced():
                if store.complete:
                    epoch.settle(store.directory)
            case proto.Present():
                self._present(store, int(message.segments, 16))
            case proto.Progress():
                if 0 <= message.segment < len(store.sizes):
                    self._progress(store, message)
            case proto.Postponed():
                store.counters.waiting_for = message.message
            case proto.Failed():
                if 0 <= message.segment < len(store.sizes):
                    self._failed(store, message)

    def _present(self, store: KeptStore, bits: int) -> None:
        """What the kernel's cache had of an object when a worker opened it."""
        for segment, size in enumerate(store.sizes):
            if bits >> segment & 1:
                store.counters.cached += store.grow(segment, size)

    def _progress(self, store: KeptStore, message: proto.Progress) -> None:
        segment = message.segment
        have = min(message.have, store.sizes[segment])
        done = message.done and have == store.sizes[segment]
        complete = store.complete
        new = store.grow(segment, have)
        counters = store.counters
        counters.fetched += message.fetched
        counters.waiting_for = ""
        match message.why:
            case Why.DEMAND:
                counters.demand += new
            case Why.AHEAD:
                counters.ahead += new
            case Why.PREFETCH:
                counters.prefetch += new
        now = time.monotonic()
        for wait in store.waits.ready(segment, have, done=done):
            if done:
                wait.token.completed(store, segment)
            wait.token.answer(True, now - wait.since)
        if store.complete and not complete:
            logger().info("blob complete", store=store.label, bytes=store.total)
            if store.directory:
                self._send(proto.Sync(store.number))

    def _failed(self, store: KeptStore, message: proto.Failed) -> None:
        now = time.monotonic()
        waits = store.waits.fail(message.segment)
        counters = store.counters
        if message.message != counters.last_error or waits:
            logger().error(
                "segment not filled", store=store.label, segment=message.segment, error=message.message,
                hint=message.hint, readers=len(waits),
            )  # fmt: skip
        counters.failures += 1
        counters.waiting_for = ""
        counters.last_error = message.message
        for wait in waits:
            wait.token.answer(False, now - wait.since)
        if store.reopen is not None and not message.full:
            # Somebody may have put an intact copy in the blob's place.
            with contextlib.suppress(NydusErofsError):
                self.add_source(store, store.reopen())
        if message.full and store.prefetching:
            self._later(_RETRY_PREFETCH, lambda: self._resume_prefetch(store))

    def _resume_prefetch(self, store: KeptStore) -> None:
        if store.prefetching and not store.complete and self._by_key.get(store.key) is store:
            self._send(proto.Prefetch(store.number, True))

    def fail_all(self) -> None:
        """Nobody fills anything: no reader should wait any longer."""
        now = time.monotonic()
        for store in self._by_key.values():
            for segment, _ in store.waits.unanswered():
                for wait in store.waits.fail(segment):
                    wait.token.answer(False, now - wait.since)


def _load(number: int, key: str, directory: str) -> KeptStore:
    """Read a store's folder."""
    plan = Plan(os.open(os.path.join(directory, PLAN), os.O_RDONLY | os.O_CLOEXEC))
    sizes = [segment.size for segment in plan.segments]
    trusted = epoch.trusted(directory)
    inodes: dict[int, int] = {}
    have = [0] * len(sizes)
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.isdecimal() and entry.is_file(follow_symlinks=False):
                segment = int(entry.name)
                if segment < len(sizes):
                    inodes[entry.inode()] = segment
                    if trusted:
                        have[segment] = min(entry.stat(follow_symlinks=False).st_size, sizes[segment])
    if len(inodes) != len(sizes):
        raise FormatError(f"store {directory} is damaged: {len(inodes)} of {len(sizes)} segment files")
    # Held open: somebody may remove the folder, and a new worker must still be told of it.
    held = [
        os.open(os.path.join(directory, PLAN), os.O_RDONLY | os.O_CLOEXEC),
        os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),
    ]
    sources: list[int] = []
    remotes: list[Remote] = []

    def introduce() -> tuple[proto.ToWorker, list[int]]:
        return proto.OpenStore(number, trusted, remotes), [os.dup(fd) for fd in held + sources]

    store = KeptStore(
        number, key, sizes, have, introduce, directory=directory, inodes=inodes, trusted=trusted,
        held_fds=held, source_fds=sources, remotes=remotes,
    )  # fmt: skip
    store.counters.cached = sum(have)
    return store
