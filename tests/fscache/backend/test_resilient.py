"""Tries again at once, within limits; counts; and lets a dead server rest. The clock is real, the server is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from nydus_erofs.erofs.errors import BackendError, BlobNotFoundError, DeniedError
from nydus_erofs.fscache.backend.base import Client
from nydus_erofs.fscache.backend.meter import Meter
from nydus_erofs.fscache.backend.mirrored import Mirrored
from nydus_erofs.fscache.backend.resilient import Resilient


class Server:
    """Answers what it is told to: bytes, or an error to raise."""

    label = "test http://server"

    def __init__(self, *answers: BackendError | BlobNotFoundError | DeniedError | bytes) -> None:
        self.answers, self.asked = list(answers), 0

    def read(self, name: str, offset: int, length: int) -> bytes:
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else bytes(length)
        if isinstance(answer, Exception):
            raise answer
        return answer

    stat = None


@pytest.fixture
def changes() -> list[Any]:
    return []


def resilient(server: Server, changes: list[Any], retry_limit: int = 3) -> tuple[Resilient, Meter]:
    meter = Meter(server.label, lambda: changes.append(1))
    return Resilient(Mirrored(cast("Client", server), [], print, 30.0), meter, retry_limit), meter


def reset() -> BackendError:
    return BackendError("test http://server: connection reset")


def test_a_passing_failure_is_not_noticed_but_counted(changes: list[Any]) -> None:
    server = Server(reset(), reset(), b"abc")
    backend, meter = resilient(server, changes)
    assert backend.read("x", 0, 3) == b"abc"
    news = meter.news()
    assert news is not None
    assert (news.requests, news.errors, news.retries, news.bytes, news.down) == (3, 2, 2, 3, False)
    assert news.slowest <= news.seconds
    assert meter.news() is None
    assert changes


@pytest.mark.parametrize(
    "error", [BlobNotFoundError("gone"), DeniedError("no"), BackendError("416", retryable=False)]
)
def test_what_cannot_pass_is_not_tried_again(
    error: BackendError | BlobNotFoundError | DeniedError, changes: list[Any]
) -> None:
    server = Server(error)
    backend, _ = resilient(server, changes)
    with pytest.raises(type(error)) as caught:
        backend.read("x", 0, 3)
    assert caught.value is error
    assert server.asked == 1


def eventually(condition: Callable[..., Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_dead_server_is_left_alone_and_found_again(changes: list[Any]) -> None:
    server = Server(*(reset() for _ in range(5)))
    backend, meter = resilient(server, changes)
    with pytest.raises(BackendError):
        backend.read("x", 0, 3)
    news = meter.news()
    assert news is not None
    assert (server.asked, news.down) == (3, True)  # down after three, and then nobody insists
    with pytest.raises(BackendError, match="does not answer: test http://server: connection reset") as caught:
        backend.read("x", 0, 3)
    assert caught.value.retryable
    assert 0 < caught.value.retry_after <= 0.25
    assert server.asked == 3
    eventually(lambda: server.asked == 6)  # looks by itself, and finds it
    eventually(lambda: meter.last_error and not meter.down)
    assert backend.read("x", 0, 3) == bytes(3)


def test_whatever_a_server_says_it_is_back(changes: list[Any]) -> None:
    server = Server(*(reset() for _ in range(3)), DeniedError("no"))
    backend, meter = resilient(server, changes)
    with pytest.raises(BackendError):
        backend.read("x", 0, 3)
    eventually(lambda: server.asked == 4 and not meter.down)
    assert backend.read("x", 0, 3) == bytes(3)


def test_a_dead_server_costs_many_threads_few_requests(changes: list[Any]) -> None:
    server = Server(*(reset() for _ in range(1000)))
    backend, _ = resilient(server, changes)

    def reader() -> None:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            with pytest.raises(BackendError) as caught:
                backend.read("x", 0, 3)
            time.sleep(max(0.01, caught.value.retry_after))

    threads = [threading.Thread(target=reader) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert server.asked <= 20 + 5  # each may have been on its way; after that, looks only
    server.answers.clear()
    eventually(lambda: not backend._health.down)


def test_no_tries_at_all_when_none_are_wanted(changes: list[Any]) -> None:
    server = Server(reset())
    backend, _ = resilient(server, changes, retry_limit=0)
    with pytest.raises(BackendError):
        backend.read("x", 0, 3)
    assert server.asked == 1
