"""When a server counts as down, and when to look whether it is back."""

from __future__ import annotations

from nydus_erofs.fscache.backend.health import Health


def test_a_few_failures_are_no_outage() -> None:
    health = Health()
    for now in (0, 1):
        assert not health.failed(now)
    health.answered()
    for now in (2, 3):
        assert not health.failed(now)
    assert not health.down


def test_it_goes_down_once() -> None:
    health = Health()
    assert [health.failed(10.0) for _ in range(4)] == [False, False, True, False]
    assert health.down
    health.answered()
    assert not health.down
    assert not health.failed(11.0)


def test_looks_become_rarer_up_to_two_seconds() -> None:
    health, now, waits = Health(), 0.0, []
    for _ in range(10):
        health.failed(now)
        waits.append(health.wait(now))
        now += waits[-1]
    assert waits == [0, 0, 0.25, 0.5, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_a_server_that_asks_for_a_pause_gets_it() -> None:
    health = Health()
    assert health.failed(0.0, retry_after=30.0)
    assert health.wait(0.0) == 30.0
    assert health.wait(31.0) == 0.0
