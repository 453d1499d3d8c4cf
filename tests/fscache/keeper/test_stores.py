"""The keeper's table of stores over real folders: what it tells the worker, and that no answer of it does harm."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nydus_erofs.erofs.errors import FormatError, KernelError, ServiceError
from nydus_erofs.fscache.config.backend import Registry
from nydus_erofs.fscache.keeper.children import dispatch
from nydus_erofs.fscache.keeper.children.traffic import TrafficTable
from nydus_erofs.fscache.keeper.scrub import Scrub
from nydus_erofs.fscache.keeper.stores import epoch
from nydus_erofs.fscache.keeper.stores.clock import MOST, REST, TRIAL
from nydus_erofs.fscache.keeper.stores.kept_store import KeptStore, Waiter
from nydus_erofs.fscache.keeper.stores.lies import LieError
from nydus_erofs.fscache.keeper.stores.news import News
from nydus_erofs.fscache.keeper.stores.restore import restore
from nydus_erofs.fscache.keeper.stores.spec import load_folder
from nydus_erofs.fscache.keeper.stores.table import StoreTable
from nydus_erofs.fscache.kernel import channel, statx
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto import verifier
from nydus_erofs.fscache.proto import worker as proto
from nydus_erofs.fscache.proto.worker import FillReason
from tests.kit.processes import descriptors
from tests.kit.stores import MakeStore, OpenImages
from tests.kit.ticking import TICK, Ticking

KEY = "ab" * 32
PATIENCE = 10  # seconds


T = TypeVar("T")


class Reader(Waiter):
    def __init__(self) -> None:
        self.answers: list[bool] = []
        self.numbers: list[int] = []  # what it was told when it was denied
        self.completions = 0

    def answer(self, allow: bool, waited: float, number: int = errno.EIO) -> None:
        self.answers.append(allow)
        if not allow:
            self.numbers.append(number)

    def completed(self, store: KeptStore, segment: int) -> None:
        self.completions += 1


class Table(StoreTable):
    """A table that keeps what it sends instead. Its verifier finds nothing, at once."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.postponed: list[Callable[[], None]] = []
        self.written: list[Callable[[bool], None]] = []
        self.discarded: list[str] = []
        self.ticking, self.stalls = Ticking(), list[float]()
        super().__init__(
            self.keep,
            self.keep,
            lambda seconds, call: self.postponed.append(call),
            lambda done: self.written.append(done),
            self.discarded.append,
            self.ticking,
            PATIENCE,
            lambda patience: self.stalls.append(self.ticking.time),
        )
        self.of_worker = dispatch.of_worker(News(self), TrafficTable(), lambda answer: None)
        self.scrub = Scrub(self, cast("Any", None), self.keep)
        self.of_verifier = dispatch.of_verifier(News(self), self.scrub)

    def keep(self, message: proto.ToWorker | verifier.ToVerifier, fds: Sequence[Fd] = ()) -> None:
        self.sent.append(message)
        self.lent = len(fds)
        channel.close(fds)

    def open_folder(self, key: str, folder: Path, source: Fd | None = None, **options: Any) -> KeptStore:
        """As the engine does it: the epoch is noted first."""
        spec = load_folder(str(folder), os.geteuid())
        if sum(spec.have) < sum(spec.sizes):
            epoch.begin(str(folder))
        store = self.open(key, spec, source, **options)
        self.look()
        return store

    def look(self) -> None:
        """Say of each store that is new to the verifier that nothing is there."""
        for store in self._by_key.values():
            if not store.looked:
                self.on_message(verifier.Present(store.number, "0"))

    def write_out(self, *, written: bool = True) -> None:
        """All that was asked for is on the disk, or something is lost."""
        asked, self.written = self.written, []
        for done in asked:
            done(written)

    def new_verifier(self) -> None:
        """The one before is dead, and the worker too."""
        self.on_no_verifier()
        self.show_all()
        self.look()

    def on_message(self, message: proto.ToKeeper | verifier.ToKeeper) -> None:
        if type(message) in self.of_verifier:
            dispatch.handle(verifier.decode_for_keeper, self.of_verifier, verifier.encode(message), [])  # type: ignore[arg-type]
        else:
            dispatch.handle(proto.decode_for_keeper, self.of_worker, proto.encode(message), [])  # type: ignore[arg-type]

    def said(self, kind: type[T]) -> list[T]:
        return [message for message in self.sent if isinstance(message, kind)]


@pytest.fixture
def folder(open_image: OpenImages, make_store: MakeStore) -> Path:
    """A store's folder: 9 segments or so of 1 MiB, all empty."""
    return make_store(open_image("none-sha256")).folder


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Fd]:
    """`source(name)`: a new descriptor of a file; the same name is the same file."""

    def source(name: str = "blob") -> Fd:
        return Fd(os.open(tmp_path / name, os.O_RDWR | os.O_CREAT))

    return source


def finish(
    table: Table, store: KeptStore, segment: int, *, why: FillReason = FillReason.DEMAND, have: int | None = None
) -> None:
    size = store.spec.sizes[segment]
    table.on_message(verifier.Progress(store.number, segment, size if have is None else have, have is None, why))


def test_life_of_a_store(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    store = table.open_folder(KEY, folder, source())
    assert [type(message) for message in table.sent] == [verifier.OpenFolder, proto.OpenStore]
    assert (folder / "epoch").exists(), "noted before the first byte is written"
    for segment in range(len(store.spec.sizes)):
        finish(table, store, segment, why=[FillReason.DEMAND, FillReason.AHEAD, FillReason.PREFETCH][segment % 3])
    counters = store.counters
    assert store.complete
    assert counters.demand + counters.ahead + counters.prefetch == store.total
    table.on_message(proto.Fetched(store.number, 10))
    assert counters.fetched == 10
    assert (folder / "epoch").exists()
    table.write_out()
    assert not (folder / "epoch").exists()
    table.close(store)
    assert table.said(proto.CloseStore) == [proto.CloseStore(store.number)]
    assert table.said(verifier.CloseStore) == [verifier.CloseStore(store.number)]
    table.on_message(verifier.Closed(store.number))
    assert not table.written, "it is on the disk"


def test_what_a_closed_store_still_hears(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    """Its worker may finish a segment, or all of them, after the close: it is not asked anything about it."""
    store = table.open_folder(KEY, folder, source())
    table.close(store)
    assert table.said(verifier.CloseStore) == [verifier.CloseStore(store.number)]
    for segment in range(len(store.spec.sizes)):
        finish(table, store, segment)
    table.on_message(proto.Failed(store.number, 0, "x"))
    assert not table.written, "the verifier may be writing"
    table.on_message(verifier.Closed(store.number))
    assert (folder / "epoch").exists()
    table.write_out()
    assert not (folder / "epoch").exists()


def test_a_sync_of_before_says_nothing_of_now(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    first = table.open_folder(KEY, folder, source())
    table.close(first)
    table.on_message(verifier.Closed(first.number))
    second = table.open_folder(KEY, folder, source())
    table.write_out()
    assert (folder / "epoch").exists(), "the second one writes"
    table.close(second)
    table.on_message(verifier.Closed(second.number))
    table.write_out()
    assert not (folder / "epoch").exists()


def test_two_on_their_way_to_the_disk(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    """The first one says nothing of what was written for the second."""
    first = table.open_folder(KEY, folder, source())
    table.close(first)
    second = table.open_folder(KEY, folder, source())
    table.close(second)
    table.on_message(verifier.Closed(first.number))
    table.write_out()
    assert (folder / "epoch").exists()
    table.on_message(verifier.Closed(second.number))
    table.write_out()
    assert not (folder / "epoch").exists()


@pytest.mark.parametrize("complete", [True, False])
def test_what_the_disk_has_lost(complete: bool, table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    """It is never settled, however many syncs succeed later, until it is begun anew."""
    store = table.open_folder(KEY, folder, source())
    if complete:
        for segment in range(len(store.spec.sizes)):
            finish(table, store, segment)
        epoch.new_era()
        table.write_out(written=False)
        assert not store.synced
    else:
        epoch.new_era()
    for number in range(2):
        table.close(store)
        table.on_message(verifier.Closed(store.number))
        table.write_out()
        assert (folder / "epoch").exists()
        if number:
            break
        with pytest.raises(FormatError, match="may have lost data"):
            load_folder(str(folder), os.geteuid())
        store = table.open(KEY, load_folder(str(folder), os.geteuid(), mounted=True))
        table.write_out()
        table.look()
    assert not table.discarded
    restore(str(folder), os.geteuid(), os.geteuid())
    store = table.open_folder(KEY, folder, source())
    table.close(store)
    table.on_message(verifier.Closed(store.number))
    table.write_out()
    assert not (folder / "epoch").exists()


def test_one_blob_of_many_images_is_open_once(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    stores = [table.open_folder(KEY, folder, source()) for _ in range(30)]
    assert len({store.number for store in stores}) == 1
    assert len(stores[0].sources.files) == 1
    assert not table.said(proto.AddSource)
    for store in stores[1:]:
        table.close(store)
    assert not table.said(proto.CloseStore), "somebody has it open yet"
    table.close(stores[0])


def test_copies_of_a_blob_are_sources_up_to_what_one_message_takes(
    table: Table, folder: Path, source: Callable[..., Fd]
) -> None:
    for number in range(30):
        store = table.open_folder(KEY, folder, source(f"copy{number}"))
    table.introduce_all()
    assert table.lent == len(store.sources.files) + 2 > 4
    assert table.lent <= proto.MAX_FDS


def test_copies_that_others_brought_before_are_in_nobodys_way(
    table: Table, folder: Path, source: Callable[..., Fd]
) -> None:
    """They may all be wrong: the last one is always asked, also for who waits already."""
    for number in range(30):
        store = table.open_folder(KEY, folder, source(f"wrong{number}"))
    table.wait(store, 0, 4096, Reader())
    before, right = len(store.sources.files), source("right")
    identity = statx.identity(right.fd)
    table.sent.clear()
    table.open_folder(KEY, folder, right)
    assert [statx.identity(fd.fd) for fd in store.sources.files][-1] == identity
    assert len(store.sources.files) == before
    kinds = [type(message) for message in table.sent]
    assert kinds == [proto.CloseStore, proto.OpenStore, proto.Fill]


def test_servers_that_others_named_before_are_in_nobodys_way(table: Table, folder: Path) -> None:
    for number in range(30):
        store = table.open_folder(KEY, folder)
        table.add_source(store, Registry(host=f"r{number}", repo="x"))
    assert store.sources.remotes[-1] == Registry(host="r29", repo="x")
    assert len(store.sources.remotes) < 30


def test_other_files_in_the_place_of_those_that_are_in_use(
    table: Table, folder: Path, source: Callable[..., Fd]
) -> None:
    """Nobody would fill them, or answer those who read them."""
    table.open_folder(KEY, folder, source())
    (folder / "00001").rename(folder / "away")
    (folder / "00001").touch()
    before = len(descriptors())
    with pytest.raises(ServiceError, match="is in use"):
        table.open_folder(KEY, folder, source("another"))
    assert len(descriptors()) == before


def test_no_descriptor_is_lost(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    before = len(descriptors())
    for number in range(20):
        table.open_folder(KEY, folder, source(f"copy{number % 4}"))
    table.introduce_all()
    for _ in range(20):
        opened = table.opened(KEY)
        assert opened is not None
        table.close(opened)
    assert len(descriptors()) == before


def test_a_failure_makes_it_look_for_another_copy(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    looks = []
    store = table.open_folder(KEY, folder, source())
    store.reopen = lambda: looks.append(1)
    reader = Reader()
    table.wait(store, 0, 100, reader)
    table.on_message(proto.Failed(store.number, 0, "corrupt"))
    assert reader.answers == [False]
    assert looks == [1]
    table.on_message(proto.Failed(store.number, 0, "no room", full=True))
    assert looks == [1], "no copy helps against that"
    assert (store.counters.failures, store.counters.last_error) == (2, "no room")


def test_until_its_blob_is_found_readers_wait(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    store = table.open_folder(KEY, folder, pending=True)
    reader = Reader()
    table.wait(store, 1, 4096, reader)
    table.prefetch(store, True)
    table.introduce_all()
    assert not table.said(proto.Fill)
    assert not table.said(proto.Prefetch)
    table.add_source(store, source())
    table.sourced(store)
    assert table.said(proto.Fill) == [proto.Fill(store.number, 1, 4096)]
    assert table.said(proto.Prefetch) == [proto.Prefetch(store.number, True)]
    assert not reader.answers


def test_a_blob_that_is_found_when_nobody_wants_it_any_more(
    table: Table, folder: Path, source: Callable[..., Fd]
) -> None:
    """Unmounted while it was looked for: the worker has forgotten the store, and hears no more of it."""
    store = table.open_folder(KEY, folder, pending=True)
    table.prefetch(store, True)
    table.close(store)
    found = source()
    table.add_source(store, found)
    table.sourced(store)
    assert not table.said(proto.AddSource)
    assert not table.said(proto.Prefetch)
    with pytest.raises(ValueError, match="closed"):
        _ = found.fd


def test_who_joins_a_pending_store_with_a_blob_ends_the_wait(
    table: Table, folder: Path, source: Callable[..., Fd]
) -> None:
    first = table.open_folder(KEY, folder, pending=True)
    table.wait(first, 0, 4096, Reader())
    assert table.open_folder(KEY, folder, source()) is first
    assert table.said(proto.Fill) == [proto.Fill(first.number, 0, 4096)]


def test_a_sync_says_nothing_of_what_came_after_it_was_emptied(
    table: Table, folder: Path, source: Callable[..., Fd]
) -> None:
    store = table.open_folder(KEY, folder, source())
    for segment in range(len(store.have)):
        finish(table, store, segment)
    store.suspect, store.barred = True, KernelError("lost")
    asked, table.written = table.written, []
    for done in asked:
        done(True)
    assert not store.synced
    store.empty()
    table.admit(store)
    for segment in range(len(store.have)):
        finish(table, store, segment)
    for done in asked:
        done(True)
    assert not store.synced
    assert (folder / "epoch").exists()
    table.write_out()
    assert store.synced


def test_nobody_is_admitted_to_what_is_suspect(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    store, reader = table.open_folder(KEY, folder, source()), Reader()
    store.suspect, store.barred = True, KernelError("lost")
    table.sent.clear()
    table.admit(store)
    table.wait(store, 0, 4096, reader)
    assert reader.numbers == [errno.EIO]
    table.on_no_verifier()
    table.show_all()
    assert not table.sent
    store.empty()
    table.admit(store)
    assert [type(message) for message in table.sent] == [verifier.OpenFolder]


@pytest.mark.parametrize("when", ["before the close", "after it"])
def test_a_verifier_that_dies(when: str, table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    """It writes no more: nobody waits until it says so."""
    store = table.open_folder(KEY, folder, source())
    if when == "before the close":
        table.on_no_verifier()
        table.close(store)
    else:
        table.close(store)
        assert table.settling.closing
        table.on_no_verifier()
    assert not table.settling.closing
    assert (folder / "epoch").exists()
    table.write_out()
    assert not (folder / "epoch").exists()


def test_a_store_that_was_complete_as_it_was_opened(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    """But was not settled."""
    store = table.open_folder(KEY, folder, source())
    for number, size in enumerate(store.spec.sizes):
        os.truncate(folder / f"{number:05d}", size)
    table.close(store)
    store = table.open_folder(KEY, folder, source())
    assert store.complete
    assert not store.synced
    table.write_out()
    assert store.synced
    assert not (folder / "epoch").exists()


def test_nothing_is_settled_that_is_about_to_be_opened(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    store = table.open_folder(KEY, folder, source())
    with table.settling.opening(KEY):
        table.close(store)
        table.on_message(verifier.Closed(store.number))
        table.write_out()
        assert (folder / "epoch").exists(), "it was noted for the one that opens it now"


def test_a_folder_that_cannot_be_settled_is_no_error(
    table: Table, folder: Path, source: Callable[..., Fd], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = table.open_folder(KEY, folder, source())
    table.close(store)

    def read_only(path: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    monkeypatch.setattr(os, "unlink", read_only)
    table.on_message(verifier.Closed(store.number))
    table.write_out()
    assert (folder / "epoch").exists()


def test_a_full_disk_postpones_the_prefetch(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    store = table.open_folder(KEY, folder, source())
    table.prefetch(store, True)
    table.on_message(proto.Failed(store.number, 3, "no room", full=True))
    (call,) = table.postponed
    call()
    assert table.said(proto.Prefetch) == [proto.Prefetch(store.number, True)] * 2
    table.close(store)
    call()
    assert len(table.said(proto.Prefetch)) == 2, "it is closed"


def test_a_new_worker_is_told_everything(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    store = table.open_folder(KEY, folder, source())
    table.prefetch(store, True)
    readers = [Reader() for _ in range(3)]
    table.wait(store, 1, 4096, readers[0])
    table.wait(store, 1, 8192, readers[1])
    table.wait(store, 2, 4096, readers[2])
    finish(table, store, 2)
    table.sent.clear()
    table.introduce_all()
    assert table.sent == [
        proto.OpenStore(store.number, "4", True),
        proto.Fill(store.number, 1, 8192),
        proto.Prefetch(store.number, True),
    ]
    finish(table, store, 1, have=5000)
    assert [reader.answers for reader in readers] == [[True], [], [True]]
    finish(table, store, 1)
    assert readers[1].answers == [True]
    assert [reader.completions for reader in readers] == [0, 1, 1]


def waiting(table: Table, store: KeptStore, *segments: int) -> list[Reader]:
    readers = [Reader() for _ in segments]
    for segment, reader in zip(segments, readers, strict=True):
        table.wait(store, segment, 4096, reader)
    return readers


def test_nobody_waits_for_longer_than_a_store_may_bring_nothing(
    table: Table, folder: Path, source: Callable[..., Fd]
) -> None:
    store, looks = table.open_folder(KEY, folder, source()), []
    store.reopen = lambda: looks.append(1)
    readers = waiting(table, store, 0, 1, 0, 1, 2)
    table.on_message(proto.Postponed(store.number, 0, "the server is away"))
    table.ticking.wait(PATIENCE - TICK)
    assert not any(reader.answers for reader in readers)
    table.introduce_all()  # another worker does not make them wait longer
    table.ticking.wait(2 * TICK)
    assert all(reader.answers == [False] for reader in readers)
    assert table.said(proto.Unwanted) == [proto.Unwanted(store.number)]
    assert store.counters.last_error == f"nothing came for {PATIENCE} s: the server is away"
    assert store.counters.failures == 3
    table.on_message(proto.Postponed(store.number, 0, "the server is away"))
    assert not store.counters.waiting_for, "nobody waits"
    assert not table.ticking.timers, "nobody waits: nothing runs"
    assert len(table.stalls) == 1
    assert looks == [1], "there may be a copy elsewhere"


def test_a_stalled_store_is_asked_now_and_then_and_comes_back(
    table: Table, folder: Path, source: Callable[..., Fd]
) -> None:
    store = table.open_folder(KEY, folder, source())
    waiting(table, store, 0)
    table.ticking.wait(PATIENCE)
    table.sent.clear()
    assert [reader.answers for reader in waiting(table, store, 0, 1)] == [[False], [False]]
    assert not table.sent, "it is not asked for those who do not wait"
    table.ticking.wait(REST)
    trial, other = waiting(table, store, 0, 1)
    assert table.said(proto.Fill) == [proto.Fill(store.number, 0, 4096), proto.Fill(store.number, 1, 4096)]
    table.ticking.wait(TRIAL + TICK)
    assert trial.answers == other.answers == [False]
    table.ticking.wait(REST)
    (trial,) = waiting(table, store, 0)
    finish(table, store, 0, have=5000)
    assert trial.answers == [True]
    (reader,) = waiting(table, store, 1)
    table.ticking.wait(PATIENCE - TICK)
    assert not reader.answers, "it has all its time again"


def test_bytes_that_come_after_all_bring_it_back(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    """What was asked for before is under way still."""
    store = table.open_folder(KEY, folder, source())
    waiting(table, store, 0)
    table.ticking.wait(PATIENCE)
    finish(table, store, 5, why=FillReason.PREFETCH)
    assert waiting(table, store, 1)[0].answers == [False], "nobody knows whether that helps readers"
    finish(table, store, 0)
    (reader,) = waiting(table, store, 1)
    table.ticking.wait(PATIENCE - TICK)
    assert not reader.answers, "it has all its time again"
    finish(table, store, 1)
    assert reader.answers == [True]


def test_what_nobody_waits_for_is_no_progress(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    """Prefetch goes on; the one segment that somebody waits for does not come."""
    store = table.open_folder(KEY, folder, source())
    (reader,) = waiting(table, store, 0)
    for segment in range(1, 5):
        table.ticking.wait(PATIENCE / 4)
        finish(table, store, segment, why=FillReason.PREFETCH)
    table.ticking.wait(TICK)
    assert reader.answers == [False]


def test_what_somebody_waits_for_is_progress_for_all(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    """There are many, and they have to wait for their turns; but not for ever."""
    store = table.open_folder(KEY, folder, source())
    (reader,) = waiting(table, store, 0)
    began = table.ticking.time
    while not reader.answers:
        (other,) = waiting(table, store, 1)
        table.ticking.wait(PATIENCE - TICK)
        finish(table, store, 1)
        assert other.answers[-1] is True
        store.have[1], store.left = 0, store.left + 1  # so that it can be brought once more
    assert table.ticking.time - began > 2 * PATIENCE
    assert table.ticking.time - began <= (MOST + 1) * PATIENCE
    assert reader.answers == [False]
    assert not store.clock.stalled
    assert store.counters.last_error == f"nothing came for {MOST * PATIENCE} s"


def test_stores_have_their_own_time(table: Table, folder: Path, source: Callable[..., Fd], tmp_path: Path) -> None:
    other_folder = tmp_path / "other"
    shutil.copytree(folder, other_folder)
    one, two = table.open_folder(KEY, folder, source()), table.open_folder("cd" * 32, other_folder, source("two"))
    (first,) = waiting(table, one, 0)
    table.ticking.wait(PATIENCE / 2)
    (second,) = waiting(table, two, 0)
    assert table.ticking.timers == 1
    table.ticking.wait(PATIENCE / 2)
    assert (first.answers, second.answers) == ([False], [])
    table.ticking.wait(PATIENCE / 2)
    assert second.answers == [False]


def test_readers_of_a_store_that_is_closed_are_nobodys(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    """The kernel has failed their reads when it closed the object."""
    store = table.open_folder(KEY, folder, source())
    (reader,) = waiting(table, store, 0)
    table.close(store)
    table.ticking.wait(2 * PATIENCE)
    assert not reader.answers
    assert not table.ticking.timers


def test_a_store_that_may_have_lost_data_is_not_opened(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    (folder / "epoch").write_text("of another boot")
    with pytest.raises(FormatError, match="may have lost data"):
        table.open_folder(KEY, folder)
    restore(str(folder), os.geteuid(), os.geteuid())
    assert not table.open_folder(KEY, folder, source()).complete


def test_what_was_set_aside_goes_when_it_is_not_needed_any_more(
    table: Table, folder: Path, source: Callable[..., Fd]
) -> None:
    store = table.open_folder(KEY, folder, source())
    table.close(store)
    table.on_message(verifier.Closed(store.number))
    table.write_out()
    assert not table.discarded, "segments are missing"
    store = table.open_folder(KEY, folder, source())
    for segment in range(len(store.spec.sizes)):
        finish(table, store, segment)
    table.write_out()
    assert table.discarded == [str(folder / "old")]


def test_what_a_verifier_finds_there_counts(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    """A segment that was completed between the keeper's look and the verifier's is reported by nobody else."""
    store = table.open_folder(KEY, folder, source())
    for segment in range(1, len(store.spec.sizes)):
        finish(table, store, segment)
    reader = Reader()
    table.wait(store, 0, 4096, reader)
    assert not table.written
    table.on_no_verifier()
    table.show_all()
    table.on_message(verifier.Present(store.number, "1"))
    assert store.complete
    assert reader.answers == [True]
    assert store.counters.cached == store.spec.sizes[0]
    assert len(table.written) == 1


def test_a_folder_with_a_file_missing(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    (folder / "00002").unlink()
    with pytest.raises(FormatError, match=str(folder)):
        table.open_folder(KEY, folder, source())


LIES = [
    verifier.Progress(99, 0, 0, False, FillReason.DEMAND),
    verifier.Progress(0, 0, 0, False, FillReason.DEMAND),
    verifier.Progress(1, 1000, 0, False, FillReason.DEMAND),
    verifier.Progress(1, 0, 1 << 40, False, FillReason.DEMAND),
    verifier.Progress(1, 0, 4096, True, FillReason.DEMAND),
    verifier.Progress(1, 0, 1 << 20, False, FillReason.DEMAND),
    verifier.Progress(1, -1, 0, False, FillReason.DEMAND),
    verifier.Progress(1, 0, -1, False, FillReason.DEMAND),
    proto.Fetched(1, 1 << 64),
    proto.Fetched(99, 1),
    proto.Failed(1, 1000, "x"),
    proto.Failed(1, 0, "x" * 5000),
    proto.Postponed(1, 1000, "x"),
    verifier.Present(1, "0"),
    verifier.Present(99, "0"),
    verifier.Closed(7),
    verifier.Closed(1),
    proto.Traffic("x" * 5000),
    proto.Traffic("x", requests=-1),
    proto.Traffic("x", seconds=1e308),
]


@pytest.mark.parametrize("lie", LIES, ids=repr)
def test_what_cannot_be_true(
    lie: proto.ToKeeper | verifier.ToKeeper, table: Table, folder: Path, source: Callable[..., Fd]
) -> None:
    store = table.open_folder(KEY, folder, source())
    before = list(store.have)
    with pytest.raises(LieError):
        table.on_message(lie)
    assert store.have == before


def test_segments_that_it_does_not_have(table: Table, folder: Path) -> None:
    store = table.open(KEY, load_folder(str(folder), os.geteuid()))
    with pytest.raises(LieError):
        table.on_message(verifier.Present(store.number, "1" + "0" * 25))
    assert not any(store.have)


@pytest.mark.parametrize(
    "packet",
    [b"", b"{}", b'{"op":"no such thing"}', b'{"op":"openstore","store":1}', b"\xff", b"[" * 60_000,
     b'{"op":"traffic","backend":"x","seconds":1e400}', b'{"op":"traffic","backend":"x","seconds":NaN}'],
)  # fmt: skip
def test_what_is_no_message(packet: bytes, table: Table) -> None:
    with pytest.raises(LieError):
        dispatch.handle(proto.decode_for_keeper, table.of_worker, packet, [])
    with pytest.raises(LieError):
        dispatch.handle(verifier.decode_for_keeper, table.of_verifier, packet, [])


def test_a_worker_does_not_say_how_much_is_there(table: Table, folder: Path) -> None:
    store = table.open_folder(KEY, folder)
    for message in (
        verifier.Progress(store.number, 0, 4096, False, FillReason.DEMAND),
        verifier.Present(store.number, "1"),
        verifier.Closed(store.number),
    ):
        with pytest.raises(LieError):
            dispatch.handle(proto.decode_for_keeper, table.of_worker, verifier.encode(message), [])
    assert not any(store.have)


def test_every_message_has_its_handler(table: Table) -> None:
    assert set(table.of_worker) == set(get_args(proto.ToKeeper))
    assert set(table.of_verifier) == set(get_args(verifier.ToKeeper))


def test_descriptors_are_not_for_the_keeper(table: Table) -> None:
    with Fd(os.memfd_create("x")) as fd, pytest.raises(LieError):
        dispatch.handle(verifier.decode_for_keeper, table.of_verifier, verifier.encode(verifier.Closed(0)), [fd])


messages = st.one_of(
    st.builds(verifier.Progress, st.integers(0, 3), st.integers(-5, 30), st.integers(-10, 1 << 63), st.booleans(),
              st.sampled_from(FillReason)),
    st.builds(proto.Fetched, st.integers(0, 3), st.integers(-1, 1 << 40)),
    st.builds(proto.Failed, st.integers(0, 3), st.integers(-5, 30), st.text(max_size=9), st.text(max_size=9)),
    st.builds(verifier.Closed, st.integers(0, 3)),
    st.builds(proto.Postponed, st.integers(0, 3), st.integers(-5, 30), st.text(max_size=9)),
    st.builds(verifier.Present, st.integers(0, 3), st.from_regex("^[0-9a-f]{1,9}$")),
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.lists(messages, max_size=30), closing=st.integers(0, 30))
def test_a_worker_gone_mad(sent: list[proto.ToKeeper], closing: int, folder: Path, source: Callable[..., Fd]) -> None:
    """It has no privilege, and its word is worth little: each reader is answered once, and the keeper lives."""
    (folder / "epoch").unlink(missing_ok=True)
    table = Table()
    store = table.open_folder(KEY, folder, source())
    readers = [Reader() for _ in range(9)]
    for number, reader in enumerate(readers):
        table.wait(store, number % len(store.have), 4096, reader)
    for number, message in enumerate(sent):
        if number == closing:
            table.ticking.wait(2 * PATIENCE)
            table.close(store)
        with contextlib.suppress(LieError):
            table.on_message(message)
    table.ticking.wait(2 * PATIENCE)
    if table.opened(KEY):
        table.close(store)
    assert [len(reader.answers) for reader in readers] == [1] * 9
    assert all(0 <= have <= size for have, size in zip(store.have, store.spec.sizes, strict=True))


# --- stores that no worker may know of ------------------------------------------------------------------

NOT_NOTED = KernelError("No space left on device: /state/store/x", number=errno.ENOSPC)


def test_a_barred_store_is_not_written_to(table: Table, folder: Path, source: Callable[..., Fd]) -> None:
    """Nothing is said of it to any worker, whatever is asked; readers of what is missing are told why."""
    store = table.open(KEY, load_folder(str(folder), os.geteuid()), pending=True, barred=NOT_NOTED)
    reader = Reader()
    table.prefetch(store, True)
    table.wait(store, 0, 100, reader)
    table.touch(store, 1)
    table.add_source(store, source())
    table.sourced(store)
    table.introduce_all()
    assert (reader.answers, reader.numbers) == ([False], [errno.ENOSPC])
    assert not table.sent
    table.admit(store)
    table.look()
    assert [type(message) for message in table.sent] == [verifier.OpenFolder, proto.OpenStore, proto.Prefetch]
    assert table.lent == 0
    table.wait(store, 0, 100, Reader())
    assert table.said(proto.Fill) == [proto.Fill(store.number, 0, 100)]
    table.admit(store)  # once is enough
    assert len(table.said(verifier.OpenFolder)) == len(table.said(proto.OpenStore)) == 1


def test_a_barred_store_that_is_closed(table: Table, folder: Path) -> None:
    store = table.open(KEY, load_folder(str(folder), os.geteuid()), barred=NOT_NOTED)
    table.close(store)
    table.admit(store)
    assert not table.sent
    assert not table.settling._closing


@pytest.mark.parametrize("kind", [errno.EMFILE, errno.EIO])
def test_no_descriptors_for_a_new_worker(
    kind: int, table: Table, folder: Path, source: Callable[..., Fd], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its readers get EIO, and a while later the worker is told of the store after all."""
    store = table.open_folder(KEY, folder, source())
    waiting, late = Reader(), Reader()
    table.wait(store, 0, 100, waiting)
    table.sent.clear()

    def reopen(_: Fd) -> Fd:
        raise OSError(kind, os.strerror(kind))

    with monkeypatch.context() as patch:
        patch.setattr(Fd, "reopen", reopen)
        table.introduce_all()
        table.wait(store, 0, 100, late)
        table.postponed.pop()()
    assert (waiting.numbers, late.numbers) == ([errno.EIO], [errno.EIO])
    assert not table.sent
    table.postponed.pop()()
    table.wait(store, 0, 100, Reader())
    assert [type(message) for message in table.sent] == [proto.OpenStore, proto.Fill]


def test_no_descriptor_for_a_source(
    table: Table, folder: Path, source: Callable[..., Fd], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = table.open_folder(KEY, folder)

    def dup(_: Fd) -> Fd:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(Fd, "dup", dup)
        table.add_source(store, source())
    assert not table.said(proto.AddSource)
    table.postponed.pop()()
    assert table.said(proto.AddSource) == [proto.AddSource(store.number)]


@pytest.mark.parametrize(("full", "number"), [(True, errno.ENOSPC), (False, errno.EIO)])
def test_what_readers_are_told(
    full: bool, number: int, table: Table, folder: Path, source: Callable[..., Fd]
) -> None:
    store, reader = table.open_folder(KEY, folder), Reader()
    table.wait(store, 0, 100, reader)
    table.on_message(proto.Failed(store.number, 0, "no", full=full))
    assert (reader.answers, reader.numbers) == ([False], [number])


# --- what turns out to be wrong ---


@pytest.fixture
def cut(table: Table, folder: Path, source: Callable[..., Fd]) -> KeptStore:
    """A complete store whose segment 1 is wrong from byte 4096 on, and is to be cut there."""
    store = table.open_folder(KEY, folder, source())
    for segment, size in enumerate(store.spec.sizes):
        table.on_message(verifier.Progress(store.number, segment, size, True, proto.FillReason.DEMAND))
    assert store.complete
    table.sent.clear()
    table.shorten(store, 1, 4096)
    return store


def test_what_is_wrong_is_cut_and_asked_for_again(table: Table, cut: KeptStore) -> None:
    assert not (cut.complete or cut.synced)
    reader = Reader()
    table.wait(cut, 1, 8192, reader)
    assert table.said(verifier.Cut) == [verifier.Cut(cut.number, 1, 4096)]
    table.on_message(verifier.Shortened(cut.number, 1, 4096))
    closed, opened, fill = table.sent[-3:]
    assert (closed, fill) == (proto.CloseStore(cut.number), proto.Fill(cut.number, 1, 8192))
    assert int(opened.filled, 16) == (1 << len(cut.have)) - 1 - 2
    assert not reader.answers
    size = cut.size(1)
    table.on_message(verifier.Progress(cut.number, 1, size, True, proto.FillReason.DEMAND))
    assert reader.answers == [True]
    assert cut.complete


def test_what_a_segment_had_before_it_is_cut_lets_nobody_go_on(table: Table, cut: KeptStore) -> None:
    """A worker may ask the verifier how far a segment is at any moment."""
    reader = Reader()
    table.wait(cut, 1, 8192, reader)
    for have in (8192, cut.size(1)):
        done = have == cut.size(1)
        table.on_message(verifier.Progress(cut.number, 1, have, done, proto.FillReason.DEMAND))
    assert (reader.answers, reader.completions, cut.have[1], cut.complete) == ([], 0, 4096, False)
    table.on_message(verifier.Shortened(cut.number, 1, 4096))
    assert table.said(proto.Fill)[-1] == proto.Fill(cut.number, 1, 8192)
    table.on_message(verifier.Progress(cut.number, 1, 8192, False, proto.FillReason.DEMAND))
    assert (reader.answers, cut.have[1]) == ([True], 8192)


def test_what_cannot_be_cut_counts_as_before(table: Table, cut: KeptStore) -> None:
    """And no more than before, so who waits is asked for."""
    reader = Reader()
    table.wait(cut, 1, 8192, reader)
    table.on_message(verifier.Shortened(cut.number, 1, 4096, "Read-only file system"))
    assert not (cut.shortening or cut.complete)
    assert table.said(proto.Fill)[-1] == proto.Fill(cut.number, 1, 8192)
    table.on_message(verifier.Progress(cut.number, 1, cut.size(1), True, proto.FillReason.DEMAND))
    assert reader.answers == [True]
    assert cut.complete


def test_what_was_written_before_it_is_cut(table: Table, cut: KeptStore) -> None:
    """Does not count: nobody is let go by it, and nobody is told that it is complete."""
    reader, size = Reader(), cut.size(1)
    table.wait(cut, 1, size, reader)
    table.on_message(verifier.Progress(cut.number, 1, size, True, proto.FillReason.DEMAND))
    assert not reader.answers
    table.on_message(verifier.Shortened(cut.number, 1, 4096))
    assert cut.have[1] == 4096
    assert not int(table.said(proto.OpenStore)[-1].filled, 16) & 2


def test_a_new_verifier_cuts_it(table: Table, cut: KeptStore) -> None:
    """Its segment is as long as before, and does not count all the same."""
    table.on_no_verifier()
    table.show_all()
    everything = (1 << len(cut.have)) - 1
    table.on_message(verifier.Present(cut.number, f"{everything:x}"))
    assert cut.have[1] == 4096
    assert table.said(verifier.Cut) == [verifier.Cut(cut.number, 1, 4096)] * 2
    table.on_message(verifier.Shortened(cut.number, 1, 4096))
    assert not cut.shortening


@pytest.mark.parametrize(("segment", "have"), [(0, 4096), (1, 0), (1, 8192), (10**6, 4096)])
def test_what_was_not_to_be_cut(segment: int, have: int, table: Table, cut: KeptStore) -> None:
    with pytest.raises(LieError):
        table.on_message(verifier.Shortened(cut.number, segment, have))


@pytest.mark.parametrize(
    ("segment", "size", "good", "unknown"),
    [(0, 1 << 30, 0, 0), (0, 4096, 4097, 0), (0, 4096, 4096, 4097), (10**6, 0, 0, 0)],
)
def test_what_no_look_can_find(
    segment: int, size: int, good: int, unknown: int, table: Table, cut: KeptStore
) -> None:
    table.on_message(verifier.Checked(0, cut.number, segment, size, good, unknown, 7))  # of a look that is over
    ticket = table.scrub.listen(0)
    with pytest.raises(LieError):
        table.on_message(verifier.Checked(ticket, cut.number, segment, size, good, unknown, 7))


def test_of_each_segment_is_heard_once(table: Table, cut: KeptStore) -> None:
    """Who repeats it could fill the keeper's memory; so could who speaks when nobody listens."""
    heard = table.scrub.heard
    for ticket in range(3):
        table.on_message(verifier.Checked(ticket, cut.number, 0, 0, 0, 0, 7))
        table.on_message(verifier.Scrubbed(ticket, cut.number))
        table.scrub.on_no_verifier()
    assert heard.empty()
    ticket = table.scrub.listen(1)
    table.on_message(verifier.Checked(ticket, cut.number, 1, 0, 0, 0, 7))
    for segment in (0, 1):
        with pytest.raises(LieError):
            table.on_message(verifier.Checked(ticket, cut.number, segment, 0, 0, 0, 7))
    for _ in range(2):
        table.on_message(verifier.Scrubbed(ticket, cut.number))
    assert heard.qsize() == 2


def test_a_worker_cannot_fill_the_log(table: Table, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With what nobody waits for."""
    store = table.open_folder(KEY, folder)
    for number in range(100):
        table.on_message(proto.Failed(store.number, 0, f"reason {number}"))
    assert "".join(capfd.readouterr()).count("segment not filled") == 1
    table.ticking.time += 2
    table.on_message(proto.Failed(store.number, 0, "another"))
    assert "".join(capfd.readouterr()).count("segment not filled") == 1
