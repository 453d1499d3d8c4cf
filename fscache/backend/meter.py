"""What a backend was asked and what came of it, for ``status``."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec

from ..proto.fault import MAX_TEXT
from ..proto.worker import Traffic


class Meter:
    """Counts one backend's requests, from all threads."""

    def __init__(self, label: str, changed: Callable[[], None]) -> None:
        self._traffic = Traffic(label)
        self._changed = changed
        self._lock = threading.Lock()
        self._told: Traffic | None = None

    @property
    def last_error(self) -> str:
        return self._traffic.last_error

    @property
    def down(self) -> bool:
        return self._traffic.down

    def answered(self, size: int, seconds: float) -> None:
        """A request brought ``size`` bytes."""
        with self._lock:
            self._count(seconds).bytes += size
        self._changed()

    def failed(self, message: str, seconds: float, *, retry: bool, down: bool) -> None:
        """A request came to nothing; ``retry``: it is sent again at once."""
        with self._lock:
            traffic = self._count(seconds)
            traffic.errors += 1
            traffic.retries += retry
            traffic.last_error = message[:MAX_TEXT]
            traffic.down = down
        self._changed()

    def up(self) -> None:
        """The server answers again."""
        with self._lock:
            self._traffic.down = False
        self._changed()

    def _count(self, seconds: float) -> Traffic:
        traffic = self._traffic
        traffic.requests += 1
        traffic.seconds += seconds
        traffic.slowest = max(traffic.slowest, seconds)
        return traffic

    def news(self) -> Traffic | None:
        """All counts since the start, if they changed since this was asked last."""
        with self._lock:
            if self._told == self._traffic:
                return None
            self._told = msgspec.structs.replace(self._traffic)
            return self._told
