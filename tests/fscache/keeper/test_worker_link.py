"""The keeper's hold on its worker: a real process, killed and started again, and one that cannot live."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from nydus_erofs.erofs.errors import FormatError
from nydus_erofs.fscache.config.backend import HttpProxy
from nydus_erofs.fscache.keeper.children import dispatch, hearing, process_link
from nydus_erofs.fscache.keeper.children import spawn as spawning
from nydus_erofs.fscache.keeper.children.traffic import TrafficTable
from nydus_erofs.fscache.keeper.children.worker_link import WorkerLink
from nydus_erofs.fscache.keeper.stores.news import News
from nydus_erofs.fscache.keeper.stores.table import StoreTable
from nydus_erofs.fscache.keeper.ticker import Ticker
from nydus_erofs.fscache.kernel import channel
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto import worker as proto
from tests.kit.processes import descriptors

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
UID = 60987


class Watched(WorkerLink):
    def __init__(self, uid: int = UID) -> None:
        self.started: asyncio.Queue[int] = asyncio.Queue()
        self.ticker = Ticker(asyncio.get_running_loop().call_later)
        super().__init__(
            proto.Start(uid, proto.Limits(2, 1, 1, 0), "/nonexistent"),
            lambda: self.started.put_nowait(self.pid),
            self.ticker,
        )
        stores = StoreTable(
            self.send, lambda *_: None, lambda *_: None, lambda *_: None, lambda _: None, self.ticker, 60
        )
        self.listen(dispatch.of_worker(News(stores), TrafficTable(), self.on_answer))


def run(work: Callable[[Watched], Awaitable[None]]) -> Callable[[Watched], Awaitable[None]]:
    """Run `work(link)` beside the link's own task."""

    async def main(link: Watched) -> None:
        task = asyncio.create_task(link.run())
        try:
            await asyncio.wait_for(work(link), 60)
        finally:
            link.stop()
            await asyncio.wait_for(task, 60)

    return main


def test_killed_workers_are_replaced_at_once() -> None:
    async def work(link: Watched) -> None:
        pids = []
        for _ in range(5):
            pids.append(await link.started.get())
            os.kill(pids[-1], signal.SIGKILL)
        assert len(set(pids)) == 5
        await link.started.get()
        assert link.restarts == 5

    async def main() -> None:
        await run(work)(Watched())

    asyncio.run(main())


def test_a_certificate_that_it_cannot_read_takes_another_worker() -> None:
    """What may be opened is settled when a worker starts."""
    remote = HttpProxy(addr="https://localhost:1", ca_cert_files=["/srv/ca.pem"])

    async def work(link: Watched) -> None:
        first = await link.started.get()
        link.require(remote)
        second = await link.started.get()
        assert second != first
        while not (command := Path(f"/proc/{second}/cmdline").read_bytes()):
            await asyncio.sleep(0.01)  # it is just becoming that program
        start = command.split(b"\0")[-2].decode()
        assert proto.decode_start(start).certificates == remote.ca_cert_files
        assert proto.decode_start(start).kinds == ["http-proxy"]
        link.require(remote)
        await asyncio.sleep(0.1)
        assert (link.pid, link.restarts) == (second, 1)

    async def main() -> None:
        await run(work)(Watched())

    asyncio.run(main())


def test_a_call_outside_its_list_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(spawning, "logger", lambda: SimpleNamespace(error=lambda what, **_: told.append(what)))

    async def work(link: Watched) -> None:
        os.kill(await link.started.get(), signal.SIGSYS)
        await link.started.get()
        assert told == ["a process made a system call that it may not make"]

    async def main() -> None:
        await run(work)(Watched())

    asyncio.run(main())


def test_a_worker_that_cannot_live(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """It is started again and again, more and more slowly."""
    monkeypatch.setattr(process_link, "_FIRST_PAUSE", 0.5)

    async def work(link: Watched) -> None:
        for _ in range(4):
            await link.started.get()
        began = time.monotonic()
        for _ in range(2):
            await link.started.get()
        assert time.monotonic() - began >= 0.5 + 1.0
        link.send(proto.Fill(1, 1, 1))  # to nobody, or to one about to die

    async def main() -> None:
        await run(work)(Watched(uid=-7))

    asyncio.run(main())
    assert "process ended" in "".join(capfd.readouterr())


def test_a_dead_worker_has_a_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have given its socket to somebody who always says one thing more."""
    kept, said = list[socket.socket](), 0
    pair, receive = channel.pair, channel.receive

    def kept_pair() -> tuple[socket.socket, socket.socket]:
        ours, theirs = pair()
        kept.append(theirs.dup())
        return ours, theirs

    def talked_to(sock: socket.socket, size: int, most_fds: int = 16) -> tuple[bytes, list[Fd]]:
        nonlocal said
        if said < 10_000:
            with contextlib.suppress(OSError):
                kept[-1].send(proto.encode(proto.Pong()))
                said += 1
        return receive(sock, size, most_fds)

    monkeypatch.setattr(channel, "pair", kept_pair)

    async def work(link: Watched) -> None:
        os.kill(await link.started.get(), signal.SIGKILL)
        monkeypatch.setattr(channel, "receive", talked_to)
        await link.started.get()
        monkeypatch.setattr(channel, "receive", receive)
        assert said < 1000

    async def main() -> None:
        await run(work)(Watched())

    asyncio.run(main())
    for sock in kept:
        sock.close()


@pytest.mark.parametrize("after", [True, False], ids=["later", "at once"])
def test_a_worker_that_stops(after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While anybody waits for it, it is replaced; the next one is asked the same and answers."""
    monkeypatch.setattr(hearing, "UNBORN", 12.0)  # seconds; enough for it to start

    async def work(link: Watched) -> None:
        first = await link.started.get()
        with Fd(os.memfd_create("x")) as nothing:
            if after:
                with pytest.raises(FormatError):
                    await link.inspect(nothing)
            os.kill(first, signal.SIGSTOP)
            with pytest.raises(FormatError):
                await link.inspect(nothing)
        assert link.restarts >= 1
        assert link.pid != first

    async def main() -> None:
        await run(work)(Watched())

    asyncio.run(main())


def test_a_worker_that_nobody_waits_for_may_be_silent() -> None:
    async def work(link: Watched) -> None:
        os.kill(await link.started.get(), signal.SIGSTOP)
        await asyncio.sleep(hearing.QUIET + hearing.DEAF + 1)
        assert link.restarts == 0

    async def main() -> None:
        await run(work)(Watched())

    asyncio.run(main())


def test_stop_leaves_no_process() -> None:
    async def main() -> None:
        link = Watched()
        task = asyncio.create_task(link.run())
        pid = await asyncio.wait_for(link.started.get(), 60)
        link.stop()
        await asyncio.wait_for(task, 60)
        assert link.pid == 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(main())


def test_messages_to_nobody_close_their_descriptors() -> None:
    async def main() -> None:
        link = Watched()
        before = len(descriptors())
        for _ in range(10):
            link.send(proto.AddSource(1), [Fd(os.memfd_create("x"))])
        assert len(descriptors()) == before

    asyncio.run(main())


def test_more_messages_than_a_socket_holds() -> None:
    """They wait in the keeper, which never blocks; and go with the worker when it dies."""

    async def work(link: Watched) -> None:
        pid = await link.started.get()
        os.kill(pid, signal.SIGSTOP)
        before = len(descriptors())
        for number in range(20_000):
            link.send(proto.Touch(number, number))
        for _ in range(50):
            link.send(proto.AddSource(1), [Fd(os.memfd_create("x"))])
        os.kill(pid, signal.SIGKILL)
        await link.started.get()
        assert len(descriptors()) <= before + 2

    async def main() -> None:
        await run(work)(Watched())

    asyncio.run(main())
