"""The verifier's threads and sockets: an honest worker, several at once, and one that keeps no rule."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nydus_erofs.fscache.kernel import channel
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto import verifier as proto
from nydus_erofs.fscache.proto.worker import FillReason
from nydus_erofs.fscache.verifier.service import Verifier
from nydus_erofs.fscache.worker.fill import Fill
from nydus_erofs.fscache.worker.offers import Connection, Link
from tests.kit.stores import MadeStore, MakeStore, OpenImages

pytestmark = pytest.mark.timeout(60)
CONNECTIONS = 4


class Running:
    """A verifier in a thread, as the keeper knows it."""

    def __init__(self) -> None:
        self.sock, theirs = channel.pair()
        self.sock.settimeout(30)
        self.verifier = Verifier(theirs, CONNECTIONS)
        self._thread = threading.Thread(target=self.verifier.run)
        self._thread.start()

    def tell(self, message: proto.ToVerifier, *fds: Fd) -> None:
        channel.send(self.sock, proto.encode(message), fds)
        channel.close(fds)

    def said(self) -> proto.ToKeeper:
        packet, fds = channel.receive(self.sock, proto.MAX_MESSAGE)
        assert not fds
        return proto.decode_for_keeper(packet)

    def link(self) -> Fd:
        ours, theirs = channel.pair()
        self.tell(proto.Connect(), Fd(theirs.detach()))
        return Fd(ours.detach())

    def open_folder(self, number: int, folder: Path) -> None:
        plan, place = os.open(folder / "plan", os.O_RDONLY), os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.tell(proto.OpenFolder(number), Fd(plan), Fd(place))

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        self.sock.close()
        assert not self._thread.is_alive()


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    yield running
    running.close()


@pytest.fixture
def made(open_image: OpenImages, make_store: MakeStore, running: Running) -> MadeStore:
    """A store that the verifier knows by the number 1."""
    made = make_store(open_image())
    running.open_folder(1, made.folder)
    assert running.said() == proto.Present(1, "0")
    return made


def fill(made: MadeStore, connection: Connection, segment: int, seen: list[int]) -> None:
    Fill(made.store, 1, segment, connection, lambda: FillReason.DEMAND, seen.append).run()


def test_the_keeper_hears_how_far_it_is(running: Running, made: MadeStore) -> None:
    connection, seen = Link(running.link()).connect(), list[int]()
    fill(made, connection, 0, seen)
    size = made.store.plan.segments[0].size
    heard = [running.said() for _ in seen]
    assert [news.have for news in heard if isinstance(news, proto.Progress)] == seen
    assert heard[-1] == proto.Progress(1, 0, size, True, FillReason.DEMAND)
    fill(made, connection, 0, seen)  # nothing to do, and it is said all the same
    assert running.said() == heard[-1]
    running.tell(proto.CloseStore(1))
    assert running.said() == proto.Closed(1)


def test_threads_of_a_worker_do_not_wait_for_each_other(running: Running, made: MadeStore) -> None:
    link = Link(running.link())
    segments = range(len(made.store.plan.segments))
    connections = [link.connect() for _ in range(CONNECTIONS)]

    def work(number: int) -> None:
        for segment in segments[number::CONNECTIONS]:
            fill(made, connections[number], segment, [])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    done = 0
    while done < len(segments):
        news = running.said()
        done += isinstance(news, proto.Progress) and news.done
    for thread in threads:
        thread.join(20)
    assert all(made.path(n).stat().st_size == made.store.plan.segments[n].size for n in segments)


def test_no_more_connections_than_a_worker_needs(running: Running) -> None:
    link = running.link()
    sock = socket.socket(fileno=link.steal())
    with sock:
        for _ in range(CONNECTIONS):
            channel.send(sock, b"!")
            _, fds = channel.receive(sock, 1)
            assert len(fds) == 2
            channel.close(fds)
        with pytest.raises(ConnectionError):
            channel.send(sock, b"!")
            channel.receive(sock, 1)
            raise ConnectionError  # it was closed in between


def test_a_closed_store_takes_nothing(running: Running, made: MadeStore) -> None:
    connection = Link(running.link()).connect()
    running.tell(proto.CloseStore(1))
    assert running.said() == proto.Closed(1)
    verdict = connection.ask(proto.Piece(1, 0, 0, 1, FillReason.DEMAND), [b"x" * 5000])
    assert verdict.error == "the store is closed"
    assert made.path(0).stat().st_size == 0


def test_what_is_said_of_a_segment_is_said_in_the_order_in_which_it_became_so(
    running: Running, made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who hears that it has been cut may believe all that he hears of it afterwards."""
    connection, tell, cut = Link(running.link()).connect(), running.verifier._tell, threading.Event()

    def late(message: proto.ToKeeper) -> None:
        if isinstance(message, proto.Progress):
            running.tell(proto.Cut(1, 0, 0))
            cut.wait(1)
        tell(message)
        if isinstance(message, proto.Shortened):
            cut.set()

    monkeypatch.setattr(running.verifier, "_tell", late)
    connection.ask(proto.Piece(1, 0, 0, 0, FillReason.DEMAND), [])
    assert [type(running.said()) for _ in range(2)] == [proto.Progress, proto.Shortened]


def test_a_store_that_cannot_be_opened(running: Running, made: MadeStore) -> None:
    """Its plan is none: nothing is there, nothing is taken, and the others are served."""
    broken = made.folder.parent / "broken"
    broken.mkdir()
    (broken / "plan").write_bytes(b"no plan")
    running.open_folder(2, broken)
    assert running.said() == proto.Present(2, "0")
    connection = Link(running.link()).connect()
    assert connection.ask(proto.Piece(2, 0, 0, 0, FillReason.DEMAND), []).error == "the store is closed"
    running.tell(proto.Cut(2, 0, 0))
    assert running.said() == proto.Shortened(2, 0, 0, "the store is not open")
    running.tell(proto.Scrub(7, 2, "ab" * 32, 0, 1 << 20))
    assert running.said() == proto.Scrubbed(7, 2, proto.NO_PLAN)
    running.tell(proto.CloseStore(2))
    assert running.said() == proto.Closed(2)
    fill(made, connection, 0, [])
    assert isinstance(running.said(), proto.Progress)


NONSENSE = [
    b"x", b"[]", b'["piece",1,0,0,1]', b'["piece",1,0,0,-1,"demand"]', b'["piece",1,0,0,5000,"demand"]',
    b'["piece",1,0,0,1,"for fun"]', b'[1,0,0,1,"demand"]', b'["proof",1,0]', b'["proof",1,99999999999]',
    b'{"op":"progress"}', b"[" * 60_000, b"x" * 65_536,
]  # fmt: skip


@pytest.mark.parametrize("packet", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_ends_a_connection_and_nothing_else(packet: bytes, running: Running, made: MadeStore) -> None:
    link = Link(running.link())
    bad, good = link.connect(), link.connect()
    channel.send(bad._sock, packet)
    assert channel.receive(bad._sock, 10) == (b"", [])
    fill(made, good, 0, [])
    assert isinstance(running.said(), proto.Progress)


def test_descriptors_end_a_connection(running: Running, made: MadeStore) -> None:
    link = Link(running.link())
    bad, good = link.connect(), link.connect()
    with Fd(os.memfd_create("x")) as fd:
        channel.send(bad._sock, proto.encode(proto.Piece(1, 0, 0, 0, FillReason.DEMAND)), [fd])
    assert channel.receive(bad._sock, 10) == (b"", [])
    fill(made, good, 0, [])


def test_memory_that_is_cut_is_no_bytes(running: Running, made: MadeStore) -> None:
    """A worker may do with its memory what it likes, at any time."""
    connection = Link(running.link()).connect()
    os.ftruncate(connection._memory.fd, 0)
    channel.send(connection._sock, proto.encode(proto.Piece(1, 0, 0, 1, FillReason.DEMAND)))
    packet, _ = channel.receive(connection._sock, proto.MAX_MESSAGE)
    assert proto.decode_verdict(packet).error == "less than it says"
    fill(made, connection, 0, [])
    assert made.path(0).stat().st_size == made.store.plan.segments[0].size


def test_memory_that_changes_while_it_is_looked_at(running: Running, made: MadeStore) -> None:
    """What is written is what was verified: somebody writes to the memory all the time."""
    connection = Link(running.link()).connect()
    stop = threading.Event()

    def scribble() -> None:
        while not stop.is_set():
            os.pwrite(connection._memory.fd, os.urandom(64), 100)

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        whole = dict.fromkeys(range(len(made.store.plan.segments)), b"")
        for number in whole:
            try:
                fill(made, connection, number, [])
            except Exception as error:
                assert "corrupt" in str(error)
    finally:
        stop.set()
        thread.join(20)
    reference = MadeStore(made.store, made.checked, made.folder)
    for number in whole:
        have = made.path(number).read_bytes()
        os.truncate(made.path(number), 0)
        reference.fill(number)
        assert made.path(number).read_bytes().startswith(have)


def test_after_its_worker_comes_the_next(running: Running, made: MadeStore) -> None:
    first = Link(running.link())
    connection = first.connect()
    connection._sock.close()
    first._sock.close()
    fill(made, Link(running.link()).connect(), 0, [])
    assert isinstance(running.said(), proto.Progress)
