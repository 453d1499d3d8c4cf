"""Making room in the kernel's cache: the files used longest ago go, and nobody waits for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.fscache.keeper.engine import culling


class Device:
    """Culls what it is told to, like the kernel: a file of the working directory."""

    def __init__(self, busy: Sequence[str] = ()) -> None:
        self.culled: list[str] = []
        self.turns: list[int] = []
        self.busy, self.turn = busy, 0

    def command(self, command: bytes) -> None:
        name = command.removeprefix(b"cull ").decode()
        if name in self.busy:
            raise OSError(16, "busy")
        os.unlink(name)
        self.culled.append(name)
        self.turns.append(self.turn)

    async def count_turns(self) -> None:
        while True:
            self.turn += 1
            await asyncio.sleep(0)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with 200 files, D199 used longest ago, and what is none."""
    for number in range(200):
        folder = tmp_path / f"cache/Ierofs,v{number % 3}/@{number % 7:02x}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"D{number}"
        path.touch()
        os.utime(path, (10_000 - number, 10_000 - number))
    (folder / "index").touch()
    return tmp_path


def make_room(device: Any, cache: Path) -> int:
    async def run() -> int:
        counting = asyncio.get_running_loop().create_task(device.count_turns())
        try:
            return await culling.make_room(device, str(cache), 50)
        finally:
            counting.cancel()

    return asyncio.run(run())


def test_the_oldest_go_first_until_there_is_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(busy=("D198",))
    monkeypatch.setattr(culling, "short", lambda root, percent: len(device.culled) < 100)
    assert make_room(device, cache) == 100
    assert device.culled == ["D199", *(f"D{number}" for number in range(197, 98, -1))]
    assert os.getcwd() == "/"
    assert len(set(device.turns)) == 100, "one at a time: others get their turn in between"


def test_all_of_it_is_not_enough(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culling, "short", lambda root, percent: True)
    assert make_room(Device(), cache) == 200
    assert make_room(Device(), cache) == 0
    assert [path.name for path in cache.rglob("*") if path.is_file()] == ["index"]


def test_room_is_short_or_not(tmp_path: Path) -> None:
    assert not culling.short(str(tmp_path), 0)
    assert culling.short(str(tmp_path), 101)
    assert not culling.short(str(tmp_path / "gone"), 101)
