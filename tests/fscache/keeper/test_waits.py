"""Who waits for what. Hypothesis plays readers, workers and their deaths: every reader is answered exactly once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from nydus_erofs.fscache.keeper.stores.waits import Wait, Waits

SEGMENTS, SIZE = 3, 100
segments = st.integers(0, SEGMENTS - 1)
ends = st.integers(1, SIZE)


@dataclass(eq=False)
class Reader:
    segment: int
    end: int
    since: float = 0.0
    answers: int = 0
    gone: bool = False


class Readers(RuleBasedStateMachine):
    """``Waits`` beside a worker that remembers only what it was asked since it was started."""

    readers = Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.waits: Waits[Reader] = Waits()
        self.everybody: list[Reader] = []
        self.now = 0.0
        self.asked: dict[int, int] = {}  # what the living worker was asked: segment -> bytes from its start

    @rule(target=readers, segment=segments, end=ends)
    def arrive(self, segment: int, end: int) -> Reader:
        self.now += 1
        reader = Reader(segment, end, self.now)
        self.everybody.append(reader)
        if self.waits.add(segment, Wait(end, self.now, reader)):
            self.asked[segment] = max(end, self.asked.get(segment, 0))
        return reader

    def answer(self, waits: list[Wait[Reader]], segment: int) -> None:
        for wait in waits:
            assert wait.token.segment == segment
            wait.token.answers += 1

    @rule(segment=segments, have=ends)
    def progress(self, segment: int, have: int) -> None:
        ready = self.waits.take_ready(segment, have)
        assert all(wait.end <= have for wait in ready)
        self.answer(ready, segment)
        for reader in self.everybody:
            if reader.segment == segment and reader.end <= have:
                assert reader.answers == 1 or reader.gone

    @rule(segment=segments)
    def complete(self, segment: int) -> None:
        self.answer(self.waits.take_all(segment), segment)
        self.ended(segment)

    @rule(segment=segments)
    def fail(self, segment: int) -> None:
        self.answer(self.waits.take_all(segment), segment)
        self.ended(segment)

    @rule(ago=st.integers(-1, 10))
    def give_up(self, ago: int) -> None:
        """Those who have waited for longest; the worker knows nothing of it, and goes on."""
        for segment, waits in self.waits.take_older(self.now - ago):
            assert waits
            self.answer(waits, segment)
        for reader in self.everybody:
            assert reader.gone or reader.answers == 1 or reader.since > self.now - ago

    def ended(self, segment: int) -> None:
        self.asked.pop(segment, None)
        assert all(r.answers == 1 or r.gone for r in self.everybody if r.segment == segment)

    @rule(reader=consumes(readers))
    def leave(self, reader: Reader) -> None:
        """Its process was killed."""
        self.waits.drop(reader)
        reader.gone = True

    @rule()
    def new_worker(self) -> None:
        self.asked = dict(self.waits.ask_again())

    @invariant()
    def nobody_is_answered_twice_or_forgotten(self) -> None:
        waiting = [r for r in self.everybody if not r.answers and not r.gone]
        assert all(r.answers <= 1 for r in self.everybody)
        assert self.waits.count() == len(waiting)
        # The worker that lives now was asked for all they need: it will bring it, or say that it cannot.
        for reader in waiting:
            assert self.asked.get(reader.segment, 0) >= reader.end
        assert {segment for segment in range(SEGMENTS) if segment in self.waits} == {r.segment for r in waiting}
        assert bool(self.waits) == bool(waiting)


Readers.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_readers = pytest.mark.timeout(120)(Readers.TestCase)
