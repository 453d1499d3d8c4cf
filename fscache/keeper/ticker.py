"""One timer for everything that may not take for ever. It runs only while something is under way."""

from __future__ import annotations

import time
from collections.abc import Callable

TICK = 0.5  # seconds
_LATE = 1.0  # seconds; a tick that comes later than that tells that this process did not run


class Ticker:
    """Calls its clients every ``TICK`` seconds, as long as one of them says that it has something under way.

    Its seconds are those in which this process ran: while it is stopped, or its machine is, nobody can tell it
    anything, and nobody's time runs out for that.

    Args:
        later: calls something in so many seconds.
        clock: a steady one.
    """

    def __init__(
        self, later: Callable[[float, Callable[[], None]], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._later, self._clock = later, clock
        self._clients: list[Callable[[float], bool]] = []
        self._lost = 0.0  # seconds that do not count
        self._due = 0.0
        self._running = False

    def now(self) -> float:
        """Seconds."""
        return self._clock() - self._lost

    def add(self, client: Callable[[float], bool]) -> None:
        """One more client: it is told the time, and tells whether it has something under way."""
        self._clients.append(client)

    def wake(self) -> None:
        """Something is under way."""
        if not self._running:
            self._running = True
            self._due = self._clock() + TICK
            self._later(TICK, self._tick)

    def _tick(self) -> None:
        late = self._clock() - self._due
        if late > _LATE:
            self._lost += late
        now, self._running = self.now(), False
        busy = [client(now) for client in self._clients]  # which may wake it themselves
        if any(busy):
            self.wake()
