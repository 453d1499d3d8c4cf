"""The keeper's hold on its worker: a real process, killed and started again, and one that cannot live."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from nydus_erofs.fscache.config.backend import HttpProxy
from nydus_erofs.fscache.keeper.children import dispatch
from nydus_erofs.fscache.keeper.children import spawn as spawning
from nydus_erofs.fscache.keeper.children import worker_link as workerlink
from nydus_erofs.fscache.keeper.children.traffic import TrafficTable
from nydus_erofs.fscache.keeper.children.worker_link import WorkerLink
from nydus_erofs.fscache.keeper.stores.table import StoreTable
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto import worker as proto
from tests.kit.processes import descriptors

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
UID = 60987


class Watched(WorkerLink):
    def __init__(self, uid: int = UID) -> None:
        self.started: asyncio.Queue[int] = asyncio.Queue()
        self.hopeless = asyncio.Event()
        super().__init__(
            proto.Start(uid, proto.Limits(2, 1, 1, 60, 0), "/nonexistent"),
            lambda: self.started.put_nowait(self.pid),
            self.hopeless.set,
        )
        self.listen(
            dispatch.table(
                StoreTable(self.send, lambda *_: None, lambda *_: None, lambda _: None),
                TrafficTable(),
                self.on_answer,
            )
        )


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
        assert not link.hopeless.is_set()

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
    """It is started again and again, more and more slowly; and nobody is left waiting for it."""
    monkeypatch.setattr(workerlink, "_GIVE_UP", 0.5)
    monkeypatch.setattr(workerlink, "_LONGEST_PAUSE", 0.2)

    async def work(link: Watched) -> None:
        await link.hopeless.wait()
        assert link.restarts >= 1
        link.send(proto.Fill(1, 1, 1))  # to nobody, or to one about to die

    async def main() -> None:
        await run(work)(Watched(uid=-7))

    asyncio.run(main())
    assert "worker ended" in "".join(capfd.readouterr())


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
