"""Tries again at once, within limits; counts; and lets a dead server rest. The clock is real, the server is not."""

import threading
import time

import pytest

from nydus_erofs.erofs.errors import BackendError, BlobNotFoundError, DeniedError
from nydus_erofs.fscache.backend.meter import Meter
from nydus_erofs.fscache.backend.mirrored import Mirrored
from nydus_erofs.fscache.backend.resilient import Resilient


class Server:
    """Answers what it is told to: bytes, or an error to raise."""

    label = "test http://server"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), 0

    def read(self, name, offset, length):
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else bytes(length)
        if isinstance(answer, Exception):
            raise answer
        return answer

    stat = None


@pytest.fixture
def changes():
    return []


def resilient(server, changes, retry_limit=3):
    meter = Meter(server.label, lambda: changes.append(1))
    return Resilient(Mirrored(server, [], print), meter, retry_limit), meter


def reset():
    return BackendError("test http://server: connection reset")


def test_a_passing_failure_is_not_noticed_but_counted(changes):
    server = Server(reset(), reset(), b"abc")
    backend, meter = resilient(server, changes)
    assert backend.read("x", 0, 3) == b"abc"
    news = meter.news()
    assert (news.requests, news.errors, news.retries, news.bytes, news.down) == (3, 2, 2, 3, False)
    assert news.slowest <= news.seconds
    assert meter.news() is None
    assert changes


@pytest.mark.parametrize(
    "error", [BlobNotFoundError("gone"), DeniedError("no"), BackendError("416", retryable=False)]
)
def test_what_cannot_pass_is_not_tried_again(error, changes):
    server = Server(error)
    backend, _ = resilient(server, changes)
    with pytest.raises(type(error)) as caught:
        backend.read("x", 0, 3)
    assert caught.value is error
    assert server.asked == 1


def eventually(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_dead_server_is_left_alone_and_found_again(changes):
    server = Server(*(reset() for _ in range(5)))
    backend, meter = resilient(server, changes)
    with pytest.raises(BackendError):
        backend.read("x", 0, 3)
    assert (server.asked, meter.news().down) == (3, True)  # down after three, and then nobody insists
    with pytest.raises(BackendError, match="does not answer: test http://server: connection reset") as caught:
        backend.read("x", 0, 3)
    assert caught.value.retryable
    assert 0 < caught.value.retry_after <= 0.25
    assert server.asked == 3
    eventually(lambda: server.asked == 6)  # looks by itself, and finds it
    eventually(lambda: meter.last_error and not meter.down)
    assert backend.read("x", 0, 3) == bytes(3)


def test_whatever_a_server_says_it_is_back(changes):
    server = Server(*(reset() for _ in range(3)), DeniedError("no"))
    backend, meter = resilient(server, changes)
    with pytest.raises(BackendError):
        backend.read("x", 0, 3)
    eventually(lambda: server.asked == 4 and not meter.down)
    assert backend.read("x", 0, 3) == bytes(3)


def test_a_dead_server_costs_many_threads_few_requests(changes):
    server = Server(*(reset() for _ in range(1000)))
    backend, _ = resilient(server, changes)

    def reader():
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


def test_no_tries_at_all_when_none_are_wanted(changes):
    server = Server(reset())
    backend, _ = resilient(server, changes, retry_limit=0)
    with pytest.raises(BackendError):
        backend.read("x", 0, 3)
    assert server.asked == 1
