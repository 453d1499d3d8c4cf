"""Which server is asked, and when one that failed is looked at again."""

from nydus_erofs.fscache.backend.http.routes import Route, Routes, mirror_routes, proxy_routes
from nydus_erofs.fscache.config import backend as config


def urls(routes, now):
    return [route.url for route in routes.choose(now)]


def test_all_in_order_while_they_answer():
    routes = Routes([Route("a", 1, 5), Route("b", 1, 5)])
    for now in (0.0, 1.0, 100.0):
        assert urls(routes, now) == ["a", "b"]


def test_left_alone_after_failures_in_a_row():
    a = Route("a", 3, 5)
    routes = Routes([a, Route("b", 3, 5)])
    a.failed(0)
    a.failed(1)
    a.answered()  # not in a row
    a.failed(2)
    a.failed(3)
    assert urls(routes, 3) == ["a", "b"]
    a.failed(4)
    assert a.doubtful
    assert urls(routes, 4) == urls(routes, 8.9) == ["b"]


def test_one_looks_at_a_time():
    a = Route("a", 1, 5)
    routes = Routes([a])
    a.failed(0)
    assert urls(routes, 5) == ["a"]
    assert urls(routes, 5) == urls(routes, 9.9) == []  # the first one still looks, or never came back
    assert urls(routes, 10) == ["a"]


def test_one_failure_of_a_look_is_enough():
    a = Route("a", 3, 5)
    routes = Routes([a])
    for now in (0, 1, 2):
        a.failed(now)
    assert urls(routes, 7) == ["a"]
    a.failed(8)
    assert urls(routes, 12.9) == []
    assert urls(routes, 13) == ["a"]
    a.answered()
    assert not a.doubtful
    assert urls(routes, 13) == urls(routes, 13) == ["a"]
    a.failed(14)
    assert urls(routes, 14) == ["a"]  # it has its failures again


def test_of_configuration():
    mirror = config.Mirror(
        host="http://m:1/", headers={"X": "y"}, ping_url="http://m:2/", health_check_interval=7, failure_limit=2
    )
    (route,) = mirror_routes([mirror]).choose(0)
    assert (route.url, route.headers, route.ping_url) == ("http://m:1", {"X": "y"}, "http://m:2/")
    route.failed(0)
    assert not route.doubtful
    route.failed(0)
    assert route.doubtful
    assert not route.enter(6.9)
    assert route.enter(7)
    assert proxy_routes(None).choose(0) == []
    assert proxy_routes(config.Proxy(url="http://p", fallback=False)).choose(0) == []
    (route,) = proxy_routes(config.Proxy(url="http://p", check_interval=3)).choose(0)
    route.failed(0)
    assert not route.enter(2.9)
    assert route.enter(3)
