"""A ticker whose time a test passes."""

from __future__ import annotations

from collections.abc import Callable

from nydus_erofs.fscache.keeper.ticker import TICK, Ticker


class Ticking(Ticker):
    """``wait(seconds)`` passes the time; nothing else does."""

    def __init__(self) -> None:
        self.time = 100.0
        self._timers: list[tuple[float, Callable[[], None]]] = []
        super().__init__(self.later, lambda: self.time)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call it in so many seconds."""
        self._timers.append((self.time + seconds, call))

    @property
    def timers(self) -> int:
        """That are set now."""
        return len(self._timers)

    def wait(self, seconds: float) -> None:
        until = self.time + seconds
        while self._timers and (first := min(self._timers, key=lambda timer: timer[0]))[0] <= until:
            self._timers.remove(first)
            self.time = max(self.time, first[0])
            first[1]()
        self.time = until

    def stop_for(self, seconds: float) -> None:
        """The process does not run meanwhile: what is due is late."""
        self.time += seconds
        self.wait(0.0)


__all__ = ["TICK", "Ticking"]
