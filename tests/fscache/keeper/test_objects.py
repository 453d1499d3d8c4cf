"""Objects of the kernel's cache with Hypothesis as the kernel: every reader gets one answer, whatever the order."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nydus_erofs.erofs.errors import FormatError
from nydus_erofs.fscache.keeper.engine import objects
from nydus_erofs.fscache.keeper.engine.names import Cached
from nydus_erofs.fscache.keeper.stores.clock import REST, TRIAL
from nydus_erofs.fscache.keeper.stores.kept_store import KeptStore
from nydus_erofs.fscache.keeper.stores.news import News
from nydus_erofs.fscache.keeper.stores.spec import BlobSpec
from nydus_erofs.fscache.keeper.stores.table import StoreTable
from nydus_erofs.fscache.kernel import channel
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto import cachefiles as proto
from nydus_erofs.fscache.proto import verifier, worker
from tests.kit.ticking import TICK, Ticking

SIZES = [1 << 16, 1 << 16, 4096 * 3]
TOTAL = sum(SIZES)
PATIENCE = 5  # seconds


class Kernel(RuleBasedStateMachine):
    """A kernel with objects and readers, a worker that fills, fails or dies: each read is completed exactly once.

    What must never happen: a read completed with its bytes missing while all went well, or never completed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ticking = Ticking()
        self.table = StoreTable(
            self.send, self.show, self.ticking.later, lambda *_: None, lambda _: None, self.ticking, PATIENCE
        )
        self.news = News(self.table)
        self.objects = objects.ObjectTable(self.table)
        self.completed: list[int] = []
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(objects, "complete", lambda fd, msg_id: self.completed.append(msg_id))
        self.open: dict[int, objects.CacheObject] = {}
        self.next = 0
        self.shown: list[int] = []
        self.open_reads: dict[int, int] = {}  # message -> its object
        self.have: dict[KeptStore, list[int]] = {}  # bytes of each segment
        self.asked: dict[tuple[int, int], int] = {}  # (store, segment) -> end that the worker will report on

    def teardown(self) -> None:
        self.patch.undo()
        for number in list(self.open):
            self.objects.on_close(number)

    def send(self, message: worker.ToWorker, fds: Sequence[Fd] = ()) -> None:
        channel.close(fds)
        if isinstance(message, worker.Fill):
            self.asked[message.store, message.segment] = message.end

    def show(self, message: verifier.ToVerifier, fds: Sequence[Fd] = ()) -> None:
        channel.close(fds)
        if isinstance(message, verifier.OpenObject):
            self.shown.append(message.store)

    def look(self) -> None:
        """The verifier does, and finds nothing."""
        while self.shown:
            self.news.on_present(verifier.Present(self.shown.pop(), "0"))

    def number(self) -> int:
        self.next += 1
        return self.next

    @rule(name=st.sampled_from("ab"))
    def open_object(self, name: str) -> None:
        """Also once more under the same name, before the last one is closed."""
        number = self.number()
        fd = Fd(os.open(os.devnull, os.O_WRONLY))
        self.open[number] = objects.CacheObject(fd, "volume", name, Cached("x", TOTAL, TOTAL))
        self.objects.add(number, self.open[number])
        assert self.objects.find("volume", name) is self.open[number]

    @rule(data=st.data(), at=st.integers(0, TOTAL // 4096 + 2), blocks=st.integers(1, 40))
    @precondition(lambda self: self.open)
    def read(self, data: st.DataObject, at: int, blocks: int) -> None:
        number, msg_id = data.draw(st.sampled_from(sorted(self.open))), self.number()
        self.open_reads[msg_id] = number
        self.objects.on_read(proto.Read(msg_id, number, at * 4096, blocks * 4096))

    @rule(msg_id=st.integers(0, 100))
    def read_of_nothing(self, msg_id: int) -> None:
        """An object that was closed, or never was."""
        self.objects.on_read(proto.Read(msg_id, 1 << 30, 0, 4096))

    @rule(data=st.data(), plan=st.sampled_from(["p", "q"]))
    @precondition(lambda self: self.open)
    def add_store(self, data: st.DataObject, plan: str) -> None:
        cache_object = self.open[data.draw(st.sampled_from(sorted(self.open)))]
        if plan not in cache_object.stores and not cache_object.hopeless:
            spec = BlobSpec(SIZES, cache_object.fd.dup(), Fd(os.open(os.devnull, os.O_RDONLY)))
            store = self.objects.add_store(cache_object, plan, spec, None)
            self.have[store] = [0] * len(SIZES)
            self.look()

    @rule(data=st.data())
    @precondition(lambda self: self.stores())
    def a_plan_with_other_segments(self, data: st.DataObject) -> None:
        cache_object = data.draw(st.sampled_from([o for _, o in sorted(self.open.items()) if o.stores]))
        spec = BlobSpec(SIZES[::-1], cache_object.fd.dup(), Fd(os.open(os.devnull, os.O_RDONLY)))
        with pytest.raises(FormatError, match="different segments"):
            self.objects.add_store(cache_object, "other", spec, None)

    @rule(data=st.data())
    @precondition(lambda self: self.open)
    def ready_or_hopeless(self, data: st.DataObject) -> None:
        cache_object = self.open[data.draw(st.sampled_from(sorted(self.open)))]
        if cache_object.stores:
            self.objects.serve(cache_object)
        else:
            self.objects.give_up(cache_object)

    def stores(self) -> list[KeptStore]:
        return [store for number in sorted(self.open) for store in self.open[number].stores.values()]

    @rule(data=st.data(), segment=st.integers(0, 2), blocks=st.integers(1, 16))
    @precondition(lambda self: self.stores())
    def progress(self, data: st.DataObject, segment: int, blocks: int) -> None:
        store = data.draw(st.sampled_from(self.stores()))
        have = min(SIZES[segment], max(self.have[store][segment], blocks * 4096))
        self.have[store][segment] = have
        done = have == SIZES[segment]
        if have >= self.asked.get((store.number, segment), 0):
            self.asked.pop((store.number, segment), None)
        self.news.on_progress(verifier.Progress(store.number, segment, have, done, worker.FillReason.DEMAND))

    @rule(data=st.data(), segment=st.integers(0, 2), full=st.booleans())
    @precondition(lambda self: self.stores())
    def fails(self, data: st.DataObject, segment: int, full: bool) -> None:
        store = data.draw(st.sampled_from(self.stores()))
        self.asked.pop((store.number, segment), None)
        self.news.on_failed(worker.Failed(store.number, segment, "why", "", full))

    @rule(seconds=st.sampled_from([TICK, 2.0, PATIENCE + 1.0]))
    def wait(self, seconds: float) -> None:
        """Nothing comes: whoever had waited for that long before has an error now."""
        waited = set(self.open_reads) - set(self.completed)
        self.ticking.wait(seconds)
        if seconds > PATIENCE:
            assert not waited & set(self.open_reads) - set(self.completed)
            assert not self.ticking.timers, "nobody waits"

    @rule()
    def new_verifier(self) -> None:
        """It takes the worker with it."""
        self.asked = {}
        self.table.on_no_verifier()
        self.table.show_all()
        self.look()

    @rule()
    def new_worker(self) -> None:
        self.asked = {}
        self.table.introduce_all()

    @rule(data=st.data())
    @precondition(lambda self: self.open)
    def close(self, data: st.DataObject) -> None:
        """The kernel has failed what was unanswered."""
        number = data.draw(st.sampled_from(sorted(self.open)))
        closed = self.open.pop(number)
        assert self.objects.on_close(number) is closed
        assert self.objects.on_close(number) is None
        assert self.objects.find("volume", closed.cookie) is not closed
        for msg_id, of in list(self.open_reads.items()):
            if of == number:
                del self.open_reads[msg_id]

    @invariant()
    def nobody_is_forgotten_or_answered_twice(self) -> None:
        assert len(self.completed) == len(set(self.completed))
        for number, cache_object in self.open.items():
            waiting = {m for m, of in self.open_reads.items() if of == number} - set(self.completed)
            early = {one.read.msg_id for one in cache_object.early}
            held = {
                wait.token._msg_id  # type: ignore[attr-defined]
                for store in cache_object.stores.values()
                for segment, waits in store.waits._segments.items()
                for wait in waits
                if wait.end <= self.asked.get((store.number, segment), 0) or self.asked_soon(store)
            }
            assert waiting <= early | held, "a reader waits for nothing"

    def asked_soon(self, store: KeptStore) -> bool:
        """So many workers have died over it that the others go first."""
        return store in self.table.asking._held and self.ticking.timers > 0


Kernel.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
test_kernel = pytest.mark.timeout(200)(Kernel.TestCase)


def test_a_read_that_crosses_the_news_of_its_bytes() -> None:
    """The kernel asked before they were there, and is heard after the worker: nobody will speak of them again."""
    kernel = Kernel()
    try:
        kernel.open_object("a")
        (number,) = kernel.open
        spec = BlobSpec(SIZES, kernel.open[number].fd.dup(), Fd(os.open(os.devnull, os.O_RDONLY)))
        store = kernel.objects.add_store(kernel.open[number], "p", spec, None)
        kernel.look()
        kernel.objects.serve(kernel.open[number])
        kernel.objects.on_read(proto.Read(7, number, 0, 8192))
        kernel.news.on_progress(verifier.Progress(store.number, 0, 8192, False, worker.FillReason.DEMAND))
        kernel.objects.on_read(proto.Read(8, number, 4096, 4096))
        assert kernel.completed == [7, 8]
    finally:
        kernel.teardown()


def test_a_read_that_comes_before_the_object_can_be_served() -> None:
    """Its plan may be behind a server that is away: EIO in time, then at once but for trials, at last its bytes."""
    kernel = Kernel()
    try:
        kernel.open_object("a")
        (number,) = kernel.open
        kernel.objects.on_read(proto.Read(1, number, 0, 4096))
        kernel.ticking.wait(PATIENCE - TICK)
        assert kernel.completed == []
        assert not kernel.open[number].stalled
        kernel.ticking.wait(TICK)
        assert kernel.open[number].stalled
        assert kernel.open[number].trouble == f"no plan of it for {PATIENCE} s"
        kernel.objects.on_read(proto.Read(2, number, 0, 4096))
        assert kernel.completed == [1, 2]
        kernel.ticking.wait(REST)
        kernel.objects.on_read(proto.Read(3, number, 0, 4096))
        kernel.ticking.wait(TRIAL - TICK)
        assert kernel.completed == [1, 2]
        spec = BlobSpec(SIZES, kernel.open[number].fd.dup(), Fd(os.open(os.devnull, os.O_RDONLY)))
        store = kernel.objects.add_store(kernel.open[number], "p", spec, None)
        kernel.look()
        kernel.objects.serve(kernel.open[number])
        assert kernel.asked == {(store.number, 0): 4096}
        kernel.news.on_progress(verifier.Progress(store.number, 0, 8192, False, worker.FillReason.DEMAND))
        assert kernel.completed == [1, 2, 3]
        assert kernel.open[number].counters.denied == 2
        assert not kernel.open[number].trouble
        assert not kernel.open[number].stalled
    finally:
        kernel.teardown()
