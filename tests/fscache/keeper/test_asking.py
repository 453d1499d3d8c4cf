"""What the next worker is asked when one died: Hypothesis plays workers of which each dies over one store."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.fscache.config.backend import Remote
from nydus_erofs.fscache.keeper.stores.asking import SUSPICIOUS, Asking
from nydus_erofs.fscache.keeper.stores.clock import Clock
from nydus_erofs.fscache.keeper.stores.kept_store import KeptStore, Waiter
from nydus_erofs.fscache.keeper.stores.waits import Wait
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto import verifier
from nydus_erofs.fscache.proto import worker as proto
from tests.kit.ticking import Ticking


class Worker:
    """It dies over what is asked of the stores in ``poison``, at once or ``slow`` seconds later; else it answers at
    once."""

    def __init__(self, count: int, poison: set[int], *, slow: float = 0.0) -> None:
        self.time = Ticking()
        self.asking = Asking(self.send, self.time.later)
        self.poison, self.slow = poison, slow
        self.stores = [KeptStore(number, f"{number}", Spec(), Clock(60), looked=True) for number in range(count)]
        self.dying = False
        self.deaths = 0
        self.sent: list[proto.ToWorker] = []

    def send(self, message: proto.ToWorker, fds: Sequence[Fd]) -> None:
        self.sent.append(message)
        if not isinstance(message, (proto.Fill, proto.Prefetch)) or self.dying:
            return
        store = self.stores[message.store]
        if message.store in self.poison:
            self.dying = True
            self.time.later(self.slow + 0.3, self.die)
        else:
            store.waits.take_all(0)
            self.asking.answered(store)

    def die(self) -> None:
        self.deaths += 1
        self.dying = False
        self.asking.new_worker(self.stores)

    def wait(self, store: KeptStore) -> None:
        if store.waits.add(0, Wait(4096, self.time.time, Waiter())):
            self.asking.fill(store, 0, 4096)

    def waiting(self) -> set[int]:
        return {store.number for store in self.stores if store.waits}


class Spec:
    """Of a store that nobody tells anybody about."""

    sizes = (4096,)

    def for_verifier(self, number: int, files: Sequence[Fd]) -> tuple[verifier.ToVerifier, list[Fd]]:
        raise NotImplementedError

    def for_worker(self, number: int, filled: str, remotes: list[Remote]) -> tuple[proto.ToWorker, list[Fd]]:
        raise NotImplementedError

    def close(self) -> None:
        pass


@given(st.integers(1, 12), st.sets(st.integers(0, 11), max_size=2), st.permutations(range(12)), st.floats(0, 2))
def test_all_but_the_culprits_are_served(count: int, poison: set[int], order: list[int], slow: float) -> None:
    poison = {number for number in poison if number < count}
    worker = Worker(count, poison, slow=slow)
    for number in order:
        if number < count:
            worker.wait(worker.stores[number])
    worker.time.wait(100.0)
    assert worker.waiting() == poison


@pytest.fixture
def poisoned() -> Worker:
    """Workers have died over store 0 for a while."""
    worker = Worker(3, {0})
    worker.wait(worker.stores[0])
    worker.time.wait(20.0)
    return worker


def test_ever_fewer_workers_die_over_it(poisoned: Worker) -> None:
    before = poisoned.deaths
    assert SUSPICIOUS < before < 20
    poisoned.time.wait(20.0)
    assert 2 <= poisoned.deaths - before <= 10, "it is asked for still, and others have their time"


def test_who_comes_meanwhile_is_served(poisoned: Worker) -> None:
    for _ in range(20):
        poisoned.time.wait(0.7)
        poisoned.wait(poisoned.stores[1])
        poisoned.time.wait(0.4)
        assert poisoned.waiting() == {0}


def test_it_is_as_good_as_any_once_something_came(poisoned: Worker) -> None:
    poisoned.poison = set()
    poisoned.time.wait(10.0)
    assert poisoned.waiting() == set()
    poisoned.sent.clear()
    poisoned.wait(poisoned.stores[0])
    assert poisoned.sent == [proto.Fill(0, 0, 4096)]


def test_prefetch_is_asked_for_apart_too() -> None:
    worker = Worker(2, {0})
    for store in worker.stores:
        store.prefetching = 1
        worker.asking.prefetch(store)
    worker.time.wait(10.0)
    assert worker.deaths > SUSPICIOUS
    worker.sent.clear()
    worker.die()
    assert worker.sent == [proto.Prefetch(1, True)]
    worker.sent.clear()
    worker.time.wait(6.0)
    assert proto.Prefetch(0, True) in worker.sent


def test_what_is_closed_is_forgotten(poisoned: Worker) -> None:
    (store,) = (store for store in poisoned.stores if store.waits)
    poisoned.asking.forget(store)
    poisoned.stores.remove(store)
    poisoned.sent.clear()
    poisoned.time.wait(30.0)
    assert not poisoned.sent
