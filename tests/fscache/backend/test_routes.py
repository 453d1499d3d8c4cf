"""Which way is taken, and when one that failed is looked at again."""

from __future__ import annotations

import threading

import pytest

from nydus_erofs.erofs.errors import BackendError, BlobNotFoundError, DeniedError
from nydus_erofs.fscache.backend.http.routes import Route, Routes, mirror_route, proxy_route
from nydus_erofs.fscache.config import backend as config


def test_left_alone_after_failures_in_a_row() -> None:
    a = Route("a", 3, 5)
    a.failed(0)
    a.failed(1)
    a.answered()  # not in a row
    a.failed(2)
    a.failed(3)
    assert a.enter(3)
    a.failed(4)
    assert a.doubtful
    assert not a.enter(4)
    assert not a.enter(8.9)


def test_one_looks_at_a_time() -> None:
    a = Route("a", 1, 5)
    a.failed(0)
    assert a.enter(5)
    assert not a.enter(5)  # the first one still looks, or never came back
    assert not a.enter(9.9)
    assert a.enter(10)


def test_one_failure_of_a_look_is_enough() -> None:
    a = Route("a", 3, 5)
    for now in (0, 1, 2):
        a.failed(now)
    assert a.enter(7)
    a.failed(8)
    assert not a.enter(12.9)
    assert a.enter(13)
    a.answered()
    assert not a.doubtful
    assert a.enter(13)
    a.failed(14)
    assert a.enter(14)  # it has its failures again


def test_of_configuration() -> None:
    mirror = config.Mirror(host="http://m:1/", ping_url="http://m:2/", health_check_interval=7, failure_limit=2)
    route = mirror_route(mirror, "a mirror")
    assert (route.way, route.ping_url) == ("a mirror", "http://m:2/")
    route.failed(0)
    assert not route.doubtful
    route.failed(0)
    assert route.doubtful
    assert not route.enter(6.9)
    assert route.enter(7)
    route = proxy_route(config.Proxy(url="http://p", check_interval=3), "a proxy")
    route.failed(0)
    assert not route.enter(2.9)
    assert route.enter(3)


class Ways:
    """Two ways and a last one; `says` has what each gives."""

    def __init__(self, limit: int = 1, pause: float = 5.0, ping_url: str = "") -> None:
        self.says: dict[str, str | Exception] = {}
        self.asked: list[str] = []
        self.pinged: list[str] = []
        self.routes = Routes([Route(way, limit, pause, ping_url) for way in "ab"], "last", self.pinged.append)

    def ask(self) -> str:
        self.asked.clear()
        return self.routes.first_good(self._one)

    def _one(self, way: str) -> str:
        self.asked.append(way)
        said = self.says.get(way, way)
        if isinstance(said, Exception):
            raise said
        return said


def test_the_first_that_is_good() -> None:
    ways = Ways()
    assert ways.ask() == "a"
    for nothing in (BlobNotFoundError("no"), DeniedError("no")):  # no failure: it may have the next object
        ways.says["a"] = nothing
        for _ in range(3):
            assert ways.ask() == "b"
            assert ways.asked == ["a", "b"]
    ways.says["a"] = BackendError("broken")
    assert [ways.ask(), ways.asked[:]] == ["b", ["a", "b"]]
    assert [ways.ask(), ways.asked[:]] == ["b", ["b"]]
    ways.says["b"] = BackendError("broken, too")
    assert [ways.ask(), ways.asked[:]] == ["last", ["b", "last"]]
    ways.says["last"] = BackendError("the origin's word counts")
    with pytest.raises(BackendError, match="the origin's word counts"):
        ways.ask()
    assert ways.asked == ["last"]


def test_a_doubtful_way_is_pinged_first() -> None:
    ways = Ways(pause=0.0, ping_url="http://ping")
    ways.says["a"] = BackendError("broken")
    ways.ask()
    assert ways.pinged == []
    ways.says.clear()
    assert ways.ask() == "a"
    assert ways.pinged == ["http://ping"]
    ways.ask()
    assert len(ways.pinged) == 1


def test_threads_that_all_meet_a_failure() -> None:
    ways = Ways(limit=3, pause=60.0)
    ways.says["a"] = BackendError("broken")
    threads = [threading.Thread(target=ways.routes.first_good, args=(ways._one,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    ways.ask()
    assert ways.asked == ["b"]
