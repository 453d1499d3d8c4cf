"""Which server to ask for an object: pure bookkeeping, with the clock passed in.

Beside the origin there may be servers that are asked first: mirrors, or a proxy before the origin. One that fails
``failure_limit`` times in a row is left alone for ``pause`` seconds. Then one request looks whether it is back: it
asks the ping URL if there is one, else just tries; the others go round it meanwhile. Nobody looks while nothing is
asked for, so there is no thread that pings, and nothing to pause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...config.backend import Mirror, Proxy


class Route:
    """A server that is asked before the origin, and how it fared."""

    def __init__(
        self, url: str, failure_limit: int, pause: float, ping_url: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        self.url, self.ping_url, self.headers = url, ping_url, dict(headers or {})
        self._limit, self._pause = max(failure_limit, 1), pause
        self._failures = 0
        self._rests_until: float | None = None

    def enter(self, now: float) -> bool:
        """Whether this request may use it: a server that rests is for one request at a time to look at."""
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


class Routes:
    """Several, in the order of the configuration. Not for several threads at once: the caller holds a lock."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = tuple(routes)

    def choose(self, now: float) -> list[Route]:
        """Those to try now, in order, before the origin. Ping one that is ``doubtful``, if it has a URL for that."""
        return [route for route in self._routes if route.enter(now)]


def mirror_routes(mirrors: Sequence[Mirror]) -> Routes:
    """Mirrors, each with its headers."""
    return Routes(
        [
            Route(
                mirror.host.rstrip("/"),
                mirror.failure_limit,
                mirror.health_check_interval,
                mirror.ping_url,
                mirror.headers,
            )
            for mirror in mirrors
        ]
    )


def proxy_routes(proxy: Proxy | None) -> Routes:
    """The proxy, if there is one that may be gone round: one failure is enough to do so."""
    if proxy is None or not proxy.fallback:
        return Routes([])
    return Routes([Route(proxy.url, 1, proxy.check_interval, proxy.ping_url)])
