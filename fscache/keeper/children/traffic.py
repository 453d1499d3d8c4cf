"""What each backend was asked and how it answered, over the lives of all workers."""

from __future__ import annotations

import time

from ...proto.control import BackendStatus
from ...proto.worker import Traffic
from ..log import logger

_MAX_BACKENDS = 256  # remembered, of all workers: one gone wrong must not fill the keeper's memory
_LINES, _LINES_EVERY = 100, 1.0  # that the log gets at once, of backends that are down; and seconds between two more


class TrafficTable:
    """Counts by backend. Each worker counts from zero."""

    def __init__(self) -> None:
        self._before: dict[str, Traffic] = {}  # of workers that are gone
        self._now: dict[str, Traffic] = {}
        self._down: set[str] = set()  # those that the log says of that they do not answer
        self._lines, self._since = float(_LINES), time.monotonic()

    def on_new_worker(self) -> None:
        for backend, now in self._now.items():
            self._before[backend] = _sum(self._before.get(backend, Traffic(backend)), now)
        self._now = {}

    def on_news(self, news: Traffic) -> None:
        before = self._now.get(news.backend)
        if before is None and news.backend not in self._before and len(self._known()) >= _MAX_BACKENDS:
            return
        self._now[news.backend] = news
        if news.down and news.backend not in self._down and self._may_say():
            self._down.add(news.backend)
            logger().error("backend does not answer", backend=news.backend, error=news.last_error)
        elif not news.down and news.backend in self._down:
            self._down.discard(news.backend)
            logger().info("backend answers again", backend=news.backend)

    def _may_say(self) -> bool:
        """Whether the log takes one line more."""
        now = time.monotonic()
        self._lines = min(_LINES, self._lines + (now - self._since) / _LINES_EVERY)
        self._since = now
        if self._lines < 1:
            return False
        self._lines -= 1
        return True

    def _known(self) -> set[str]:
        return self._before.keys() | self._now.keys()

    def describe(self) -> list[BackendStatus]:
        """Each backend, for ``status``."""
        out = []
        for backend in sorted(self._known()):
            none = Traffic(backend)
            all_of_it = _sum(self._before.get(backend, none), self._now.get(backend, none))
            out.append(
                BackendStatus(
                    backend=backend,
                    requests=all_of_it.requests,
                    bytes=all_of_it.bytes,
                    errors=all_of_it.errors,
                    retries=all_of_it.retries,
                    latency_seconds_mean=round(all_of_it.seconds / max(1, all_of_it.requests), 6),
                    latency_seconds_max=round(all_of_it.slowest, 6),
                    down=all_of_it.down,
                    last_error=all_of_it.last_error or None,
                )
            )
        return out


def _sum(one: Traffic, other: Traffic) -> Traffic:
    """Both together; the state is the ``other``'s."""
    return Traffic(
        other.backend,
        requests=one.requests + other.requests,
        bytes=one.bytes + other.bytes,
        errors=one.errors + other.errors,
        retries=one.retries + other.retries,
        seconds=one.seconds + other.seconds,
        slowest=max(one.slowest, other.slowest),
        last_error=other.last_error or one.last_error,
        down=other.down,
    )
