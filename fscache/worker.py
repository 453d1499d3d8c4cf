"""The worker: fetches, decodes, verifies and writes. It has no privilege and may be killed at any moment.

Run by the keeper as ``python -m nydus_erofs.fscache.worker SOCKET UID THREADS``. Any thread's unexpected
error ends the whole process, so that the keeper starts a new one and no reader waits for a dead thread.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence

from ..erofs import localize
from ..erofs.errors import CacheFullError, NydusErofsError
from ..erofs.ondisk import BLOCK_SIZE
from ..erofs.record import round_up
from . import channel
from .backend.localfs import LocalBlob
from .fill import Filler
from .kernel.process import drop_privileges, raise_file_limit
from .plan import AnyPlan, Plan, RawPlan
from .proto import worker as proto
from .proto.worker import Why
from .scheduler import Job, Scheduler
from .store import Store
from .target import CacheObject, SegmentFiles, Target

CRASHED = 70  # exit code of a worker that met a bug (EX_SOFTWARE)


class Worker:
    """Receives the keeper's messages and runs fills in a pool of threads."""

    def __init__(self, sock: socket.socket, threads: int, background: int) -> None:
        self._sock = sock
        self._stores: dict[int, Store] = {}
        self._scheduler = Scheduler(threads, background)
        self._work = threading.Condition()
        self._send_lock = threading.Lock()
        self._running: Counter[int] = Counter()  # fills under way, by store
        for _ in range(threads):
            self._start(self._pool)

    def run(self) -> None:
        """Serve until the keeper is gone."""
        while True:
            packet, fds = channel.receive(self._sock, proto.MAX_MESSAGE)
            if not packet:
                return
            self._handle(proto.decode_for_worker(packet), fds)

    def _handle(self, message: proto.ToWorker, fds: Sequence[int]) -> None:
        match message:
            case proto.OpenStore(store=store, trusted=trusted):
                plan, directory, *blobs = fds
                self._open(store, Plan(plan), SegmentFiles(directory, trusted=trusted), blobs)
            case proto.OpenObject(store=store, raw_size=0):
                cache_object, plan, *blobs = fds
                self._open_object(store, Plan(plan), cache_object, blobs)
            case proto.OpenObject(store=store, raw_size=size, segment_size=segment_size):
                cache_object, file = fds
                self._open_object(store, RawPlan("bootstrap", size, segment_size), cache_object, [file])
            case proto.Inspect(ticket=ticket):
                self._tell(_inspect(ticket, LocalBlob(fds[0])))
            case proto.AddSource(store=store):
                self._stores[store].sources += [LocalBlob(fd) for fd in fds]
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
                    self._work.notify_all()
                if have is not None:
                    done = have >= self._stores[store].plan.segments[segment].size
                    self._tell(proto.Progress(store, segment, have, done, Why.DEMAND))
            case proto.Touch(store=store, segment=segment):
                with self._work:
                    self._scheduler.touch(store, segment)
                    self._work.notify_all()
            case proto.Prefetch(store=store, on=on):
                with self._work:
                    self._scheduler.prefetch(store, on)
                    self._work.notify_all()
            case proto.Sync(store=store):
                self._start(self._sync, store, self._stores[store])

    def _open(self, number: int, plan: AnyPlan, target: Target, blobs: Sequence[int]) -> bytearray:
        store = Store(plan, target, [LocalBlob(fd) for fd in blobs])
        filled = target.filled(plan)
        with self._work:
            self._stores[number] = store
            self._scheduler.open(number, filled[:])
        return filled

    def _open_object(self, number: int, plan: AnyPlan, fd: int, blobs: Sequence[int]) -> None:
        filled = self._open(number, plan, CacheObject(fd), blobs)
        bits = sum(1 << segment for segment, there in enumerate(filled) if there)
        self._tell(proto.Present(number, f"{bits:x}"))

    def _tell(self, message: proto.ToKeeper) -> None:
        with self._send_lock:
            channel.send(self._sock, proto.encode(message))

    def _start(self, call: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=_fatal, args=(call, *arguments), daemon=True).start()

    def _sync(self, number: int, store: Store) -> None:
        with self._work:
            while self._running[number]:
                self._work.wait()
        store.target.sync()
        self._tell(proto.Synced(number))

    def _pool(self) -> None:
        filler = Filler()
        while True:
            # Nothing here may hold a store while there is no work: its descriptors keep the kernel's object.
            self._run(filler, *self._take())

    def _take(self) -> tuple[Store, Job]:
        with self._work:
            while (job := self._scheduler.take()) is None:
                self._work.wait()
            self._running[job.store] += 1
            return self._stores[job.store], job

    def _run(self, filler: Filler, store: Store, job: Job) -> None:
        size = store.plan.segments[job.segment].size

        def on_piece(have: int) -> None:
            with self._work:
                wanted = job.reached(have)
            if wanted and have < size:
                self._tell(proto.Progress(job.store, job.segment, have, False, job.why))

        try:
            fetched = filler.fill(store, job.segment, on_piece, job.upto)
        except NydusErofsError as error:
            full = isinstance(error, CacheFullError)
            with self._work:
                self._finish(job, complete=False, failed=True)
                if full:
                    self._scheduler.prefetch(job.store, False)
            self._tell(proto.Failed(job.store, job.segment, error.message, error.hint or "", full))
            return
        complete = job.upto is None or job.have >= size
        with self._work:
            self._finish(job, complete=complete)
        have = size if complete else job.have
        self._tell(proto.Progress(job.store, job.segment, have, complete, job.why, fetched))

    def _finish(self, job: Job, *, complete: bool, failed: bool = False) -> None:
        self._scheduler.finish(job, complete=complete, failed=failed)
        self._running[job.store] -= 1
        self._work.notify_all()


def _inspect(ticket: int, bootstrap: LocalBlob) -> proto.Inspected:
    """The blobs of a bootstrap, read no further than its blob table."""
    try:
        head = localize.read_head(bootstrap)
        entries = head.entries
        names: list[str] = [localize.name_of(entry) for entry in entries]
        for index, entry in enumerate(entries):
            localize.check_entry(index, entry, head.extended.chunk_size)
    except NydusErofsError as error:
        return proto.Inspected(ticket, error=error.message, hint=error.hint or "")
    sizes = [round_up(entry.uncompressed_size, BLOCK_SIZE) for entry in entries]
    return proto.Inspected(ticket, list(zip(names, sizes, strict=True)))


def _fatal(call: Callable[..., None], *arguments: object) -> None:
    """A thread's body: whatever goes wrong in it ends the process."""
    try:
        call(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(CRASHED)


def main(arguments: Sequence[str]) -> None:
    fd, uid, threads, background = (int(a) for a in arguments)
    sock = socket.socket(fileno=fd)
    raise_file_limit()
    drop_privileges(uid)
    try:
        Worker(sock, threads, background).run()
    except ConnectionError:
        pass  # the keeper is gone
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(CRASHED)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
