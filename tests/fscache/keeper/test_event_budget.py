"""Events hold descriptors until they are answered: reading stops while there are too many, and goes on in time."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.fscache.keeper.engine.watch import EventBudget

BATCH = 64  # events that one read may bring


class Reading:
    """Somebody who reads events, a batch at a time, whenever there is room."""

    def __init__(self, budget: EventBudget) -> None:
        self.budget = budget
        self.unanswered, self.stopped, self.resumed = 0, False, 0

    def read(self, events: int) -> None:
        if self.stopped or self.budget.wait(self.resume):
            self.stopped = True
            return
        for _ in range(events):
            self.budget.take()
            self.unanswered += 1

    def answer(self) -> None:
        if self.unanswered:
            self.unanswered -= 1
            self.budget.give()

    def resume(self) -> None:
        assert self.stopped, "called though nobody waits"
        self.stopped = False
        self.resumed += 1


@given(
    limit=st.integers(4 * BATCH, 6 * BATCH),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 3 * BATCH)), max_size=40),
)
def test_never_more_than_there_is_room_for(limit: int, steps: list[tuple[bool, int]]) -> None:
    reading = Reading(EventBudget(limit))
    for reads, count in steps:
        if reads:
            reading.read(min(count, BATCH))
        else:
            for _ in range(count):
                reading.answer()
        assert reading.unanswered <= limit
    while reading.unanswered:
        reading.answer()
    assert not reading.stopped, "all are answered, and nobody reads on"


def test_it_stops_and_goes_on_with_room_to_spare() -> None:
    """Not after each answer: a reader that goes on at once would only stop again."""
    reading = Reading(EventBudget(4 * BATCH))
    for _ in range(4):
        reading.read(BATCH)
    reading.read(BATCH)
    assert (reading.unanswered, reading.stopped) == (4 * BATCH, True)
    for _ in range(2 * BATCH - 1):
        reading.answer()
    assert reading.stopped
    reading.answer()
    assert (reading.stopped, reading.resumed) == (False, 1)


@pytest.mark.parametrize("left", [0, 1, BATCH - 1, BATCH, BATCH + 1])
def test_a_whole_batch_must_fit(left: int) -> None:
    budget = EventBudget(left)
    assert budget.wait(lambda: None) == (left < BATCH)


def test_all_who_wait_go_on() -> None:
    budget = EventBudget(BATCH - 1)
    went_on: list[str] = []
    for name in ("one", "other"):
        assert budget.wait(partial(went_on.append, name))
    for _ in range(BATCH + 1):
        budget.give()
    assert sorted(went_on) == ["one", "other"]
