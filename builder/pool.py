"""Batches of work that run in parallel and come back in the order they were given.

A batch waits in this process until a slot is free, travels in the slot, and keeps it until its result has
been taken: the number of slots bounds the memory of everything in flight.
"""

from __future__ import annotations

import json
import mmap
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from ..erofs.errors import NydusErofsError, SourceError
from .pieces import Slot, slot_size
from .processes import Processes

Ticket = TypeVar("Ticket")
Work = Callable[[Slot], None]

_SLOTS_PER_WORKER = 5  # one at work, the others full of results or of work to come
_WINDOW_PER_WORKER = 20 << 20  # bytes in flight, for chunks so large that they would be more


def slot_count(workers: int, chunk_size: int) -> int:
    """Slots for a number of workers: at least one more than these."""
    if workers == 1:
        return 1
    fitting = workers * _WINDOW_PER_WORKER // slot_size(chunk_size)
    return max(min(workers * _SLOTS_PER_WORKER, fitting), workers + 1)


class Pool(Generic[Ticket]):
    """Runs ``work`` on batches, each known to the caller by a ticket.

    With one worker the work is done in this process. Use as a context: leaving it ends the workers, by force
    when an exception is on its way.
    """

    def __init__(self, workers: int, chunk_size: int, work: Work) -> None:
        count = slot_count(workers, chunk_size)
        size = slot_size(chunk_size)
        view = memoryview(mmap.mmap(-1, count * size))
        self._slots = [Slot(view[at : at + size], chunk_size) for at in range(0, count * size, size)]
        self._work = work
        self._free = list(range(count))
        self._waiting: deque[tuple[bytes, Ticket]] = deque()
        self._running: deque[tuple[int, Ticket]] = deque()  # in the order they were given
        self._done: set[int] = set()
        self._processes = Processes(workers, self._run) if workers > 1 else None
        self.waiting_size = 0  # bytes of requests that wait for a slot

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._processes:
            self._processes.close(kill=kind is not None)

    @property
    def busy(self) -> bool:
        """Whether there are batches whose results have not been taken."""
        return bool(self._running)

    def put(self, request: bytes, ticket: Ticket) -> None:
        """Give a batch to the workers, as soon as one has time."""
        self._waiting.append((request, ticket))
        self.waiting_size += len(request)
        self._dispatch()

    def results(self, *, wait: bool) -> Iterator[tuple[Ticket, Slot]]:
        """Batches that are done, in the order they were given, as far as all before them are done.

        A slot is valid until the next step. With ``wait`` the first batch is waited for, if there is any.
        Raises what the work on the batch raised.
        """
        while self._running:
            number, ticket = self._running[0]
            if number not in self._done:
                self._collect(wait)
            if number not in self._done:
                if not wait:
                    return
                continue
            wait = False
            slot = self._slots[number]
            if slot.failed:
                raise _decode(slot.read_failure())
            yield ticket, slot
            self._running.popleft()
            self._done.discard(number)
            self._free.append(number)
            self._dispatch()

    def _dispatch(self) -> None:
        while self._free and self._waiting:
            request, ticket = self._waiting.popleft()
            self.waiting_size -= len(request)
            number = self._free.pop()
            self._slots[number].write_request(request)
            self._running.append((number, ticket))
            if self._processes:
                self._processes.start(number)
            else:
                self._run(number)
                self._done.add(number)

    def _collect(self, wait: bool) -> None:
        if self._processes:
            self._done.update(self._processes.finished(wait))

    def _run(self, number: int) -> None:
        """Do the batch in a slot; in a worker process, if there are any."""
        slot = self._slots[number]
        try:
            self._work(slot)
        except Exception as error:
            slot.write_failure(_encode(error))


def _encode(error: Exception) -> bytes:
    if isinstance(error, SourceError):
        return json.dumps([error.message, error.hint]).encode()
    return json.dumps([f"a worker failed: {error!r}"]).encode()


def _decode(record: bytes) -> NydusErofsError:
    message, *hint = json.loads(record)
    return SourceError(message, hint=hint[0]) if hint else NydusErofsError(message)
