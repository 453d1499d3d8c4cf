"""What to fill next: pure bookkeeping, no I/O, no locks (the worker holds one around every call).

Demand (a reader waits) goes before ahead (a sequential reader will come) and that before prefetch. Some
threads are kept for demand alone. Each segment is filled by one thread at a time, however many wait for it.
What cannot be had just now is postponed and takes no thread meanwhile. Times are seconds of any steady clock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from math import inf

from ..proto.worker import Why

AHEAD, REMOTE_AHEAD = 2, 4  # segments fetched before a sequential reader gets to them
_RECENT = 16  # segments remembered as visited, to tell a sequential reader from a random one


@dataclass(eq=False, slots=True)
class Job:
    """One fill under way. ``have`` is how many bytes from the segment's start are there so far; ``upto`` how
    many are to be there at the end, or None for the whole segment."""

    store: int
    segment: int
    why: Why
    background: bool  # as it was started; a reader may come to it later
    upto: int | None = None
    have: int = 0
    ends: list[int] = field(default_factory=list)

    def reached(self, have: int) -> bool:
        """Note progress; true when it satisfies a reader that waits."""
        self.have = have
        waiting = len(self.ends)
        self.ends = [end for end in self.ends if end > have]
        return len(self.ends) < waiting


@dataclass(eq=False, slots=True)
class _Postponed:
    """A segment that could not be had: to be tried again at ``when``, for readers up to ``ends``, if any."""

    when: float
    ends: list[int]


@dataclass(eq=False, slots=True)
class _Queue:
    """One store's segments: what is there, what is wanted, what is being done."""

    done: bytearray
    background_limit: int
    reach: int  # segments to fetch ahead
    demand: OrderedDict[int, list[int]] = field(default_factory=OrderedDict)
    whole: set[int] = field(default_factory=set)  # segments of ``demand`` that are worth completing
    ahead: deque[int] = field(default_factory=deque)
    busy: dict[int, Job] = field(default_factory=dict)
    postponed: dict[int, _Postponed] = field(default_factory=dict)
    failing: dict[int, float] = field(default_factory=dict)  # segment -> when it failed first
    out_since: float | None = None  # when the first one failed after which none succeeded
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=_RECENT))
    prefetching: bool = False
    cursor: int = 0

    def open(self, segment: int) -> bool:
        """Whether a segment is neither there nor under way."""
        if segment >= len(self.done) or self.done[segment]:
            return False
        return segment not in self.busy and segment not in self.postponed

    def next_ahead(self) -> int | None:
        while self.ahead:
            segment = self.ahead.popleft()
            if self.open(segment) and segment not in self.demand:
                return segment
        return None

    def next_prefetch(self) -> int | None:
        while self.prefetching and self.cursor < len(self.done):
            segment = self.cursor
            self.cursor += 1
            if self.open(segment) and segment not in self.demand:
                return segment
        return None


class Scheduler:
    """Chooses jobs for ``threads`` threads, of which at most ``background`` do ahead and prefetch.

    Args:
        remote_background: the same for stores behind a network, where a thread mostly waits.
    """

    def __init__(self, threads: int, background: int, remote_background: int = 0) -> None:
        self._background_limit = max(1, min(background, threads - 1))
        self._remote_limit = max(self._background_limit, min(remote_background, threads - 1))
        self._background_from = 0.0  # no background job starts before
        self._demand_limit = max(1, threads - 1)  # for one store while another one wants something
        self._background = 0
        self._queues: OrderedDict[int, _Queue] = OrderedDict()

    def open(self, store: int, done: bytearray, *, remote: bool = False) -> None:
        limits = (self._remote_limit, REMOTE_AHEAD) if remote else (self._background_limit, AHEAD)
        self._queues[store] = _Queue(done, *limits)

    def close(self, store: int) -> None:
        self._queues.pop(store, None)

    def demand(self, store: int, segment: int, end: int) -> int | None:
        """A reader waits for bytes up to ``end``; the bytes that are there already, when they are enough."""
        queue = self._queues[store]
        if queue.done[segment]:
            return end
        if (job := queue.busy.get(segment)) is not None:
            if job.have >= end:
                return job.have
            job.ends.append(end)
            job.why = Why.DEMAND
        elif (postponed := queue.postponed.get(segment)) is not None:
            postponed.ends.append(end)
        else:
            queue.demand.setdefault(segment, []).append(end)
            # Somebody who reads on will want the rest; a random reader will not, and waits for every byte.
            if queue.prefetching or segment in queue.recent or segment - 1 in queue.recent:
                queue.whole.add(segment)
        self._look_ahead(queue, segment)
        return None

    def touch(self, store: int, segment: int) -> None:
        """A reader came by a segment that was there already."""
        if (queue := self._queues.get(store)) is not None:
            self._look_ahead(queue, segment)

    def prefetch(self, store: int, on: bool) -> None:
        if (queue := self._queues.get(store)) is not None:
            queue.prefetching = on
            queue.cursor = 0

    def _look_ahead(self, queue: _Queue, segment: int) -> None:
        if segment - 1 in queue.recent:
            for following in range(segment + 1, segment + 1 + queue.reach):
                if queue.open(following) and following not in queue.ahead and following not in queue.demand:
                    queue.ahead.append(following)
        if segment not in queue.recent:
            queue.recent.append(segment)

    def take(self, now: float = 0.0) -> Job | None:
        """The next job, or None when there is nothing to do now."""
        for queue in self._queues.values():
            for segment in [number for number, postponed in queue.postponed.items() if postponed.when <= now]:
                ends = queue.postponed.pop(segment).ends
                if ends:
                    queue.demand[segment] = ends
                else:
                    queue.ahead.append(segment)
        return self._take_demand() or self._take_background(now)

    def next_time(self) -> float:
        """When ``take`` may have a job that it does not have now, if nothing else happens; perhaps never (inf)."""
        times = [postponed.when for queue in self._queues.values() for postponed in queue.postponed.values()]
        return min(times, default=inf) if not self._background_from else min(self._background_from, *times, inf)

    def _take_demand(self) -> Job | None:
        wanting = [(number, queue) for number, queue in self._queues.items() if queue.demand]
        for number, queue in wanting:
            running = sum(job.why is Why.DEMAND for job in queue.busy.values())
            if len(wanting) > 1 and running >= self._demand_limit:
                continue
            segment, ends = queue.demand.popitem(last=False)
            upto = None if segment in queue.whole else max(ends)
            queue.whole.discard(segment)
            self._queues.move_to_end(number)
            return self._start(number, queue, Job(number, segment, Why.DEMAND, False, upto, ends=ends))
        return None

    def _take_background(self, now: float) -> Job | None:
        if now < self._background_from:
            return None
        self._background_from = 0.0
        for why in (Why.AHEAD, Why.PREFETCH):
            for number, queue in self._queues.items():
                if self._background >= queue.background_limit:
                    continue
                segment = queue.next_ahead() if why is Why.AHEAD else queue.next_prefetch()
                if segment is not None:
                    self._queues.move_to_end(number)
                    self._background += 1
                    return self._start(number, queue, Job(number, segment, why, True))
        return None

    def _start(self, number: int, queue: _Queue, job: Job) -> Job:
        queue.busy[job.segment] = job
        return job

    def postpone(self, job: Job, now: float, delay: float, patience: float) -> bool:
        """A job found its bytes out of reach for now: try again in ``delay`` seconds.

        False when that goes on for ``patience`` seconds already, for this segment or for all of the store: its
        readers should wait no longer. A segment that nobody waits for is postponed in any case.
        """
        if job.background:
            self._background -= 1
        queue = self._end(job)
        if queue is None:
            return True
        queue.out_since = now if queue.out_since is None else queue.out_since
        since = min(queue.failing.setdefault(job.segment, now), queue.out_since)
        patient = not job.ends or now - since < patience
        if not patient:
            del queue.failing[job.segment]
        if patient or queue.prefetching:
            queue.postponed[job.segment] = _Postponed(now + delay, job.ends if patient else [])
        return patient

    def pause_background(self, until: float) -> None:
        """No job that nobody waits for starts before."""
        self._background_from = max(self._background_from, until)

    def _end(self, job: Job) -> _Queue | None:
        """The queue of a job that was under way, unless its store was closed meanwhile."""
        queue = self._queues.get(job.store)
        if queue is None or queue.busy.get(job.segment) is not job:
            return None
        del queue.busy[job.segment]
        return queue

    def finish(self, job: Job, *, complete: bool, failed: bool = False) -> None:
        """A job ended: with the whole segment there, or what was asked for, or it ``failed``."""
        if job.background:
            self._background -= 1
        queue = self._end(job)
        if queue is not None:
            queue.done[job.segment] = complete
            queue.failing.pop(job.segment, None)
            if not failed:
                queue.out_since = None
            if job.ends and not complete and not failed:
                # Readers of what lies further on came meanwhile.
                queue.demand.setdefault(job.segment, []).extend(job.ends)
                queue.whole.add(job.segment)
