"""The worker's threads: fetch, decode, verify and write. Any thread's
unexpected error ends the whole process, so that the keeper starts a new one and no reader waits for a dead thread.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from math import inf

from ...erofs.errors import BackendError, CacheFullError, NydusErofsError
from ...erofs.ids import blob_id
from ...erofs.source import FileSource
from ..backend.assemble import Backends
from ..config.backend import Remote, server
from ..kernel import channel, statx
from ..kernel.fd import Fd
from ..proto import worker as proto
from ..proto.fault import MAX_TEXT
from ..proto.worker import FillReason, Limits
from ..state.plan import AnyPlan, Plan, RawPlan
from .answers import answer
from .cache_object import ObjectSink
from .fill import fill
from .scheduler import Job, Scheduler
from .segment_files import SegmentFiles
from .store import BlobSource, Sink, Store

CRASHED = 70  # exit code of a worker that met a bug (EX_SOFTWARE)
_QUESTIONS = 8  # connections to a backend for what the keeper asks, besides one for each thread
_NEWS_EVERY = 0.25  # seconds between two reports on traffic
_PAUSE = 0.5  # seconds until bytes that cannot be had now are tried again, when nobody knows better


class Worker:
    """Receives the keeper's messages and runs fills in a pool of threads."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self._sock, self._limits = sock, limits
        self._stores: dict[int, Store] = {}
        self._scheduler = Scheduler(*limits.scheduling)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # there may be something to do
        self._idle = threading.Condition(self._lock)  # a store has no fill under way any more
        self._send_lock = threading.Lock()
        self._running: Counter[int] = Counter()  # fills under way, by store
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
            case proto.OpenStore(store=store, remotes=remotes):
                plan, directory, *blobs = fds
                self._open(store, Plan(plan), SegmentFiles(directory), blobs, remotes)
            case proto.OpenObject(store=store, raw_size=0, remotes=remotes):
                cache_object, plan, *blobs = fds
                self._open_object(store, Plan(plan), cache_object, blobs, remotes)
            case proto.OpenObject(store=store, raw_size=size, segment_size=segment_size, published=published):
                cache_object, *files = fds
                raw = RawPlan("bootstrap", size, segment_size)
                self._open_object(store, raw, cache_object, files, [], published)
            case proto.Inspect() | proto.Peek() | proto.FetchRange() | proto.FetchBootstrap():
                self._start(self._answer, message, fds)
            case proto.AddSource(store=store, remotes=remotes):
                self._add_source(store, fds, remotes)
            case proto.CloseStore(store=store, sync=sync):
                with self._work:
                    self._scheduler.close(store)
                    # A fill under way still holds the store; the descriptors go with its last reference.
                    closed = self._stores.pop(store)
                if sync:
                    self._start(self._sync, store, closed)
            case proto.Fill(store=store, segment=segment, end=end):
                with self._work:
                    have = self._scheduler.demand(store, segment, end)
                    self._work.notify()
                if have is not None:
                    done = have >= self._stores[store].plan.segments[segment].size
                    self._tell(proto.Progress(store, segment, have, done, FillReason.DEMAND))
            case proto.Ping():
                self._tell(proto.Pong())
            case proto.Unwanted() | proto.Touch() | proto.Prefetch():
                with self._work:
                    self._advise(message)
                    self._work.notify()
            case proto.Sync(store=store):
                self._start(self._sync, store, self._stores[store])

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
        number: int,
        plan: AnyPlan,
        target: Sink,
        blobs: Sequence[Fd],
        remotes: Sequence[Remote],
        published: proto.PublishedBootstrap | None = None,
    ) -> None:
        lane = _lane(blobs, [published.remote] if published is not None else remotes)
        store = Store(plan, target, self._sources(plan, blobs, remotes))
        if published is not None:
            store.sources.append(self._bootstrap(published))
        filled = target.filled(plan)
        with self._work:
            self._stores[number] = store
            self._scheduler.open(number, filled[:], lane, remote=not blobs and bool(remotes))
        # The keeper may know of less: what the worker before wrote last, or a fill whose store was closed meanwhile.
        bits = sum(1 << segment for segment, there in enumerate(filled) if there)
        self._tell(proto.Present(number, f"{bits:x}"))

    def _add_source(self, number: int, files: Sequence[Fd], remotes: Sequence[Remote]) -> None:
        store = self._stores[number]
        lane, first = _lane(files, remotes), not store.sources
        # What is here goes before what is elsewhere.
        store.sources[:0] = self._sources(store.plan, files, [])
        store.sources += self._sources(store.plan, [], remotes)
        if first or remotes:
            with self._work:
                self._scheduler.move(number, lane, remote=first and bool(remotes))

    def _bootstrap(self, published: proto.PublishedBootstrap) -> BlobSource:
        from ..backend.lazy import LazyBootstrap  # loaded with the backend

        return LazyBootstrap(self._backends.get(published.remote), published.name, published.identity)

    def _sources(self, plan: AnyPlan, blobs: Sequence[Fd], remotes: Sequence[Remote]) -> list[BlobSource]:
        here = [FileSource(fd.steal()) for fd in blobs]
        return [*here, *(self._backends.blob(remote, blob_id(plan.blob_id)) for remote in remotes)]

    def _open_object(
        self,
        number: int,
        plan: AnyPlan,
        fd: Fd,
        blobs: Sequence[Fd],
        remotes: Sequence[Remote],
        published: proto.PublishedBootstrap | None = None,
    ) -> None:
        self._open(number, plan, ObjectSink(fd), blobs, remotes, published)

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

    def _sync(self, number: int, store: Store) -> None:
        with self._work:
            while self._running[number]:
                self._idle.wait()
        try:
            store.sink.sync()
        except OSError as error:  # so it stays unsettled, and is verified after a crash of the machine
            sys.stderr.write(f"a store cannot be written out: {error.strerror}\n")
        else:
            self._tell(proto.Synced(number))

    def _grow(self) -> None:
        """One thread more: those of one lane may hang, and somebody has to be there for the others. The scheduler
        bounds how many can have something to do."""
        self._free += 1
        self._start(self._pool)

    def _pool(self) -> None:
        while True:
            # Nothing here may hold a store while there is no work: its descriptors keep the kernel's object.
            self._run(*self._take())

    def _take(self) -> tuple[Store, Job]:
        with self._work:
            while (job := self._scheduler.take(now := time.monotonic())) is None:
                until = self._scheduler.next_time()
                self._work.wait(until - now if until < inf else None)
            self._running[job.store] += 1
            self._free -= 1
            if not self._free:
                self._grow()
            self._work.notify()  # one after the other: waking all of them for one job takes longer than the job
            return self._stores[job.store], job

    def _run(self, store: Store, job: Job) -> None:
        size = store.plan.segments[job.segment].size

        def on_piece(have: int) -> None:
            with self._work:
                wanted = job.reached(have)
            if wanted and have < size:
                self._tell(proto.Progress(job.store, job.segment, have, False, job.why))

        try:
            fetched = fill(store, job.segment, on_piece, job.upto)
        except NydusErofsError as error:
            self._unfilled(job, error)
            return
        complete = job.upto is None or job.have >= size
        with self._work:
            if job.background and self._limits.bandwidth:
                self._scheduler.pause_background(time.monotonic() + fetched / self._limits.bandwidth)
            self._scheduler.finish(job, complete=complete)
            self._ended(job)
        have = size if complete else job.have
        self._tell(proto.Progress(job.store, job.segment, have, complete, job.why, fetched))

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
            self._ended(job)
        if again:
            self._tell(proto.Postponed(job.store, job.segment, error.message[:MAX_TEXT]))
        else:
            message, hint = error.message[:MAX_TEXT], (error.hint or "")[:MAX_TEXT]
            self._tell(proto.Failed(job.store, job.segment, message, hint, full))

    def _ended(self, job: Job) -> None:
        self._free += 1
        self._running[job.store] -= 1
        if not self._running[job.store]:
            self._idle.notify_all()


def _lane(files: Sequence[Fd], remotes: Sequence[Remote]) -> str:
    """What holds up whoever reads from these, when it hangs: the server, or else the disk."""
    if remotes:
        return server(remotes[0])
    return f"disk {statx.identity(files[0].fd).device}" if files else ""


def _fatal(call: Callable[..., None], *arguments: object) -> None:
    """A thread's body: whatever goes wrong in it ends the process."""
    try:
        call(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(CRASHED)
