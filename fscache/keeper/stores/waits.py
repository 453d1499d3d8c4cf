"""Readers that wait for bytes of segments: the table of unanswered kernel events, without the kernel."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

Token = TypeVar("Token")


class Wait(NamedTuple, Generic[Token]):
    """A reader waits until the first ``end`` bytes of a segment are there; ``since`` is a clock's seconds."""

    end: int
    since: float
    token: Token


class Waits(Generic[Token]):
    """All readers waiting for segments of one store."""

    def __init__(self) -> None:
        self._segments: dict[int, list[Wait[Token]]] = {}  # none of the lists is empty
        self._asked: dict[int, int] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._segments)

    def __contains__(self, segment: int) -> bool:
        """Whether somebody waits for a segment."""
        return segment in self._segments

    def add(self, segment: int, wait: Wait[Token]) -> bool:
        """Note a reader; true when the worker has to be asked, because it was not asked for that much yet."""
        self._segments.setdefault(segment, []).append(wait)
        if wait.end <= self._asked.get(segment, 0):
            return False
        self._asked[segment] = wait.end
        return True

    def take_ready(self, segment: int, have: int) -> list[Wait[Token]]:
        """The readers that ``have`` bytes satisfy; they are forgotten."""
        waits = self._segments.get(segment, [])
        ready = [wait for wait in waits if wait.end <= have]
        if ready:
            self._keep(segment, [wait for wait in waits if wait.end > have])
        return ready

    def take_all(self, segment: int) -> list[Wait[Token]]:
        """All readers of a segment, forgotten: it is complete, or cannot be had."""
        self._asked.pop(segment, None)
        return self._segments.pop(segment, [])

    def take_older(self, than: float) -> list[tuple[int, list[Wait[Token]]]]:
        """Readers who came up to that time, by segment, forgotten: nobody knows when it can be had."""
        taken = []
        for segment, waits in list(self._segments.items()):
            if waits[0].since > than:  # they are in the order in which they came
                continue
            taken.append((segment, [wait for wait in waits if wait.since <= than]))
            self._keep(segment, [wait for wait in waits if wait.since > than])
            if segment not in self._segments:  # so that the next one who comes asks anew
                self._asked.pop(segment, None)
        return taken

    def drop(self, token: Token) -> None:
        """Forget a reader that is gone."""
        for segment, waits in list(self._segments.items()):
            self._keep(segment, [wait for wait in waits if wait.token is not token])

    def _keep(self, segment: int, waits: list[Wait[Token]]) -> None:
        if waits:
            self._segments[segment] = waits
        else:
            del self._segments[segment]

    def ask_again(self) -> list[tuple[int, int]]:
        """(segment, furthest end) of everything somebody waits for, to ask a new worker: it knows of nothing that
        was asked for before."""
        self._asked = {segment: max(wait.end for wait in waits) for segment, waits in self._segments.items()}
        return list(self._asked.items())

    def count(self) -> int:
        """Readers waiting now."""
        return sum(len(waits) for waits in self._segments.values())
