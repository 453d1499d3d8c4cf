"""A client that tries again, within limits, and lets a dead server rest."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ...erofs.errors import BackendError
from ...erofs.record import Buffer
from .base import Client, ObjectInfo
from .health import Health
from .meter import Meter

T = TypeVar("T")
_FIRST_PAUSE = 0.05  # seconds before the second try, doubled before each further one
_LONGEST_PAUSE = 1.0  # a longer one is not slept through here: the caller has better use for its thread


class Resilient:
    """Wraps a client. A failed request is sent again at once ``retry_limit`` times at most, after a short pause with
    jitter. What still fails is for the caller to postpone: the error says for how long (``retry_after``)."""

    def __init__(self, client: Client, meter: Meter, retry_limit: int) -> None:
        self.label = client.label
        self._client, self._meter, self._tries = client, meter, retry_limit + 1
        self._health = Health()
        self._lock = threading.Lock()

    def stat(self, name: str) -> ObjectInfo:
        return self.call(lambda client: client.stat(name))

    def read(self, name: str, offset: int, length: int) -> Buffer:
        return self.call(lambda client: client.read(name, offset, length), len)

    def call(self, request: Callable[[Client], T], size: Callable[[T], int] = lambda _: 0) -> T:
        """Make any request of the client; ``size`` tells the bytes that an answer brought."""
        for number in range(1, self._tries + 1):
            self._enter()
            begin = time.monotonic()
            try:
                answer = request(self._client)
            except BackendError as error:
                pause = self._failed(error, time.monotonic() - begin, number)
                if pause is None:
                    raise
                time.sleep(pause)
                continue
            self._answered()
            self._meter.answered(size(answer), time.monotonic() - begin)
            return answer
        raise AssertionError("the last try returns or raises")

    def _enter(self) -> None:
        with self._lock:
            wait = self._health.enter(time.monotonic())
        if wait:
            raise BackendError(
                f"{self.label} does not answer: {self._meter.last_error}",
                hint="reads wait for it and go on once it is back",
                retry_after=wait,
            )

    def _answered(self) -> None:
        with self._lock:
            back = self._health.down_since is not None
            self._health.answered()
        if back:
            self._meter.up()

    def _failed(self, error: BackendError, seconds: float, number: int) -> float | None:
        """Note a failure; the seconds until the next try, or None to give up for now."""
        pause = _FIRST_PAUSE * 2 ** (number - 1) * random.uniform(0.5, 1.5)
        if not error.retryable:
            self._answered()
        with self._lock:
            if error.retryable:
                self._health.failed(time.monotonic(), error.retry_after)
            down = self._health.down_since is not None
        again = error.retryable and not down and number < self._tries and pause <= _LONGEST_PAUSE
        self._meter.failed(error.message, seconds, retry=again, down=down)
        return pause if again else None
