"""What `status` says of a backend, over the lives of several workers."""

from __future__ import annotations

import pytest

from nydus_erofs.fscache.keeper.children.traffic import TrafficTable
from nydus_erofs.fscache.proto.control import BackendStatus
from nydus_erofs.fscache.proto.worker import Traffic

S3 = "s3 http://server/bucket"


def test_counts_outlive_the_worker_that_counted() -> None:
    table = TrafficTable()
    table.on_news(Traffic(S3, requests=3, bytes=30, errors=1, seconds=0.3, slowest=0.2, last_error="x", down=True))
    table.on_news(Traffic(S3, requests=4, bytes=40, errors=1, seconds=0.4, slowest=0.2, last_error="x"))
    table.on_new_worker()
    table.on_news(Traffic(S3, requests=1, bytes=10, seconds=0.6, slowest=0.6))
    assert table.describe() == [
        BackendStatus(
            S3, requests=5, bytes=50, errors=1, retries=0, latency_seconds_mean=0.2, latency_seconds_max=0.6,
            down=False, last_error="x",
        )
    ]  # fmt: skip


def test_a_worker_gone_wrong_does_not_fill_the_memory() -> None:
    table = TrafficTable()
    for number in range(10_000):
        table.on_news(Traffic(f"s3 {number}"))
    assert len(table.describe()) == 256


def test_nor_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    """A backend that comes and goes all the time is said to be down now and then, and to be back as often."""
    table = TrafficTable()
    for number in range(2000):
        table.on_news(Traffic(S3, down=number % 2 == 0))
    text = "".join(capfd.readouterr())
    down = text.count("backend does not answer")
    assert 50 < down < 200
    assert text.count("backend answers again") == down
