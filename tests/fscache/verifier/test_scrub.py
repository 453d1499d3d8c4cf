"""Looking again at segment files: every kind of damage is found where it begins, and nothing else is."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto.verifier import NO_FILE
from nydus_erofs.fscache.state.plan import Plan, PlanFlags
from nydus_erofs.fscache.verifier.scrub import Budget, Finding, scrub
from nydus_erofs.fscache.verifier.segment_files import SegmentFiles
from tests.kit.stores import MadeStore, MakeStore, OpenImages

FAST = 1 << 40  # bytes a second


@pytest.fixture
def made(open_image: OpenImages, make_store: MakeStore) -> MadeStore:
    """A complete store."""
    store = make_store(open_image("none-sha256"))
    for number in range(len(store.store.plan.segments)):
        store.fill(number)
    return store


class Seen(NamedTuple):
    """What is found, but for which file it is."""

    bytes: int
    good: int
    unknown: int


def look_at_all(
    made: MadeStore, first: int = 0, wanted: Callable[[], bool] = lambda: True
) -> dict[int, Finding | str]:
    plan = made.checked.plan
    assert isinstance(plan, Plan)
    with Fd(os.open(made.folder, os.O_RDONLY | os.O_DIRECTORY)) as folder:
        files = SegmentFiles(folder)
        return dict(scrub(plan, lambda number: files.held(number, plan), first, Budget(FAST), wanted))


def look(made: MadeStore, first: int = 0, wanted: Callable[[], bool] = lambda: True) -> dict[int, Seen]:
    """Where every file can be looked at."""
    seen = {}
    for number, found in look_at_all(made, first, wanted).items():
        assert isinstance(found, Finding)
        assert found.inode == made.path(number).stat().st_ino
        seen[number] = Seen(*found[:3])
    return seen


def test_nothing_is_wrong(made: MadeStore) -> None:
    sizes = [segment.size for segment in made.checked.plan.segments]
    assert look(made) == {number: Seen(size, size, 0) for number, size in enumerate(sizes)}
    assert list(look(made, first=3)) == list(range(3, len(sizes)))


def test_any_byte(made: MadeStore) -> None:
    """Of a chunk or of the padding behind it: what is right before its chunk is right."""
    rng, plan = random.Random(1), made.checked.plan
    for _ in range(200):
        number = rng.randrange(len(plan.segments))
        path, begin = made.path(number), plan.segments[number].start
        chunks = {chunk.uncompressed_offset - begin: chunk for chunk in plan.chunks(number)}
        data = path.read_bytes()
        at = rng.randrange(len(data))
        start = max(start for start in chunks if start <= at)
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        good = len(data) if chunks[start].flags & PlanFlags.UNUSED else start
        assert look(made)[number] == Seen(len(data), good, 0), at
        path.write_bytes(data)


def test_what_is_only_partly_there(made: MadeStore) -> None:
    """Whole chunks count; the rest of one may be there, and is not judged."""
    plan, path = made.checked.plan, made.path(0)
    size = path.stat().st_size
    for have in (0, 1, 4095, 4096, size // 2 + 7, size - 1):
        data = path.read_bytes()
        os.truncate(path, have)
        assert look(made)[0] == Seen(have, have, 0)
        path.write_bytes(data)
    os.truncate(path, size + 9000)  # by somebody's hand: what is behind the end belongs to nobody
    assert look(made)[0] == Seen(plan.segments[0].size, plan.segments[0].size, 0)


def test_what_the_disk_does_not_give(made: MadeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is as wrong as other bytes; that there is no memory says nothing of the disk."""
    preadv = os.preadv

    def failing(number: int) -> Callable[..., int]:
        def call(fd: int, buffers: list[memoryview], offset: int) -> int:
            if offset >= 1 << 19:
                raise OSError(number, os.strerror(number))
            return preadv(fd, [buffers[0][: 1 << 18]], offset)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing(errno.EIO))
        found = look(made)
        assert all(f.good <= 1 << 19 < f.bytes for f in found.values() if f.bytes > 1 << 19)
        assert any(0 < f.good < f.bytes for f in found.values())
        patch.setattr(os, "preadv", failing(errno.ENOMEM))
        with pytest.raises(OSError, match="allocate"):
            look(made)


def test_a_filesystem_without_direct_reads(made: MadeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def call(path: str, flags: int, *arguments: int, **options: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct reads here")
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", call)
    assert all(found.good == found.bytes for found in look(made).values())


@pytest.mark.parametrize("what", ["nothing", "a link", "a folder", "a pipe"])
def test_what_is_no_file_of_ours(what: str, made: MadeStore) -> None:
    """The others are looked at all the same, and nobody waits for who would open the pipe's other end."""
    path = made.path(1)
    path.unlink()
    match what:
        case "a link":
            path.symlink_to(made.path(0))
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
    found = look_at_all(made)
    assert found[1] == NO_FILE
    assert all(isinstance(found[number], Finding) for number in found if number != 1)
    assert len(found) == len(made.checked.plan.segments)


def test_nobody_wants_it(made: MadeStore) -> None:
    answers = iter([True, True, False])
    assert list(look(made, wanted=lambda: next(answers))) == [0, 1]


def test_the_plan_itself(made: MadeStore, tmp_path: Path) -> None:
    plan = made.checked.plan
    assert isinstance(plan, Plan)
    key = plan.key()
    path = tmp_path / "plan"
    raw = bytearray((made.folder / "plan").read_bytes())
    raw[-20] ^= 1
    path.write_bytes(raw)
    assert Plan(Fd(os.open(path, os.O_RDONLY))).key() != key
    assert plan.key() == key


def test_a_budget() -> None:
    began, budget = time.monotonic(), Budget(10_000)
    for _ in range(6):
        budget.spend(1000)
    assert time.monotonic() - began >= 0.5
