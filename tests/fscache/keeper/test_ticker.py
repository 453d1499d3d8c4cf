"""One timer for all: it runs only while it is needed, and knows when nobody could be told anything."""

from __future__ import annotations

from tests.kit.ticking import TICK, Ticking


class Client:
    def __init__(self, ticker: Ticking) -> None:
        self.busy, self.told = False, list[float]()
        ticker.add(self.look)

    def look(self, now: float) -> bool:
        self.told.append(now)
        return self.busy


def test_it_runs_while_anybody_is_busy() -> None:
    ticker = Ticking()
    one, other = Client(ticker), Client(ticker)
    ticker.wait(100)
    assert not one.told
    one.busy = True
    for _ in range(5):
        ticker.wake()
    assert ticker.timers == 1
    ticker.wait(10 * TICK)
    assert len(one.told) == len(other.told) == 10
    one.busy = False
    ticker.wait(100)
    assert len(one.told) == 11, "once more, and no more"
    ticker.wake()
    ticker.wait(100)
    assert len(one.told) == 12


def test_what_one_client_does_may_concern_another() -> None:
    """The one was told already, and had nothing under way then."""
    ticker = Ticking()
    first = Client(ticker)

    def second(now: float) -> bool:
        if not first.busy:
            first.busy = True
            ticker.wake()
        return False

    ticker.add(second)
    ticker.wake()
    ticker.wait(3 * TICK)
    assert len(first.told) == 3
    assert ticker.timers == 1


def test_time_in_which_it_does_not_run_does_not_count() -> None:
    ticker = Ticking()
    client = Client(ticker)
    client.busy = True
    ticker.wake()
    ticker.wait(TICK)
    before = ticker.now()
    ticker.stop_for(3600)
    assert before <= ticker.now() <= before + 2 * TICK
    assert client.told[-1] == ticker.now()
    ticker.wait(10)
    assert before + 9 <= ticker.now() <= before + 12
    assert client.told == sorted(client.told)


def test_a_little_late_is_what_machines_are() -> None:
    ticker = Ticking()
    client = Client(ticker)
    client.busy = True
    ticker.wake()
    before = ticker.now()
    ticker.stop_for(TICK + 0.9)
    assert ticker.now() == before + TICK + 0.9
