"""What is filled next. Hypothesis plays keeper and threads against a model of what must hold."""

from __future__ import annotations

from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nydus_erofs.fscache.proto.worker import FillReason
from nydus_erofs.fscache.worker.scheduler import AHEAD, Job, Scheduler

SEGMENTS, SIZE = 6, 100
LANES = {1: "here", 2: "here", 3: "there", 4: "elsewhere"}  # of the stores
REMOTE = {"there", "elsewhere"}
stores = st.integers(1, 4)
segments = st.integers(0, SEGMENTS - 1)
ends = st.integers(1, SIZE)


class Scheduling(RuleBasedStateMachine):
    @initialize(threads=st.integers(2, 5), background=st.integers(1, 6), shared=st.integers(1, 20))
    def begin(self, threads: int, background: int, shared: int) -> None:
        self.threads, self.shared = threads, shared
        self.background = max(1, min(background, threads - 1))
        self.scheduler = Scheduler(threads, background, background, shared)
        self.done: dict[int, set[int]] = {}  # store -> segments that are complete
        self.wanted: dict[tuple[int, int], list[int]] = {}  # (store, segment) -> ends that nobody was told about
        self.prefetching: set[int] = set()
        self.failed: set[tuple[int, int]] = set()  # nobody has to try these again by himself
        self.running: list[Running] = []

    @rule(store=stores, there=st.sets(segments))
    def open(self, store: int, there: set[int]) -> None:
        if store not in self.done:
            done, lane = bytearray(s in there for s in range(SEGMENTS)), LANES[store]
            self.scheduler.open(store, done, lane, remote=lane in REMOTE)
            self.done[store] = set(there)

    @rule(store=stores)
    def close(self, store: int) -> None:
        self.scheduler.close(store)
        self.done.pop(store, None)
        self.prefetching.discard(store)
        self.wanted = {key: value for key, value in self.wanted.items() if key[0] != store}
        self.failed = {key for key in self.failed if key[0] != store}
        # Its jobs run on; they are nobody's business any more.
        for running in self.running:
            if running.job.store == store:
                running.stale = True

    @precondition(lambda self: self.done)
    @rule(data=st.data(), segment=segments, end=ends)
    def demand(self, data: st.DataObject, segment: int, end: int) -> None:
        store = data.draw(st.sampled_from(sorted(self.done)))
        self.scheduler.demand(store, segment, end)
        job = self.job(store, segment)
        if segment not in self.done[store] and not (job and job.job.have >= end):
            self.wanted.setdefault((store, segment), []).append(end)

    @precondition(lambda self: self.done)
    @rule(data=st.data(), segment=segments)
    def touch(self, data: st.DataObject, segment: int) -> None:
        self.scheduler.touch(data.draw(st.sampled_from(sorted(self.done))), segment)

    @precondition(lambda self: self.done)
    @rule(data=st.data(), on=st.booleans())
    def prefetch(self, data: st.DataObject, on: bool) -> None:
        store = data.draw(st.sampled_from(sorted(self.done)))
        self.scheduler.prefetch(store, on)
        (self.prefetching.add if on else self.prefetching.discard)(store)
        self.failed = {key for key in self.failed if key[0] != store}

    @rule()
    def take(self) -> None:
        queued = {key for key in self.wanted if not self.job(*key) and self.free(LANES[key[0]])}
        job = self.scheduler.take()
        if job is None:
            assert not queued, "a reader waits, and a thread has nothing to do"
            self.check_idle()
            return
        key = (job.store, job.segment)
        assert job.store in self.done, "of a store that is closed"
        assert job.segment not in self.done[job.store], "of a segment that is there"
        assert not self.job(*key), "of a segment that is being filled"
        if job.why is FillReason.DEMAND:
            assert key in queued
            assert sorted(job.ends) == sorted(self.wanted[key])
            assert job.upto is None or job.upto == max(job.ends), "enough for all, and no more than that"
        else:
            assert key not in self.wanted
            assert not queued, "a reader waits, and a thread works ahead"
            assert job.upto is None, "nobody says how much is enough"
            if job.why is FillReason.PREFETCH:
                assert job.store in self.prefetching
            self.failed.discard(key)
        self.running.append(Running(job))
        assert job.lane == LANES[job.store]
        assert self.busy(job.lane) <= self.threads
        shared = sum(max(0, self.busy(lane) - 1) for lane in {*LANES.values()})
        remote = sum(max(0, self.busy(lane) - 1) for lane in REMOTE)
        assert shared <= self.shared
        assert remote <= max(0, self.shared - self.threads), "of the threads kept for what is here"
        assert self.busy(job.lane, background=True) <= self.background, "of the threads kept for readers"

    def busy(self, lane: str, *, background: bool = False) -> int:
        return sum(r.job.lane == lane and (r.job.background or not background) for r in self.running)

    def free(self, lane: str) -> bool:
        """Whether there has to be a thread for a lane: the first one always, others if enough are left for others."""
        busy = self.busy(lane)
        if not busy:
            return True
        left = self.shared - sum(max(0, self.busy(other) - 1) for other in {*LANES.values()})
        left -= self.threads if lane in REMOTE else 0
        return busy < self.threads and busy - 1 < left

    def check_idle(self) -> None:
        """Nothing to do: then all that is to be prefetched is there, under way, or failed and left for readers."""
        for store in self.prefetching:
            lane = LANES[store]
            if not self.free(lane) or self.busy(lane, background=True) >= self.background:
                continue
            for segment in range(SEGMENTS):
                key = (store, segment)
                assert segment in self.done[store] or self.job(*key) or key in self.wanted or key in self.failed, key

    @precondition(lambda self: self.running)
    @rule(data=st.data(), have=st.integers(0, SIZE))
    def progress(self, data: st.DataObject, have: int) -> None:
        running = data.draw(st.sampled_from(self.running))
        key = (running.job.store, running.job.segment)
        have = max(have, running.job.have)
        running.job.reached(have)
        if not running.stale:
            waiting = self.wanted.get(key, [])
            self.wanted[key] = [end for end in waiting if end > have]
            if not self.wanted[key]:
                del self.wanted[key]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from(("whole", "part", "failed")))
    def finish(self, data: st.DataObject, outcome: str) -> None:
        running = data.draw(st.sampled_from(self.running))
        job, key = running.job, (running.job.store, running.job.segment)
        if outcome == "part" and job.upto is None:
            outcome = "whole"
        self.running.remove(running)
        if outcome == "part" and job.upto is not None:
            job.reached(max(job.upto, job.have))
        self.scheduler.finish(job, complete=outcome == "whole", failed=outcome == "failed")
        if running.stale:
            return
        if outcome == "part":
            # Whoever came meanwhile and wants more is still waiting.
            self.wanted[key] = [end for end in self.wanted.pop(key, []) if end > job.have]
            if not self.wanted[key]:
                del self.wanted[key]
            return
        self.wanted.pop(key, None)  # all are told, whether it went well or not
        if outcome == "whole":
            self.done[job.store].add(job.segment)
        else:
            self.failed.add(key)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def postpone(self, data: st.DataObject) -> None:
        """Its bytes are out of reach for now: that is, until somebody takes the next job."""
        running = data.draw(st.sampled_from(self.running))
        self.running.remove(running)
        self.scheduler.postpone(running.job, when=0.0)
        if not running.stale and not self.wanted.get((running.job.store, running.job.segment)):
            self.failed.add((running.job.store, running.job.segment))

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def unwanted(self, data: st.DataObject) -> None:
        store = data.draw(st.sampled_from(sorted(self.done)))
        self.scheduler.unwanted(store)
        self.wanted = {key: value for key, value in self.wanted.items() if key[0] != store}

    def job(self, store: int, segment: int) -> Running | None:
        return next(
            (r for r in self.running if (r.job.store, r.job.segment) == (store, segment) and not r.stale), None
        )

    @invariant()
    def one_job_a_segment(self) -> None:
        live = [(r.job.store, r.job.segment) for r in getattr(self, "running", []) if not r.stale]
        assert len(live) == len(set(live))

    def teardown(self) -> None:
        """Whatever happened: when the threads go on, every reader is told, and the prefetch ends."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(200):
            while job := self.scheduler.take():
                self.running.append(Running(job))
            if not self.running:
                break
            running = self.running.pop(0)
            self.scheduler.finish(running.job, complete=True)
            if not running.stale:
                self.done[running.job.store].add(running.job.segment)
                self.wanted.pop((running.job.store, running.job.segment), None)
        assert not self.running
        assert not self.wanted


class Running:
    """A job in a thread; stale when its store was closed meanwhile."""

    def __init__(self, job: Job) -> None:
        self.job, self.stale = job, False


Scheduling.TestCase.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
test_scheduling = Scheduling.TestCase


def taken(scheduler: Scheduler, now: float = 0.0) -> Job:
    """The job that there must be."""
    job = scheduler.take(now)
    assert job is not None
    return job


def drain(scheduler: Scheduler) -> list[tuple[FillReason, int]]:
    jobs = []
    while job := scheduler.take():
        jobs.append((job.why, job.segment))
        scheduler.finish(job, complete=True)
    return jobs


def test_demand_then_ahead_then_prefetch() -> None:
    scheduler = Scheduler(4, 1)
    scheduler.open(1, bytearray(8))
    scheduler.prefetch(1, True)
    scheduler.demand(1, 4, 1)
    scheduler.demand(1, 5, 1)  # behind 4: a sequential reader
    expected = [(FillReason.DEMAND, 4), (FillReason.DEMAND, 5), (FillReason.AHEAD, 6), (FillReason.AHEAD, 7)]
    assert drain(scheduler) == expected + [(FillReason.PREFETCH, s) for s in range(4)]


def test_a_random_reader_gets_what_he_asks_for_and_one_who_reads_on_gets_it_all() -> None:
    scheduler = Scheduler(4, 1)
    scheduler.open(1, bytearray(50))
    scheduler.demand(1, 20, 7)
    job = taken(scheduler)
    assert job.upto == 7
    scheduler.demand(1, 20, 9)
    job.reached(7)
    scheduler.finish(job, complete=False)
    again = taken(scheduler)
    assert (again.segment, again.upto, again.ends) == (20, None, [9])
    scheduler.finish(again, complete=True)
    scheduler.demand(1, 21, 3)
    assert taken(scheduler).upto is None


def test_random_readers_get_nothing_ahead() -> None:
    scheduler = Scheduler(4, 1)
    scheduler.open(1, bytearray(50))
    for segment in (40, 3, 17, 30, 9):
        scheduler.demand(1, segment, 1)
    assert {why for why, _ in drain(scheduler)} == {FillReason.DEMAND}


def test_a_reader_who_finds_everything_there_is_still_followed() -> None:
    scheduler = Scheduler(4, 1)
    scheduler.open(1, bytearray([1, 1, 1, 0, 0, 0]))
    scheduler.touch(1, 1)
    scheduler.touch(1, 2)
    assert drain(scheduler) == [(FillReason.AHEAD, s) for s in range(3, 3 + AHEAD)]


def test_a_job_that_a_reader_joins_still_counts_as_background() -> None:
    """Else the background would end up with fewer threads than it may have, or none."""
    scheduler = Scheduler(2, 1)
    scheduler.open(1, bytearray(4))
    scheduler.prefetch(1, True)
    for segment in range(4):
        job = taken(scheduler)
        assert job.segment == segment
        scheduler.demand(1, segment, 1)
        assert job.why is FillReason.DEMAND
        scheduler.finish(job, complete=True)


def test_two_stores_take_turns() -> None:
    scheduler = Scheduler(4, 1)
    for store in (1, 2):
        scheduler.open(store, bytearray(3))
        for segment in range(3):
            scheduler.demand(store, segment, 1)
    jobs = [taken(scheduler).store for _ in range(4)]
    assert sorted(jobs) == [1, 1, 2, 2]


def test_a_lane_that_hangs_holds_up_no_other() -> None:
    scheduler = Scheduler(3, 1)
    scheduler.open(1, bytearray(9), "a server that hangs", remote=True)
    scheduler.open(2, bytearray(9), "a disk")
    scheduler.prefetch(1, True)
    for segment in range(5):
        scheduler.demand(1, segment, 1)
    assert len(list(iter(scheduler.take, None))) == 3
    scheduler.prefetch(2, True)
    assert (taken(scheduler).store, scheduler.take()) == (2, None)  # it has a background of its own
    scheduler.demand(2, 7, 1)
    assert taken(scheduler).segment == 7


def test_a_store_that_comes_from_elsewhere_goes_on_there() -> None:
    scheduler = Scheduler(2, 1)
    scheduler.open(1, bytearray(9), "a server that hangs")
    for segment in range(5):
        scheduler.demand(1, segment, 1)
    hanging = [taken(scheduler), taken(scheduler)]
    assert scheduler.take() is None
    scheduler.move(1, "a disk", remote=False)
    assert taken(scheduler).lane == "a disk"
    for job in hanging:
        scheduler.finish(job, complete=True)
    scheduler.open(2, bytearray(9), "a server that hangs")
    for segment in range(3):
        scheduler.demand(2, segment, 1)
    assert [taken(scheduler).store for _ in range(3)].count(2) == 2


def test_what_cannot_be_had_takes_no_thread_until_it_is_due() -> None:
    scheduler = Scheduler(4, 1)
    scheduler.open(1, bytearray(8))
    scheduler.demand(1, 4, 10)
    scheduler.postpone(taken(scheduler, 0.0), when=2.0)
    scheduler.demand(1, 4, 20)  # another reader does not make it come sooner
    assert scheduler.take(1.9) is None
    assert scheduler.next_time() == 2.0
    job = taken(scheduler, 2.0)
    assert (job.segment, job.ends, job.upto) == (4, [10, 20], 20)
    assert scheduler.next_time() == inf
    scheduler.finish(job, complete=True)


def test_what_nobody_waits_for_any_more_is_not_tried_again() -> None:
    scheduler = Scheduler(4, 1)
    scheduler.open(1, bytearray(8))
    for segment in (1, 3, 5):
        scheduler.demand(1, segment, 10)
    scheduler.postpone(taken(scheduler, 0.0), when=2.0)
    running = taken(scheduler, 0.0)
    scheduler.unwanted(1)
    assert scheduler.take(99.0) is None
    scheduler.postpone(running, when=2.0)
    assert scheduler.take(99.0) is None
    assert scheduler.next_time() == inf
    scheduler.demand(1, 1, 10)
    job = taken(scheduler, 99.0)
    assert (job.segment, job.ends) == (1, [10])


def test_prefetch_outlives_an_outage_whatever_its_length() -> None:
    scheduler = Scheduler(4, 1)
    scheduler.open(1, bytearray(3))
    scheduler.prefetch(1, True)
    for now in range(0, 500, 100):
        job = taken(scheduler, now)
        assert job.segment == 0
        scheduler.postpone(job, now + 50)
    assert [segment for _, segment in drain(scheduler)] == [1, 2]
    assert scheduler.take(449) is None
    assert taken(scheduler, 450).segment == 0


def test_prefetch_brings_what_readers_gave_up() -> None:
    scheduler = Scheduler(4, 1)
    scheduler.open(1, bytearray(6))
    scheduler.prefetch(1, True)
    assert [segment for _, segment in drain(scheduler)] == list(range(6))
    scheduler.open(2, bytearray(6))
    for segment in (0, 3):
        scheduler.demand(2, segment, 10)
    scheduler.prefetch(2, True)
    scheduler.postpone(taken(scheduler), when=5.0)
    assert taken(scheduler).segment == 3
    scheduler.demand(2, 1, 10)
    scheduler.unwanted(2)
    assert [segment for _, segment in drain(scheduler)] == [1, 2, 4, 5]
    assert taken(scheduler, 5.0).segment == 0


def hang(scheduler: Scheduler, store: int, lane: str, *, remote: bool = True) -> list[Job]:
    """All the jobs that a lane which never ends one can have."""
    scheduler.open(store, bytearray(99), lane, remote=remote)
    for segment in range(50):
        scheduler.demand(store, segment * 2, 1)
    return list(iter(scheduler.take, None))


def test_servers_that_hang_leave_threads_for_others_however_many_they_are() -> None:
    scheduler = Scheduler(8, 1, 4)
    counts = [len(hang(scheduler, store, f"server {store}")) for store in range(1, 60)]
    assert counts[:2] == [8, 8]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 1, "each has one"
    assert sum(counts) <= 4 * 8 - 8 + len(counts)
    here = len(hang(scheduler, 100, "a disk", remote=False))
    assert here > 8 / 2, "some are kept for what is here"
    assert len(hang(scheduler, 101, "another disk", remote=False)) > 1


def test_disks_that_hang_leave_threads_for_others_too() -> None:
    """A file server is a disk; so is an image whose blobs others have."""
    scheduler = Scheduler(8, 1, 4)
    counts = [len(hang(scheduler, store, f"disk {store}", remote=False)) for store in range(1, 300)]
    assert counts[0] == 8
    assert counts[-1] == 1
    assert len(hang(scheduler, 999, "a server")) == 1


def test_there_is_an_end_of_servers_that_hang() -> None:
    scheduler = Scheduler(2, 1)
    counts = [len(hang(scheduler, store, f"server {store}")) for store in range(1, 300)]
    assert 0 in counts
    assert sum(counts) < 150
    assert hang(scheduler, 999, "a disk", remote=False)


def test_threads_come_back() -> None:
    scheduler = Scheduler(4, 1)
    jobs = [hang(scheduler, store, f"server {store}") for store in range(1, 20)]
    assert len(jobs[-1]) == 1
    for store in range(1, 19):
        for job in jobs[store - 1]:
            scheduler.finish(job, complete=True)
        scheduler.close(store)
    assert len(list(iter(scheduler.take, None))) == 3, "one is under way"


def test_a_remote_store_may_use_more_threads_in_the_background() -> None:
    scheduler = Scheduler(8, 1, 4)
    scheduler.open(1, bytearray(20))
    scheduler.open(2, bytearray(20), remote=True)
    for store in (1, 2):
        scheduler.prefetch(store, True)
    assert sorted(job.store for job in iter(scheduler.take, None)) == [1, 2, 2, 2]


def test_the_background_can_be_paused_and_demand_cannot() -> None:
    scheduler = Scheduler(4, 1)
    scheduler.open(1, bytearray(20))
    scheduler.prefetch(1, True)
    scheduler.pause_background(5.0)
    assert scheduler.take(4.9) is None
    assert scheduler.next_time() == 5.0
    scheduler.demand(1, 7, 1)
    assert taken(scheduler, 4.9).segment == 7
    assert taken(scheduler, 5.0).why is FillReason.PREFETCH


def test_a_store_closed_while_a_job_is_postponed() -> None:
    scheduler = Scheduler(2, 1)
    scheduler.open(1, bytearray(4))
    scheduler.prefetch(1, True)
    job = taken(scheduler)
    scheduler.close(1)
    scheduler.postpone(job, 1.0)
    assert (scheduler.take(9.0), scheduler.next_time()) == (None, inf)
    scheduler.open(2, bytearray(4))
    scheduler.prefetch(2, True)
    assert taken(scheduler, 9.0).store == 2  # its place in the background is free again
