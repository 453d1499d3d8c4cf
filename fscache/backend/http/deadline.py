"""The deadline of a request: one for all that a thread does to get an answer.

A request may take ``base`` seconds, and beside them one second for each 16 KiB of the body that was asked for: each
second is given when its bytes are there, so a server that sends nothing that counts is left after ``base`` seconds.
Names, connections, handshakes, heads, redirects and tokens are in it. Sockets ask it before each call that may wait
(``sockets.py``); no timer and no thread is needed, and nothing a server sends moves it, except the body.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from ....erofs.errors import BackendError
from ...config.backend import Remote

T = TypeVar("T")

# Bytes in a second. The eight threads of a server may share a line of 200 KiB/s: each gets 25.
_SLOWEST = 16384
_SERVERS = 3  # that a request may have to connect to: a registry, its token server, the storage it leads to
_HEADS = 1 << 20  # bytes that an answer may have beside the body: libraries read interim answers without end


class Deadline:
    """Of one request, in one thread.

    Args:
        base: seconds that it may take beside those for its bytes.
    """

    def __init__(self, base: float) -> None:
        self._begin = time.monotonic()
        self._until = self._begin + base
        self._bytes = 0  # of bodies that came
        self._room = _HEADS  # bytes that may come before more of the body must

    def left(self) -> float:
        """Seconds, above 0; TimeoutError when it is over."""
        left = self._until - time.monotonic()
        if left <= 0 or self._room < 0:
            raise TimeoutError
        return left

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._until or self._room < 0

    def asks(self, more: float, size: int) -> None:
        """A new request begins, as a part of this one: it may take ``more`` seconds, and has a body of ``size``."""
        self._until += more + size / _SLOWEST
        self._room = _HEADS

    def received(self, size: int) -> None:
        """So much came, whatever it is."""
        self._room -= size

    def brought(self, size: int) -> None:
        """It was so much of what is wanted."""
        self._bytes += size
        self._room += 2 * size  # and as much for what is around the pieces of a chunked body
        self._until += size / _SLOWEST

    def error(self, what: str, where: str) -> BackendError:
        """It is over, or too much came that is no body.

        Args:
            where: ``host:port`` that was asked.
        """
        if self._room < 0:
            return BackendError(f"{what}: {where} sends more than {_HEADS} bytes beside the answer")
        seconds = time.monotonic() - self._begin
        return BackendError(f"{what}: no more than {self._bytes} bytes in {seconds:.1f} s from {where}")


class _Thread(threading.local):
    deadline: Deadline | None = None


_thread = _Thread()


def base(config: Remote) -> float:
    """Seconds for all but the bytes: what its servers may take one after the other, if nothing else is configured."""
    return config.deadline or _SERVERS * (config.connect_timeout + config.timeout)


def current() -> Deadline | None:
    """The deadline of what this thread does."""
    return _thread.deadline


@contextmanager
def within(base: float) -> Iterator[Deadline]:
    """All that this thread asks of servers has one deadline: the one it has already, else a new one."""
    if _thread.deadline is not None:
        yield _thread.deadline
        return
    _thread.deadline = Deadline(base)
    try:
        yield _thread.deadline
    finally:
        _thread.deadline = None


@contextmanager
def held(lock: threading.Lock, what: str) -> Iterator[None]:
    """Hold a lock under which servers are asked; wait for it no longer than for a server."""
    if not lock.acquire(timeout=_wait()):
        raise _not_told(what)
    try:
        yield
    finally:
        lock.release()


def result(flight: Future[T], what: str) -> T:
    """What another thread asks a server for, within this thread's deadline."""
    try:
        return flight.result(_wait())
    except TimeoutError:
        raise _not_told(what) from None


def _wait() -> float:
    try:
        return _thread.deadline.left() if _thread.deadline else threading.TIMEOUT_MAX
    except TimeoutError:
        return 0.0


def _not_told(what: str) -> BackendError:
    return BackendError(f"{what}: another request for the same was not answered in time")
