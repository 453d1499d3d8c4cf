"""What the cachefiles engine remembers: the kernel must never find old data under a name that means something new."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_erofs.erofs.errors import KernelError
from nydus_erofs.fscache.keeper import durable
from nydus_erofs.fscache.keeper.engine import culling, disk_table, names
from nydus_erofs.fscache.keeper.engine.names import Cached, Names, Registered
from nydus_erofs.fscache.keeper.images.origin import ImageRequest

BLOCK = 4096
IMAGE = Registered(ImageRequest("/a.meta", ["/blobs"]), True)


def open_names(folder: Path) -> Names:
    return Names(f"{folder}/names.json", f"{folder}/objects.json", lambda key: f"{folder}/{key}")


def claim(known: Names, identity: str, length: int = 10 * BLOCK) -> Cached:
    return asyncio.run(known.claim("volume", {"image": (identity, length)}))["image"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([("A", 10), ("B", 10), ("C", 9), ("D", 12)]),
            st.sampled_from(["", "restart", "forget"]),
            st.booleans(),
        ),
        max_size=10,
    )
)
def test_content_is_never_stale(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[tuple[str, int], str, bool]]
) -> None:
    """The kernel takes what it has as long as an object's size is the same (fs/cachefiles/xattr.c, 6.1); after a
    crash that may be anything that it ever had, whatever it was told since."""
    folder = tmp_path_factory.mktemp("n")
    known = open_names(folder)
    had: list[tuple[str, int]] = []  # (content, size) of everything the kernel ever had
    for (content, blocks), happens, taken in steps:
        if happens == "forget":
            (folder / "objects.json").unlink(missing_ok=True)
        if happens:
            known = open_names(folder)
        if not known.knows_cache:
            had = []  # the engine empties the cache
        size = claim(known, content, blocks * BLOCK).size
        assert size >= blocks * BLOCK
        assert all(old == content for old, its_size in had if its_size == size)
        if taken:  # else the mount failed after all
            had.append((content, size))


def test_what_is_claimed_is_on_disk(tmp_path: Path) -> None:
    known = open_names(tmp_path / "later")
    for _ in range(2):  # also where it seems to be known already
        with pytest.raises(KernelError, match="No such file or directory"):
            claim(known, "A")
    (tmp_path / "later").mkdir()
    size = claim(known, "A").size
    assert claim(open_names(tmp_path / "later"), "A").size == size
    assert claim(open_names(tmp_path / "later"), "B").size > size


def test_many_at_once_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = open_names(tmp_path)
    written: list[str] = []

    async def in_child(call: Callable[[], None], what: str) -> None:
        written.append(what)
        await asyncio.sleep(0.01)
        call()

    async def claim_all() -> None:
        await asyncio.gather(*(known.claim("v", {f"{n}": ("x", BLOCK)}) for n in range(50)))

    monkeypatch.setattr(disk_table, "in_child", in_child)
    asyncio.run(claim_all())
    assert len(written) <= 3
    assert len(open_names(tmp_path)._cached.entries) == 50


def test_registered_until_a_reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = open_names(tmp_path)
    asyncio.run(known.register("v", "f", IMAGE))
    assert open_names(tmp_path).registered("v", "f") == IMAGE
    assert open_names(tmp_path).registered("other", "f") is None
    monkeypatch.setattr(names, "_MOST_REGISTERED", 2)
    for name in ("g", "f", "h"):
        asyncio.run(known.register("v", name, IMAGE))
    assert list(open_names(tmp_path)._registered.entries) == ["v/f", "v/h"]
    asyncio.run(known.register("v", "f", None))
    assert list(open_names(tmp_path)._registered.entries) == ["v/h"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_record_counts_whole_or_not_at_all(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any other bytes are no record: then nobody knows what the kernel's cache holds."""
    folder = tmp_path_factory.mktemp("n")
    known = open_names(folder)
    claim(known, "A")
    asyncio.run(known.register("v", "f", IMAGE))
    assert open_names(folder).knows_cache
    for name in ("objects.json", "names.json"):
        right = (folder / name).read_bytes()
        at = data.draw(st.integers(0, len(right) - 1))
        changed = right[:at] + bytes([right[at] ^ data.draw(st.integers(1, 255))]) + right[at + 1 :]
        others = st.sampled_from([changed, right[:at], b"[" * 100_000])
        (folder / name).write_bytes(data.draw(st.one_of(others, st.binary(max_size=200))))
    again = open_names(folder)
    assert not again.knows_cache
    assert again.registered("v", "f") is None
    assert claim(again, "A").size == 10 * BLOCK


def test_a_record_that_is_well_made_and_makes_no_sense(tmp_path: Path) -> None:
    for entry in (b'"bytes":-1,"size":1', b'"bytes":1,"size":1,"plans":["../../x"]', b'"bytes":1,"size":1e300'):
        body = b'{"v/f":{"identity":"A",' + entry + b"}}"
        (tmp_path / "objects.json").write_bytes(disk_table._digest(body) + b"\n" + body)
        assert not open_names(tmp_path).knows_cache


def test_a_record_that_is_no_file_or_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(open_names(tmp_path), "A")
    monkeypatch.setattr(disk_table, "MAX_TABLE", 20)
    assert not open_names(tmp_path).knows_cache
    (tmp_path / "names.json").mkdir()
    with pytest.raises(KernelError, match="Is a directory"):
        asyncio.run(open_names(tmp_path).register("v", "f", IMAGE))


def test_nobody_waits_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a disk that takes half a second each to write a record, to read plans and to list what is cached."""

    def wait(*_: object) -> None:
        time.sleep(0.5)

    monkeypatch.setattr(durable, "write", wait)
    monkeypatch.setattr(names, "check_agreement", wait)
    monkeypatch.setattr(culling, "list_files", wait)
    known = open_names(tmp_path)
    device: Any = None

    async def work() -> None:
        cached = (await known.claim("v", {"blob": ("blob", BLOCK)}))["blob"]
        await known.agree(cached, "v", "blob", "1" * 64)
        await known.agree(cached, "v", "blob", "2" * 64)
        assert await culling.make_room(device, str(tmp_path), 50) == 0

    async def run() -> float:
        working, longest, last = asyncio.create_task(work()), 0.0, time.monotonic()
        while not working.done():
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        await working
        return longest

    started = time.monotonic()
    assert asyncio.run(run()) < 0.4
    assert time.monotonic() - started > 2
