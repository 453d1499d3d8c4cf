"""The clock of a store's readers. Hypothesis plays readers, a worker and time: nobody waits longer than is said."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nydus_erofs.fscache.keeper.stores.clock import MOST, REST, TRIAL, Clock

STEP = 0.5  # seconds between two looks


class Readers(RuleBasedStateMachine):
    """What a reader sees: he waits, and has bytes or EIO in time."""

    @initialize(patience=st.integers(1, 20))
    def begin(self, patience: int) -> None:
        self.patience = patience
        self.clock = Clock(patience)
        self.now = 1000.0
        self.waiting: list[float] = []  # when each reader came who waits
        self.brought = -inf  # when readers had something last
        self.refused_since: float | None = None
        self.asked = -inf  # when a reader who came was allowed to wait last

    @rule()
    def arrive(self) -> None:
        stalled = self.clock.stalled
        if self.clock.arrive(self.now, others=bool(self.waiting)):
            self.waiting.append(self.now)
            self.refused_since, self.asked = None, self.now
        else:
            assert stalled, "it brought something: everybody may wait"
            assert not self.waiting
            self.refused_since = self.now if self.refused_since is None else self.refused_since
            assert self.now - self.refused_since < REST, "somebody asks now and then"

    @rule(all_of_them=st.booleans())
    @precondition(lambda self: bool(getattr(self, "waiting", [])))
    def progress(self, all_of_them: bool) -> None:
        """For the last reader who came, or all of them."""
        self.clock.progress(self.now)
        assert not self.clock.stalled
        self.waiting = [] if all_of_them else self.waiting[:-1]
        self.brought = self.now

    @rule()
    @precondition(lambda self: bool(getattr(self, "waiting", [])))
    def fail(self) -> None:
        """The worker says that somebody's bytes cannot be had: that brings nobody anything."""
        self.waiting.pop()

    @rule(steps=st.integers(1, 100))
    def wait(self, steps: int) -> None:
        for _ in range(steps):
            self.now += STEP
            if not self.waiting:
                continue
            until, stalled = self.clock.look(self.now), self.clock.stalled
            left = [came for came in self.waiting if came > until]
            for came in self.waiting[: len(self.waiting) - len(left)]:
                assert self.now - max(came, self.brought) >= min(self.patience, TRIAL) or stalled
            self.waiting = left

    @invariant()
    def nobody_waits_for_longer_than_is_said(self) -> None:
        for came in getattr(self, "waiting", []):
            assert self.now - came < MOST * self.patience + STEP
            assert self.now - max(came, self.brought) <= self.patience + TRIAL + STEP


Readers.TestCase.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
test_readers = pytest.mark.timeout(120)(Readers.TestCase)


def test_patience_counts_from_what_came_last() -> None:
    clock = Clock(60)
    assert clock.arrive(0.0, others=False)
    assert clock.look(59.9) < 0.0
    clock.progress(59.9)
    assert clock.look(119.8) < 0.0
    assert clock.look(119.9) >= 0.0
    assert clock.stalled


def test_a_store_that_nobody_asked_for_long_has_all_its_patience() -> None:
    clock = Clock(60)
    assert clock.arrive(0.0, others=False)
    clock.progress(1.0)
    assert clock.arrive(1000.0, others=False)
    assert clock.look(1059.0) < 1000.0


def test_then_eio_at_once_and_now_and_then_a_trial() -> None:
    clock = Clock(60)
    clock.arrive(0.0, others=False)
    assert clock.look(60.0) == 60.0 - TRIAL
    assert not clock.arrive(60.1, others=False)
    now = 60.0 + REST
    assert clock.arrive(now, others=False)
    assert clock.arrive(now + 0.1, others=True), "who comes meanwhile waits, too"
    assert clock.look(now + TRIAL / 2) < now
    assert clock.look(now + TRIAL) == inf
    assert not clock.arrive(now + TRIAL, others=False)
    assert clock.arrive(now + TRIAL + REST, others=False)
    assert clock.progress(now + TRIAL + REST + 0.5), "that is news"
    assert not clock.progress(now + TRIAL + REST + 0.6)
    assert clock.arrive(now + TRIAL + REST + 0.7, others=False)


def test_who_has_just_come_does_not_pay_for_those_before() -> None:
    clock = Clock(60)
    clock.arrive(0.0, others=False)
    clock.arrive(59.8, others=True)
    assert 0.0 < clock.look(60.0) < 59.8
    assert clock.look(60.5) < 59.8
    assert clock.look(60.0 + TRIAL) == inf


def test_one_whom_nothing_is_brought_while_others_have_theirs() -> None:
    clock = Clock(10)
    clock.arrive(0.0, others=False)
    for second in range(1, MOST * 10):
        clock.progress(second)
        assert clock.look(second) < 0.0
    assert clock.look(MOST * 10.0) == 0.0
    assert not clock.stalled
