"""One descriptor that sees whatever the disk loses, and what is asked of it."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from nydus_erofs.fscache.keeper import disk as disks
from nydus_erofs.fscache.keeper.disk import Disk
from nydus_erofs.fscache.keeper.stores import epoch
from tests.kit.processes import run_to_the_end


class Synced:
    """Stands for the sync: writes down what it was called with, in a file, as it is called in a child."""

    def __init__(self, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log, self.error = log, 0
        log.touch()
        monkeypatch.setattr(disks, "sync_filesystem", self)

    def __call__(self, fd: int) -> None:
        with self.log.open("a") as log:
            log.write(f"{os.fstat(fd).st_ino}\n")
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    @property
    def inodes(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()]


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Synced:
    return Synced(tmp_path / "log", monkeypatch)


def test_one_sync_for_all_who_asked_before_it(synced: Synced, tmp_path: Path) -> None:
    told: list[tuple[str, bool]] = []

    async def ask() -> None:
        disk = Disk(str(tmp_path))
        disk.write_out(lambda ok: told.append(("first", ok)))
        await asyncio.sleep(0)  # its sync is under way
        for name in ("second", "third"):
            disk.write_out(lambda ok, name=name: told.append((name, ok)))  # type: ignore[misc]
        await disk.drained()

    run_to_the_end(ask())
    assert told == [("first", True), ("second", True), ("third", True)]
    assert synced.inodes == [tmp_path.stat().st_ino] * 2


def test_what_is_lost_ends_an_era(synced: Synced, tmp_path: Path) -> None:
    told: list[bool] = []
    synced.error = errno.EIO
    before = epoch.era()

    async def ask() -> None:
        disk = Disk(str(tmp_path))
        disk.write_out(told.append)
        await disk.drained()
        assert epoch.era() != before
        synced.error, now = 0, epoch.era()
        disk.write_out(told.append)
        await disk.drained()
        assert epoch.era() == now

    run_to_the_end(ask())
    assert told == [False, True]


def test_what_cannot_be_tried_is_not_lost(synced: Synced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(disks, "_AGAIN", 0.1)
    fork, before = os.fork, epoch.era()

    def none_left() -> int:
        monkeypatch.setattr(os, "fork", fork)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", none_left)

    async def ask() -> None:
        disk = Disk(str(tmp_path))
        disk.write_out(told.append)
        await disk.drained()

    run_to_the_end(ask())
    assert told == [True]
    assert epoch.era() == before
    assert len(synced.inodes) == 1


def test_what_can_wait_is_written_at_the_end_at_the_latest(synced: Synced, tmp_path: Path) -> None:
    told: list[bool] = []

    async def ask() -> None:
        disk = Disk(str(tmp_path))
        for _ in range(3):
            disk.write_out_later(told.append)
        await asyncio.sleep(0.05)
        assert not told
        await disk.drained()

    run_to_the_end(ask())
    assert told == [True] * 3
    assert len(synced.inodes) == 1
