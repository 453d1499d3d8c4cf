"""What worker and verifier say to the keeper: any messages in any order, while mounts come and go."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from nydus_erofs.erofs.errors import BackendError, NydusErofsError
from nydus_erofs.fscache.config.backend import Registry, Remote
from nydus_erofs.fscache.keeper.children import dispatch
from nydus_erofs.fscache.keeper.children.traffic import TrafficTable
from nydus_erofs.fscache.keeper.children.worker_link import WorkerLink, _Asked
from nydus_erofs.fscache.keeper.scrub import Scrub
from nydus_erofs.fscache.keeper.stores.clock import MOST
from nydus_erofs.fscache.keeper.stores.kept_store import KeptStore, Waiter
from nydus_erofs.fscache.keeper.stores.lies import LieError
from nydus_erofs.fscache.keeper.stores.news import News
from nydus_erofs.fscache.keeper.stores.spec import BlobSpec, FolderSpec
from nydus_erofs.fscache.keeper.stores.table import StoreTable
from nydus_erofs.fscache.kernel import channel
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto import control, verifier
from nydus_erofs.fscache.proto import worker as proto
from nydus_erofs.fscache.proto.fault import Fault
from nydus_erofs.fscache.proto.worker import FillReason
from tests.fuzz import mutate
from tests.fuzz.target import target
from tests.kit.ticking import Ticking

from .messages import told
from .records import folder

SIZES = [8192, 4096, 1 << 20]
PATIENCE = 10  # seconds
_KEYS = ["plain", "another", "object"]  # of the stores: two folders, and a cachefiles object
_QUESTIONS: list[Any] = [
    proto.Inspect(0), proto.Peek(0, Registry(host="h", repo="r"), "n"),
    proto.FetchRange(0, Registry(host="h", repo="r"), "b", 0, 1), proto.FetchBootstrap(0, Registry(host="h",
    repo="r"), "n"),
]  # fmt: skip

_OF_VERIFIERS = (b"present", b"progress", b"closed", b"checked", b"unreadable", b"scrubbed", b"shortened")


class _Folder(FolderSpec):
    """A folder without descriptors."""

    __slots__ = ()

    def for_verifier(self, number: int, files: Sequence[Fd]) -> tuple[verifier.ToVerifier, list[Fd]]:
        return verifier.OpenFolder(number), []

    def for_worker(self, number: int, filled: str, remotes: list[Remote]) -> tuple[proto.ToWorker, list[Fd]]:
        return proto.OpenStore(number, filled, True, remotes), []

    def close(self) -> None: ...


class _Object(BlobSpec):
    __slots__ = ()

    def for_verifier(self, number: int, files: Sequence[Fd]) -> tuple[verifier.ToVerifier, list[Fd]]:
        return verifier.OpenFolder(number), []

    def for_worker(self, number: int, filled: str, remotes: list[Remote]) -> tuple[proto.ToWorker, list[Fd]]:
        return proto.OpenStore(number, filled, True, remotes), []

    def close(self) -> None: ...


class _Reader(Waiter):
    def __init__(self, store: KeptStore, segment: int, end: int) -> None:
        self.store, self.segment, self.end = store, segment, end
        self.answers: list[bool] = []

    def answer(self, allow: bool, waited: float, number: int = 0) -> None:
        assert not allow or self.store.have[self.segment] >= self.end, "let go on before the bytes are there"
        self.answers.append(allow)

    def completed(self, store: KeptStore, segment: int) -> None:
        assert store.have[segment] == store.size(segment)


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


class Keeper:
    """The parts of a keeper that listen to a worker. The keeper's own doings are lines that begin with "!"."""

    def __init__(self) -> None:
        self.postponed: list[Callable[[], None]] = []
        self.written: list[Callable[[bool], None]] = []
        self.traffic = TrafficTable()
        self.ticking = Ticking()
        self.link = WorkerLink(proto.Start(1, proto.Limits(1, 1, 1, 1), "/s"), lambda: None, self.ticking)
        self.table = StoreTable(
            self._sent,
            self._shown,
            lambda _seconds, call: self.postponed.append(call),
            lambda done: self.written.append(done),
            lambda _: None,
            self.ticking,
            PATIENCE,
        )
        self.news = News(self.table)
        self.of_worker = dispatch.of_worker(self.news, self.traffic, self.link.on_answer)
        self.of_verifier = dispatch.of_verifier(
            self.news, Scrub(self.table, cast("Any", None), lambda message, fds: None)
        )
        self.readers: list[_Reader] = []
        self.opened: list[KeptStore] = []
        self.futures: list[asyncio.Future[Any]] = []
        self.looks = 0

    def _sent(self, message: proto.ToWorker, fds: Sequence[Fd]) -> None:
        channel.close(fds)
        assert len(proto.encode(message)) < proto.MAX_MESSAGE
        proto.decode_for_worker(proto.encode(message))

    def _shown(self, message: verifier.ToVerifier, fds: Sequence[Fd]) -> None:
        channel.close(fds)
        verifier.decode_for_verifier(verifier.encode(message))

    def _look(self) -> None:
        """The verifier does, and finds nothing."""
        for store in self.opened:
            if not store.looked:
                self.news.on_present(verifier.Present(store.number, "0"))

    def _looked(self) -> None:
        self.looks += 1

    def do(self, words: list[str]) -> None:
        """One thing that the keeper does."""
        numbers = [*[int(word) for word in words[1:] if word.isascii() and word.isdecimal()][:3], 0, 0, 0]
        store = self.opened[numbers[0] % len(self.opened)] if self.opened else None
        match words[0], store:
            case "open", _:
                self._open(_KEYS[numbers[0] % 3], pending=bool(numbers[1] % 2))
            case "worker", _:
                self.traffic.on_new_worker()
                self.table.introduce_all()
            case "verifier", _:
                self.table.on_no_verifier()
                self.table.show_all()
                self._look()
            case "hopeless", _:
                self.ticking.wait(2 * PATIENCE)
            case "later", _:
                for call in self.postponed[:50]:
                    call()
                for done in self.written[:50]:
                    done(bool(numbers[0] % 4))
                self.postponed, self.written = [], []
            case "ask", _:
                self._ask(numbers[0])
            case "close", KeptStore() if store.users > 1 or not store.waits.count():  # who waits, holds it open
                self.opened.remove(store)
                self.table.close(store)
            case "wait", KeptStore():
                segment = numbers[1] % len(SIZES)
                reader = _Reader(store, segment, min(numbers[2], SIZES[segment]))
                if store.have[segment] < reader.end:  # as the engines do: others need not wait
                    self.readers.append(reader)
                    self.table.wait(store, segment, reader.end, reader)
            case "prefetch", KeptStore():
                if store.prefetching or numbers[1] % 2:
                    self.table.prefetch(store, bool(numbers[1] % 2))
            case "sourced", KeptStore():
                self.table.sourced(store)

    def _open(self, key: str, *, pending: bool) -> None:
        place = os.path.join(folder(), key)
        if key == "object":
            spec: Any = _Object(SIZES, Fd(-1), Fd(-1))
        else:
            os.makedirs(place, exist_ok=True)
            with open(os.path.join(place, "epoch"), "w", encoding="ascii") as file:
                file.write("this boot")
            spec = _Folder(place, SIZES, [0] * len(SIZES), {}, True, Fd(-1), Fd(-1))
        store = self.table.open(key, spec, Registry(host="h", repo="r"), pending=pending)
        store.reopen = self._looked
        self.opened.append(store)
        self._look()

    def _ask(self, kind: int) -> None:
        self.link._ticket += 1
        future: asyncio.Future[Any] = _loop().create_future()
        question = _QUESTIONS[kind % len(_QUESTIONS)]
        self.link._asked[self.link._ticket] = _Asked(question, None, future)
        self.futures.append(future)

    def hear(self, packet: bytes) -> str:
        """One packet of the worker; LieError ends that worker, and another one comes."""
        before = {store: list(store.have) for store in self.opened}
        try:
            packet = packet[: proto.MAX_MESSAGE]
            if any(word in packet for word in _OF_VERIFIERS):
                message = dispatch.handle(verifier.decode_for_keeper, self.of_verifier, packet, [])
            else:
                message = dispatch.handle(proto.decode_for_keeper, self.of_worker, packet, [])
        except LieError as error:
            assert before == {store: store.have for store in self.opened}, "a lie changed something"
            assert str(error)
            return "lie"
        return type(message).__name__

    def check(self) -> None:
        """What is true at any time."""
        for store in self.opened:
            assert all(0 <= have <= size for have, size in zip(store.have, SIZES, strict=True))
            assert store.left == sum(have < size for have, size in zip(store.have, SIZES, strict=True))
            counters = store.counters
            assert counters.cached + counters.demand + counters.ahead + counters.prefetch == sum(store.have)
            told_to_people = [counters.fetched, counters.failures, counters.last_error, counters.waiting_for]
            _shown(told_to_people)
        assert all(len(reader.answers) <= 1 for reader in self.readers), "answered twice"
        assert len(self.traffic._now) <= 256
        assert len(self.traffic._before) <= 512, "a worker fills the keeper's memory"
        _shown(self.traffic.describe())
        for future in self.futures:
            if future.done() and isinstance(said := future.result(), proto.NotDone):
                told(said.fault)

    def end(self) -> None:
        """Nobody waits for ever."""
        self.ticking.wait((MOST + 2) * PATIENCE)
        assert all(len(reader.answers) == 1 for reader in self.readers)
        for store in self.opened:
            self.table.close(store)
        assert not self.table._by_key
        assert not self.table._by_number


def _shown(what: object) -> None:
    """As ``status`` shows it, to clients of any kind."""
    line = control.reply({"said": what})
    assert line.count(b"\n") == 1
    json.loads(line)


def _messages() -> Iterator[bytes]:
    faults = [Fault.of(error) for error in (BackendError("no", retryable=False), NydusErofsError("x"))]
    said: list[proto.ToKeeper] = [
        proto.Fetched(1, 900), proto.Fetched(2, (1 << 53) - 1), proto.Failed(1, 1, "corrupt", "look"),
        proto.Failed(2, 0, "no room", full=True), proto.Postponed(1, 2, "dead"), proto.Pong(),
        proto.Traffic("s3 h", 3, 4096, 1, 1, 0.5, 0.25, "e", True), proto.Traffic("s3 h", 4, 8192, down=False),
        proto.Inspected(1, [("ab" * 32, 4096)]), proto.Peeked(2, "n", 4096), proto.RangeFetched(3),
        proto.BootstrapFetched(4, "v"), *[proto.NotDone(1, fault) for fault in faults],
    ]  # fmt: skip
    checked: list[verifier.ToKeeper] = [
        verifier.Progress(1, 0, 4096, False, FillReason.DEMAND),
        verifier.Progress(1, 0, 8192, True, FillReason.AHEAD),
        verifier.Progress(1, 1, 4096, True, FillReason.PREFETCH),
        verifier.Progress(1, 2, 1 << 20, True, FillReason.DEMAND), verifier.Progress(2, 0, 8192, True,
        FillReason.DEMAND), verifier.Present(1, "7"), verifier.Present(2, "1"), verifier.Closed(1),
        verifier.Closed(2), verifier.Closed(3),
    ]  # fmt: skip
    yield from map(verifier.encode, checked)
    yield from map(proto.encode, said)


_DOINGS = [
    b"!open 0", b"!open 1", b"!open 2", b"!open 0 1", b"!verifier", b"!worker", b"!hopeless", b"!later", b"!ask 0",
    b"!ask 1", b"!ask 2", b"!ask 3", b"!close 0", b"!close 1", b"!wait 0 0 4096", b"!wait 0 0 8192",
    b"!wait 0 2 1048576", b"!wait 1 1 4096", b"!prefetch 0 1", b"!prefetch 0 0", b"!sourced 0",
]  # fmt: skip
_LINES = [*_messages(), *_DOINGS, b"!again 2100", b"!again 300"]


def _seeds() -> Iterator[bytes]:
    ours, theirs = list(_DOINGS), list(_messages())
    yield b"\n".join([*ours, *theirs])
    yield b"\n".join([b"!open 0", b"!wait 0 0 8192", b"!wait 0 0 4096", *theirs, b"!close 0", theirs[10]])
    yield b"\n".join([b"!open 1", b"!open 2", b"!wait 0 1 1", b"!worker", *theirs, b"!hopeless"])
    for message in theirs:
        yield b"\n".join(
            [b"!open 0", b"!open 1", b"!ask 0", b"!ask 1", b"!ask 2", b"!ask 3", b"!prefetch 0 1", message]
        )


def _line(line: bytes, rng: random.Random) -> bytes:
    if line.startswith(b"!"):
        return mutate.text([b"0", b"1", b"2", b" ", b"4096", b"8192"])(line, rng)[:40]
    return mutate.document(line, rng)


@target(_seeds, mutate.lines(_line, _LINES), refusals=())
def worker_says(data: bytes) -> object:
    """Lines are packets; "!again N" is the last packet N times, each time with another worker and backend's name."""
    keeper, ways, last = Keeper(), set(), b""
    for line in data.split(b"\n")[:64]:
        if line.startswith(b"!again"):
            for number in range(_count(line)):
                keeper.hear(last.replace(b"s3 h", b"s3 %d" % number, 1))
                if not number % 16:
                    keeper.traffic.on_new_worker()
        elif line.startswith(b"!"):
            keeper.do(line[1:].decode(errors="replace").split() or [""])
        else:
            ways.add(keeper.hear(line))
            last = line
        keeper.check()
    keeper.end()
    return sorted(ways)


def _count(line: bytes) -> int:
    word = line.rpartition(b" ")[2]
    return min(int(word), 2100) if word.isdigit() and len(word) < 6 else 1
