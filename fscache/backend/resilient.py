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
from .mirrored import Mirrored

T = TypeVar("T")
_FIRST_PAUSE = 0.05  # seconds before the second try, doubled before each further one
_TURNED_AWAY = 0.1  # seconds at least until who was turned away should ask again


class Resilient:
    """Wraps a client with its mirrors. A failed request is sent again at once ``retry_limit`` times at most, after a
    short pause with jitter. What still fails is for the caller to postpone: the error says for how long
    (``retry_after``).

    While a server counts as down, a thread looks whether it is back, and every other request fails at once.
    """

    def __init__(self, client: Mirrored, meter: Meter, retry_limit: int) -> None:
        self.label = client.label
        self._client, self._meter, self._tries = client, meter, retry_limit + 1
        self._health = Health()
        self._lock = threading.Lock()

    def stat(self, name: str) -> ObjectInfo:
        return self.call(lambda client: client.stat(name))

    def read(self, name: str, offset: int, length: int) -> Buffer:
        return self.call(
            lambda client: client.read(name, offset, length), len, lambda client: client.read(name, offset, 1)
        )

    def call(
        self,
        request: Callable[[Client], T],
        size: Callable[[T], int] = lambda _: 0,
        look: Callable[[Client], object] | None = None,
    ) -> T:
        """Make any request of the client.

        Args:
            size: bytes that an answer brought.
            look: a smaller request of the same kind, to find out whether the server is back.
        """
        for number in range(1, self._tries + 1):
            self._enter()
            begin = time.monotonic()
            try:
                answer = self._client.call(request)
            except BackendError as error:
                again = self._failed(error, begin, look or request, last=number == self._tries)
                if not again:
                    raise
                time.sleep(_FIRST_PAUSE * 2 ** (number - 1) * random.uniform(0.5, 1.5))
                continue
            self._answered()
            self._meter.answered(size(answer), time.monotonic() - begin)
            return answer
        raise AssertionError("the last try returns or raises")

    def _enter(self) -> None:
        with self._lock:
            if not self._health.down:
                return
            wait = max(_TURNED_AWAY, self._health.wait(time.monotonic()))
        raise BackendError(
            f"{self.label} does not answer: {self._meter.last_error}",
            hint="reads wait for it and go on once it is back",
            retry_after=wait,
        )

    def _answered(self) -> None:
        with self._lock:
            back = self._health.down
            self._health.answered()
        if back:
            self._meter.up()

    def _failed(
        self, error: BackendError, begin: float, look: Callable[[Client], object], *, last: bool = True
    ) -> bool:
        """Note a failure; whether to try again at once."""
        now = time.monotonic()
        if error.retryable:
            with self._lock:
                new = self._health.failed(now, error.retry_after)
                down = self._health.down
            if new:
                threading.Thread(target=self._look, args=(look,), daemon=True).start()
        else:
            self._answered()
            down = False
        again = error.retryable and not down and not last
        self._meter.failed(error.message, now - begin, retry=again, down=down)
        return again

    def _look(self, request: Callable[[Client], object]) -> None:
        """Ask a server that is down now and then, until it answers, whatever it says."""
        while True:
            with self._lock:
                if not self._health.down:
                    return
                wait = self._health.wait(time.monotonic())
            time.sleep(wait)
            begin = time.monotonic()
            try:
                self._client.call(request)
            except BackendError as error:
                self._failed(error, begin, request)
            else:
                self._answered()
                self._meter.answered(0, time.monotonic() - begin)
