"""What to fill next: pure bookkeeping, no I/O, no locks (the worker holds one around every call).

Demand (a reader waits) goes before ahead (a sequential reader will come) and that before prefetch. Some
threads are kept for demand alone. Each segment is filled by one thread at a time, however many wait for it.
What cannot be had just now is postponed and takes no thread meanwhile. Times are seconds of any steady clock.

All this holds for each *lane*: the stores whose bytes come from one server, or one disk. One that does not answer
holds up its own lane, and no other: each lane has a thread of its own, and of the shared ones none takes more than
it leaves (so the next one that comes finds some, and nobody has to be told how many will come). A share of them is
kept for what is here.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from math import inf

from ..proto.worker import MOST_SERVERS, FillReason

AHEAD, REMOTE_AHEAD = 2, 4  # segments fetched before a sequential reader gets to them
_RECENT = 16  # segments remembered as visited, to tell a sequential reader from a random one


@dataclass(eq=False, slots=True)
class Job:
    """One fill under way. ``have`` is how many bytes from the segment's start are there so far; ``upto`` how
    many are to be there at the end, or None for the whole segment."""

    store: int
    segment: int
    why: FillReason
    background: bool  # as it was started; a reader may come to it later
    upto: int | None = None
    have: int = 0
    ends: list[int] = field(default_factory=list)
    lane: str = ""  # that it was started in
    remote: bool = False

    def reached(self, have: int) -> None:
        """Note progress, and which readers it satisfies."""
        self.have = have
        self.ends = [end for end in self.ends if end > have]


@dataclass(eq=False, slots=True)
class _Postponed:
    """A segment that could not be had: to be tried again at ``when``, for readers up to ``ends``, if any."""

    when: float
    ends: list[int]


@dataclass(eq=False, slots=True)
class _Queue:
    """One store's segments: what is there, what is wanted, what is being done."""

    done: bytearray
    lane: str
    remote: bool
    background_limit: int
    reach: int  # segments to fetch ahead
    demand: OrderedDict[int, list[int]] = field(default_factory=OrderedDict)
    whole: set[int] = field(default_factory=set)  # segments of ``demand`` that are worth completing
    ahead: deque[int] = field(default_factory=deque)
    busy: dict[int, Job] = field(default_factory=dict)
    postponed: dict[int, _Postponed] = field(default_factory=dict)
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=_RECENT))
    prefetching: bool = False
    cursor: int = 0

    def open(self, segment: int) -> bool:
        """Whether a segment is neither there nor under way."""
        if segment >= len(self.done) or self.done[segment]:
            return False
        return segment not in self.busy and segment not in self.postponed

    @property
    def idle(self) -> bool:
        """Whether there is nothing to begin, now or later, until something happens."""
        return not (
            self.demand or self.ahead or self.postponed or (self.prefetching and self.cursor < len(self.done))
        )

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


class _Threads:
    """Who may have one more thread: ``each`` lane so many, all of them ``shared`` besides their own ones.

    What runs in a lane counts as its own thread first, then as shared ones.
    """

    def __init__(self, each: int, shared: int) -> None:
        self._each, self._shared = each, shared
        self._busy: Counter[str] = Counter()  # jobs under way, by lane
        self._servers: set[str] = set()  # lanes with a job under way that are behind a network
        self._taken = 0  # of the shared ones

    def free(self, lane: str, *, remote: bool) -> bool:
        busy = self._busy[lane]
        if not busy:
            return not remote or len(self._servers) < MOST_SERVERS
        left = self._shared - self._taken - (self._each if remote else 0)
        return busy < self._each and busy - 1 < left

    def take(self, job: Job) -> None:
        self._taken += self._busy[job.lane] > 0
        self._busy[job.lane] += 1
        if job.remote:
            self._servers.add(job.lane)

    def give(self, job: Job) -> None:
        self._busy[job.lane] -= 1
        if self._busy[job.lane]:
            self._taken -= 1
        else:
            del self._busy[job.lane]
            self._servers.discard(job.lane)


class Scheduler:
    """Chooses jobs: in each lane ``threads`` at a time, of which at most ``background`` are ahead and prefetch.

    Args:
        remote_background: the same for stores behind a network, where a thread mostly waits.
        shared: threads that all lanes share, besides one for each; by default, four times ``threads``.
    """

    def __init__(self, threads: int, background: int, remote_background: int = 0, shared: int = 0) -> None:
        self._threads = _Threads(threads, shared or 4 * threads)
        self._background_limit = max(1, min(background, threads - 1))
        self._remote_limit = max(self._background_limit, min(remote_background, threads - 1))
        self._background_from = 0.0  # no background job starts before
        self._demand_limit = max(1, threads - 1)  # for one store while another one of its lane wants something
        self._background: Counter[str] = Counter()  # jobs under way that nobody waited for, by lane
        self._queues: dict[int, _Queue] = {}
        self._active: OrderedDict[int, _Queue] = OrderedDict()  # those that may not be idle

    def open(self, store: int, done: bytearray, lane: str = "", *, remote: bool = False) -> None:
        self._queues[store] = _Queue(done, lane, remote, *self._limits(remote))

    def move(self, store: int, lane: str, *, remote: bool) -> None:
        """From now on its bytes come from elsewhere."""
        queue = self._queues[store]
        queue.lane, queue.remote = lane, remote
        queue.background_limit, queue.reach = self._limits(remote)

    def _limits(self, remote: bool) -> tuple[int, int]:
        return (self._remote_limit, REMOTE_AHEAD) if remote else (self._background_limit, AHEAD)

    def close(self, store: int) -> None:
        self._queues.pop(store, None)
        self._active.pop(store, None)

    def demand(self, store: int, segment: int, end: int) -> None:
        """A reader waits for bytes up to ``end``. Of what is there already the verifier has told the keeper."""
        queue = self._queues[store]
        if queue.done[segment]:
            return
        if (job := queue.busy.get(segment)) is not None:
            if job.have >= end:
                return
            job.ends.append(end)
            job.why = FillReason.DEMAND
        elif (postponed := queue.postponed.get(segment)) is not None:
            postponed.ends.append(end)
        else:
            queue.demand.setdefault(segment, []).append(end)
            # Somebody who reads on will want the rest; a random reader will not, and waits for every byte.
            if queue.prefetching or segment in queue.recent or segment - 1 in queue.recent:
                queue.whole.add(segment)
        self._look_ahead(queue, segment)
        self._active[store] = queue

    def touch(self, store: int, segment: int) -> None:
        """A reader came by a segment that was there already."""
        if (queue := self._queues.get(store)) is not None:
            self._look_ahead(queue, segment)
            self._active[store] = queue

    def prefetch(self, store: int, on: bool) -> None:
        if (queue := self._queues.get(store)) is not None:
            queue.prefetching = on
            queue.cursor = 0
            self._active[store] = queue

    def _look_ahead(self, queue: _Queue, segment: int) -> None:
        if segment - 1 in queue.recent:
            for following in range(segment + 1, segment + 1 + queue.reach):
                if queue.open(following) and following not in queue.ahead and following not in queue.demand:
                    queue.ahead.append(following)
        if segment not in queue.recent:
            queue.recent.append(segment)

    def take(self, now: float = 0.0) -> Job | None:
        """The next job, or None when there is nothing to do now."""
        for store in [store for store, queue in self._active.items() if queue.idle]:
            del self._active[store]
        for queue in self._active.values():
            for segment in [number for number, postponed in queue.postponed.items() if postponed.when <= now]:
                ends = queue.postponed.pop(segment).ends
                if ends:
                    queue.demand[segment] = ends
                else:
                    queue.ahead.append(segment)
        return self._take_demand() or self._take_background(now)

    def next_time(self) -> float:
        """When ``take`` may have a job that it does not have now, if nothing else happens; perhaps never (inf)."""
        times = [postponed.when for queue in self._active.values() for postponed in queue.postponed.values()]
        return min(times, default=inf) if not self._background_from else min(self._background_from, *times, inf)

    def _take_demand(self) -> Job | None:
        wanting = [
            (store, queue)
            for store, queue in self._active.items()
            if queue.demand and self._threads.free(queue.lane, remote=queue.remote)
        ]
        lanes = Counter(queue.lane for _, queue in wanting)
        for store, queue in wanting:
            running = sum(job.why is FillReason.DEMAND for job in queue.busy.values())
            if lanes[queue.lane] > 1 and running >= self._demand_limit:
                continue
            segment, ends = queue.demand.popitem(last=False)
            upto = None if segment in queue.whole else max(ends)
            queue.whole.discard(segment)
            return self._start(queue, Job(store, segment, FillReason.DEMAND, False, upto, ends=ends))
        return None

    def _take_background(self, now: float) -> Job | None:
        if now < self._background_from:
            return None
        self._background_from = 0.0
        for why in (FillReason.AHEAD, FillReason.PREFETCH):
            for store, queue in self._active.items():
                if self._background[queue.lane] >= queue.background_limit:
                    continue
                if not self._threads.free(queue.lane, remote=queue.remote):
                    continue
                segment = queue.next_ahead() if why is FillReason.AHEAD else queue.next_prefetch()
                if segment is not None:
                    return self._start(queue, Job(store, segment, why, True))
        return None

    def _start(self, queue: _Queue, job: Job) -> Job:
        job.lane, job.remote = queue.lane, queue.remote
        queue.busy[job.segment] = job
        self._threads.take(job)
        self._background[job.lane] += job.background
        self._active.move_to_end(job.store)
        return job

    def postpone(self, job: Job, when: float) -> None:
        """A job found its bytes out of reach for now: they are tried again at ``when``, as long as somebody waits for
        them or all of the store is to be fetched."""
        queue = self._end(job)
        if queue is not None and (job.ends or queue.prefetching):
            queue.postponed[job.segment] = _Postponed(when, job.ends)

    def unwanted(self, store: int) -> None:
        """No reader waits for anything of a store any more. What is under way goes on."""
        queue = self._queues.get(store)
        if queue is None:
            return
        for job in queue.busy.values():
            job.ends = []
        for postponed in queue.postponed.values():
            postponed.ends = []
        if queue.prefetching:
            queue.cursor = min([queue.cursor, *queue.demand])
        else:
            queue.postponed.clear()
        queue.demand.clear()
        queue.whole.clear()
        queue.ahead.clear()

    def pause_background(self, until: float) -> None:
        """No job that nobody waits for starts before."""
        self._background_from = max(self._background_from, until)

    def _end(self, job: Job) -> _Queue | None:
        """The queue of a job that was under way, unless its store was closed meanwhile."""
        self._threads.give(job)
        self._background[job.lane] -= job.background
        queue = self._queues.get(job.store)
        if queue is None or queue.busy.get(job.segment) is not job:
            return None
        del queue.busy[job.segment]
        self._active[job.store] = queue
        return queue

    def finish(self, job: Job, *, complete: bool, failed: bool = False) -> None:
        """A job ended: with the whole segment there, or what was asked for, or it ``failed``."""
        queue = self._end(job)
        if queue is not None:
            queue.done[job.segment] = complete
            if job.ends and not complete and not failed:
                # Readers of what lies further on came meanwhile.
                queue.demand.setdefault(job.segment, []).extend(job.ends)
                queue.whole.add(job.segment)
