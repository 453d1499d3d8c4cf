"""When a server counts as down, and who may look whether it is back."""

from nydus_erofs.fscache.backend.health import Health


def test_a_few_failures_are_no_outage():
    health = Health()
    for now in (0, 1):
        health.failed(now)
        assert health.enter(now) == 0
    health.answered()
    for now in (2, 3):
        health.failed(now)
    assert health.down_since is None


def test_one_at_a_time_looks_whether_a_dead_server_is_back():
    health = Health()
    for _ in range(3):
        health.failed(10.0)
    assert health.down_since == 10.0
    assert 0 < health.enter(10.0) <= 0.25
    assert health.enter(10.3) == 0
    assert health.enter(10.3) > 0  # the one before is looking
    health.failed(10.4)
    assert 0.4 < health.enter(10.4) <= 0.5
    health.answered()
    assert health.enter(10.4) == 0


def test_looks_become_rarer_up_to_two_seconds():
    health, now = Health(), 0.0
    for _ in range(20):
        health.failed(now)
        wait = health.enter(now)
        now += wait
    assert wait == 2.0


def test_a_server_that_asks_for_a_pause_gets_it():
    health = Health()
    health.failed(0.0, retry_after=30.0)
    assert health.enter(0.0) == 30.0
    assert health.enter(30.0) == 0.0


def test_one_who_looks_and_dies_does_not_keep_the_others_out():
    health = Health()
    for _ in range(3):
        health.failed(0.0)
    assert health.enter(1.0) == 0
    assert health.enter(2.9) > 0
    assert health.enter(3.0) == 0
