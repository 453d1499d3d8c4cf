"""Which way to go to the same objects: mirrors before the origin, or a proxy before the server itself.

A way that fails ``failure_limit`` times in a row is left alone for ``pause`` seconds. Then one request looks whether
it is back: it asks the ping URL if there is one, else just tries; the others go round it meanwhile. Nobody looks
while nothing is asked for, so there is no thread that pings, and nothing to pause.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ....erofs.errors import BackendError, BlobNotFoundError, DeniedError
from ...config.backend import Mirror, Proxy

T = TypeVar("T")
W = TypeVar("W")  # a way: whatever requests are made with


class Route(Generic[W]):
    """A way that is tried before the last one, and how it fared: pure bookkeeping, with the clock passed in."""

    def __init__(self, way: W, failure_limit: int, pause: float, ping_url: str = "") -> None:
        self.way, self.ping_url = way, ping_url
        self._limit, self._pause = max(failure_limit, 1), pause
        self._failures = 0
        self._rests_until: float | None = None

    def enter(self, now: float) -> bool:
        """Whether this request may use it: one that rests is for one request at a time to look at."""
        if self._rests_until is None:
            return True
        if now < self._rests_until:
            return False
        self._rests_until = now + self._pause
        return True

    @property
    def doubtful(self) -> bool:
        """It failed, and has not answered since."""
        return self._rests_until is not None

    def answered(self) -> None:
        self._failures, self._rests_until = 0, None

    def failed(self, now: float) -> None:
        self._failures += 1
        if self.doubtful or self._failures >= self._limit:
            self._rests_until = now + self._pause


class Routes(Generic[W]):
    """Several, in the order of preference, for several threads.

    Args:
        last: the way to go when none of them is good.
        ping: raises BackendError unless a server answers well at a URL.
    """

    def __init__(self, routes: Sequence[Route[W]], last: W, ping: Callable[[str], object]) -> None:
        self._routes, self._last, self._ping = tuple(routes), last, ping
        self._lock = threading.Lock()

    def first_good(self, attempt: Callable[[W], T]) -> T:
        """Try one way after the other: the first result that is one, else what the last way gives or raises."""
        with self._lock:
            chosen = [route for route in self._routes if route.enter(time.monotonic())]
        for route in chosen:
            try:
                if route.doubtful and route.ping_url:
                    self._ping(route.ping_url)
                result = attempt(route.way)
            except (BlobNotFoundError, DeniedError):
                continue  # it answers, and has nothing for us
            except BackendError:
                with self._lock:
                    route.failed(time.monotonic())
                continue
            with self._lock:
                route.answered()
            return result
        return attempt(self._last)


def mirror_route(mirror: Mirror, way: W) -> Route[W]:
    """A mirror before the origin."""
    return Route(way, mirror.failure_limit, mirror.health_check_interval, mirror.ping_url)


def proxy_route(proxy: Proxy, way: W) -> Route[W]:
    """A proxy that may be gone round: one failure is enough to do so."""
    return Route(way, 1, proxy.check_interval, proxy.ping_url)
