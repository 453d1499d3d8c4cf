"""The worker's threads: fetch, decode, and offer to the verifier.

Any thread's unexpected error ends the whole process, so that the keeper starts a new one and no reader waits for a
dead thread.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING

from ...erofs.errors import BackendError, CacheFullError, NydusErofsError
from ...erofs.ids import blob_id
from ...erofs.source import FileSource
from ..backend.assemble import Backends
from ..config.backend import Remote, server
from ..kernel import channel, statx
from ..kernel.fd import Fd
from ..kernel.process import crash
from ..proto import worker as proto
from ..proto.fault import MAX_TEXT
from ..proto.worker import Limits
from ..state.plan import AnyPlan, Plan, RawPlan
from .answers import answer
from .fill import Fill
from .offers import Connection, Link, VerifierGoneError
from .scheduler import Job, Scheduler
from .store import BlobSource, Store

if TYPE_CHECKING:
    from ..backend.lazy import LazyBootstrap

_QUESTIONS = 8  # connections to a backend for what the keeper asks, besides one for each thread
_NEWS_EVERY = 0.25  # seconds between two reports on traffic
_PAUSE = 0.5  # seconds until bytes that cannot be had now are tried again, when nobody knows better


class Worker:
    """Receives the keeper's messages and runs fills in a pool of threads."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self._sock, self._limits = sock, limits
        self._stores: dict[int, Store] = {}
        self._unopened: dict[int, str] = {}  # stores that could not be opened, and why
        self._link: Link | None = None
        self._scheduler = Scheduler(*limits.scheduling)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # there may be something to do
        self._send_lock = threading.Lock()
        self._news = threading.Event()
        self._backends = Backends(limits.threads + _QUESTIONS, self._news.set)
        self._free = 0  # threads of the pool that have nothing to do
        self._grow()
        self._start(self._report)

    def run(self) -> None:
        """Serve until the keeper is gone."""
        while True:
            packet, fds = channel.receive(self._sock, proto.MAX_MESSAGE)
            if not packet:
                return
            self._handle(proto.decode_for_worker(packet), fds)

    def _handle(self, message: proto.ToWorker, fds: Sequence[Fd]) -> None:
        match message:
            case proto.Connect():
                self._link = Link(fds[0])
            case proto.OpenStore(folder=True):
                plan, folder, *blobs = fds
                self._open(message, lambda: Plan(plan), blobs, message.remotes, folder)
            case proto.OpenStore():
                plan, *blobs = fds
                self._open(message, lambda: Plan(plan), blobs, message.remotes)
            case proto.OpenBootstrap(published=published):
                raw = RawPlan("bootstrap", message.size, message.segment_size)
                lazy = None if published is None else self._bootstrap(published)
                self._open(message, lambda: raw, fds, [] if published is None else [published.remote], lazy=lazy)
            case proto.Inspect() | proto.Peek() | proto.FetchRange() | proto.FetchBootstrap():
                self._start(self._answer, message, fds)
            case proto.CloseStore(store=store) if self._unopened.pop(store, None):
                pass
            case proto.AddSource(store=store) if store in self._unopened:
                pass
            case proto.Fill(store=store, segment=segment) if store in self._unopened:
                self._tell(proto.Failed(store, segment, self._unopened[store]))
            case proto.AddSource(store=store, remotes=remotes):
                self._add_source(store, fds, remotes)
            case proto.CloseStore(store=store):
                with self._work:
                    self._scheduler.close(store)
                    # A fill under way still holds the store; the descriptors go with its last reference.
                    del self._stores[store]
            case proto.Fill(store=store, segment=segment, end=end):
                with self._work:
                    self._scheduler.demand(store, segment, end)
                    self._work.notify()
            case proto.Ping():
                self._tell(proto.Pong())
            case proto.Unwanted() | proto.Touch() | proto.Prefetch():
                with self._work:
                    self._advise(message)
                    self._work.notify()

    def _advise(self, message: proto.Unwanted | proto.Touch | proto.Prefetch) -> None:
        match message:
            case proto.Unwanted(store=store):
                self._scheduler.unwanted(store)
            case proto.Touch(store=store, segment=segment):
                self._scheduler.touch(store, segment)
            case proto.Prefetch(store=store, on=on):
                self._scheduler.prefetch(store, on)

    def _open(
        self,
        message: proto.OpenStore | proto.OpenBootstrap,
        load: Callable[[], AnyPlan],
        blobs: Sequence[Fd],
        remotes: Sequence[Remote],
        folder: Fd | None = None,
        lazy: LazyBootstrap | None = None,
    ) -> None:
        try:
            plan = load()
        except (NydusErofsError, OSError) as error:
            self._unopened[message.store] = str(error)[:MAX_TEXT]
            return
        lane, number = _lane(blobs, remotes), message.store
        sources = [lazy] if lazy is not None else self._sources(plan, blobs, remotes)
        bits = int(message.filled, 16)
        filled = bytearray(bits >> segment & 1 for segment in range(len(plan.segments)))
        with self._work:
            self._stores[number] = Store(plan, sources, folder, None if lazy is None else lazy.proof)
            self._scheduler.open(number, filled, lane, remote=not blobs and bool(remotes))

    def _add_source(self, number: int, files: Sequence[Fd], remotes: Sequence[Remote]) -> None:
        store = self._stores[number]
        lane, first = _lane(files, remotes), not store.sources
        # What is here goes before what is elsewhere.
        store.add(self._sources(store.plan, files, []), self._sources(store.plan, [], remotes))
        if first or remotes:
            with self._work:
                self._scheduler.move(number, lane, remote=first and bool(remotes))

    def _bootstrap(self, published: proto.PublishedBootstrap) -> LazyBootstrap:
        from ..backend.lazy import LazyBootstrap  # loaded with the backend

        return LazyBootstrap(self._backends.get(published.remote), published.name, published.identity)

    def _sources(self, plan: AnyPlan, blobs: Sequence[Fd], remotes: Sequence[Remote]) -> list[BlobSource]:
        here = [FileSource(fd.steal()) for fd in blobs]
        return [*here, *(self._backends.blob(remote, blob_id(plan.blob_id)) for remote in remotes)]

    def _tell(self, message: proto.ToKeeper) -> None:
        with self._send_lock:
            channel.send(self._sock, proto.encode(message))

    def _answer(self, question: proto.AnyQuestion, fds: Sequence[Fd]) -> None:
        self._tell(answer(question, [FileSource(fd.steal()) for fd in fds], self._backends))

    def _report(self) -> None:
        """Tell the keeper about traffic now and then."""
        while True:
            self._news.wait()
            self._news.clear()
            for traffic in self._backends.news():
                self._tell(traffic)
            time.sleep(_NEWS_EVERY)

    def _start(self, call: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=_fatal, args=(call, *arguments), daemon=True).start()

    def _grow(self) -> None:
        """One thread more: those of one lane may hang, and somebody has to be there for the others. The scheduler
        bounds how many can have something to do."""
        self._free += 1
        self._start(self._pool)

    def _pool(self) -> None:
        connection: Connection | None = None
        while True:
            # Nothing here may hold a store while there is no work: its descriptors keep a file server's mount busy.
            store, job = self._take()
            connection = connection or self._connect()
            self._run(store, job, connection)
            connection.rest()
            del store, job

    def _connect(self) -> Connection:
        assert self._link is not None  # it came before any store
        return self._link.connect()

    def _take(self) -> tuple[Store, Job]:
        with self._work:
            while (job := self._scheduler.take(now := time.monotonic())) is None:
                until = self._scheduler.next_time()
                self._work.wait(until - now if until < inf else None)
            self._free -= 1
            if not self._free:
                self._grow()
            self._work.notify()  # one after the other: waking all of them for one job takes longer than the job
            return self._stores[job.store], job

    def _run(self, store: Store, job: Job, connection: Connection) -> None:
        def on_have(have: int) -> None:
            with self._work:
                job.reached(have)

        try:
            fill = Fill(store, job.store, job.segment, connection, lambda: job.why, on_have)
            fetched = fill.run(job.upto)
        except NydusErofsError as error:
            self._unfilled(job, error)
            return
        with self._work:
            if job.background and self._limits.bandwidth:
                self._scheduler.pause_background(time.monotonic() + fetched / self._limits.bandwidth)
            self._scheduler.finish(job, complete=job.have >= store.plan.segments[job.segment].size)
            self._free += 1
        if fetched:
            self._tell(proto.Fetched(job.store, fetched))

    def _unfilled(self, job: Job, error: NydusErofsError) -> None:
        """A job failed: it is tried again as long as the keeper wants it, or its readers get EIO."""
        again, full = isinstance(error, BackendError) and error.retryable, isinstance(error, CacheFullError)
        with self._work:
            if isinstance(error, BackendError) and error.retryable:
                pause = (error.retry_after or _PAUSE) * random.uniform(1, 1.25)
                self._scheduler.postpone(job, time.monotonic() + pause)
            else:
                self._scheduler.finish(job, complete=False, failed=True)
            if full:
                self._scheduler.prefetch(job.store, False)
            self._free += 1
        if again:
            self._tell(proto.Postponed(job.store, job.segment, error.message[:MAX_TEXT]))
        else:
            message, hint = error.message[:MAX_TEXT], (error.hint or "")[:MAX_TEXT]
            self._tell(proto.Failed(job.store, job.segment, message, hint, full))


def _lane(files: Sequence[Fd], remotes: Sequence[Remote]) -> str:
    """What holds up whoever reads from these, when it hangs: the server, or else the disk."""
    if remotes:
        return server(remotes[0])
    return f"disk {statx.identity(files[0].fd).device}" if files else ""


def _fatal(call: Callable[..., None], *arguments: object) -> None:
    """A thread's body: whatever goes wrong in it ends the process."""
    try:
        call(*arguments)
    except VerifierGoneError:
        os._exit(0)
    except BaseException:
        crash()
