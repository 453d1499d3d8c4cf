"""Images of a domain share what the kernel has of a blob: they must agree about it, or one could spoil it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_erofs.erofs.errors import FormatError
from nydus_erofs.erofs.rafs import Compression, DigestAlgo
from nydus_erofs.erofs.source import BufferSource
from nydus_erofs.fscache.keeper.engine.agreement import check_agreement
from nydus_erofs.fscache.keeper.engine.names import Cached, Names
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.state.plan import CHUNK, MAGIC, SEGMENT, Plan, PlanFlags, PlanHeader
from nydus_erofs.fscache.verifier.cache_object import ObjectSink
from nydus_erofs.fscache.verifier.store import Store as CheckedStore
from nydus_erofs.fscache.worker.store import Store
from tests.kit.stores import fill

BLOCK = 4096
BLOB = "ab" * 32


def plan_of(sizes: Sequence[int], used: Collection[int], content: bytes, *, shift: int = 0) -> bytes:
    """The plan of an image that says: the blob has chunks of so many blocks, I use these, this is what they hold."""
    at, records = 0, []
    for index, size in enumerate(sizes):
        end = at + size * BLOCK
        digest, flags, stored = bytes(32), PlanFlags.UNUSED, 0
        if index in used:
            digest, flags, stored = hashlib.sha256(content[at:end]).digest(), PlanFlags(0), size * BLOCK
        records.append(CHUNK.pack(digest, at + shift, at, stored, size * BLOCK, flags, stored, 0))
        at = end
    header = PlanHeader(
        MAGIC, BLOB.encode(), int(Compression.NONE), int(DigestAlgo.SHA256), 1, len(sizes), max(sizes) * BLOCK
    )
    return header.pack() + SEGMENT.pack(0, at, 0, len(sizes)) + b"".join(records)


def said(folder: Path, one: bytes, other: bytes) -> str:
    """What they disagree about; empty for nothing."""
    for name, plan in (("one", one), ("other", other)):
        (folder / name).write_bytes(plan)
    try:
        check_agreement([str(folder / "one")], str(folder / "other"), BLOB, "d")
    except FormatError as error:
        return error.message
    return ""


GOOD, EVIL = os.urandom(5 * BLOCK), b"E" * 5 * BLOCK


@pytest.mark.parametrize(
    ("other", "about"),
    [
        (plan_of([1, 1, 1, 2], {1}, EVIL), ""),  # only what nobody else uses
        (plan_of([1, 1, 1, 2], {0, 1, 3}, GOOD), ""),
        (plan_of([1, 1, 1, 2], {0, 1}, EVIL), "digests"),
        (plan_of([1, 2, 1, 1], {1}, EVIL), "chunks"),  # would reach into chunk 2
        (plan_of([1, 2, 1, 1], set(), EVIL), "chunks"),
        (plan_of([1, 1, 3], {1}, EVIL), "chunks"),
        (plan_of([1, 1, 1, 2], {1}, EVIL, shift=1), "chunks"),
    ],
)
def test_what_may_differ(tmp_path: Path, other: bytes, about: str) -> None:
    victim = plan_of([1, 1, 1, 2], {0, 2, 3}, GOOD)
    message = said(tmp_path, victim, other)
    assert message == (f"blob {BLOB} has other {about} in another image of domain d" if about else "")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=6),
    st.lists(st.integers(1, 3), min_size=1, max_size=6),
    st.booleans(),
    st.sets(st.integers(0, 5)),
    st.sets(st.integers(0, 5)),
)
def test_images_that_agree_get_their_own_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    others: list[int],
    same: bool,
    used: set[int],
    theirs: set[int],
) -> None:
    """Whatever else the other image says of the blob, and though it fills the object first."""
    folder = tmp_path_factory.mktemp("o")
    good, evil = os.urandom(18 * BLOCK), os.urandom(18 * BLOCK)
    ours, hostile = plan_of(sizes, used, good), plan_of(sizes if same else others, theirs, evil)
    if said(folder, hostile, ours):
        return
    total = sum(sizes) * BLOCK
    with open(folder / "object", "wb") as file:
        file.truncate(total)
    for name, blob in (("one", evil), ("other", good)):
        plan = Plan(Fd(os.open(folder / name, os.O_RDONLY)))
        checked = CheckedStore(plan, ObjectSink(Fd(os.open(folder / "object", os.O_RDWR))))
        fill(Store(plan, [Source(blob)]), checked, 0, lambda _: None)
    got, at = (folder / "object").read_bytes(), 0
    for index, size in enumerate(sizes):
        end = at + size * BLOCK
        assert index not in used or got[at:end] == good[at:end]
        at = end


class Source(BufferSource):
    label = "memory"


# --- what is noted ------------------------------------------------------------------------------------------

FIRST, SECOND, THIRD, FOURTH = (digit * 64 for digit in "1234")


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    (tmp_path / FIRST).write_bytes(plan_of([1, 1], {0}, GOOD))
    (tmp_path / SECOND).write_bytes(plan_of([1, 1], {0, 1}, GOOD))
    (tmp_path / THIRD).write_bytes(plan_of([1, 1], {0}, EVIL))
    (tmp_path / FOURTH).write_bytes(plan_of([1, 1], {1}, EVIL))
    return tmp_path


@pytest.fixture
def names(plans: Path) -> Callable[[], Names]:
    return lambda: Names(f"{plans}/names.json", f"{plans}/objects.json", lambda key: f"{plans}/{key}")


def claim(known: Names, volume: str = "d") -> Cached:
    return asyncio.run(known.claim(volume, {BLOB: (BLOB, 2 * BLOCK)}))[BLOB]


def agree(known: Names, cached: Cached, *keys: str) -> list[str]:
    """Note plans, all at once; what each is refused for."""

    async def all_at_once() -> list[BaseException | None]:
        calls = (known.agree(cached, "d", BLOB, key) for key in keys)
        return await asyncio.gather(*calls, return_exceptions=True)

    return [str(error).partition(" (")[0] if error else "" for error in asyncio.run(all_at_once())]


def test_plans_that_agree_and_plans_that_do_not(names: Callable[[], Names]) -> None:
    known = names()
    cached = claim(known)
    assert agree(known, cached, FIRST) == [""]
    assert agree(known, cached, SECOND) == [""]
    for _ in range(3):  # it does not get truer by being asked again, nor after a restart
        (why,) = agree(known, cached, THIRD)
        assert why == f"blob {BLOB} has other digests in another image of domain d"
        known = names()
        cached = claim(known)
        assert cached.plans == [FIRST, SECOND]
    assert agree(known, claim(known, "elsewhere"), THIRD) == [""]


@pytest.mark.parametrize(("before", "at_once"), [([], [FIRST, THIRD]), ([FIRST], [SECOND, FOURTH])])
def test_of_two_at_once_one_is_refused(names: Callable[[], Names], before: list[str], at_once: list[str]) -> None:
    known = names()
    cached = claim(known)
    agree(known, cached, *before)
    assert sorted(map(bool, agree(known, cached, *at_once))) == [False, True]
    assert len(cached.plans) == len(before) + 1
    assert names()._cached.entries[f"d/{BLOB}"].plans == cached.plans


@pytest.mark.parametrize("damage", [None, b"", b"not a plan", b"\0" * 300])
def test_data_that_nobody_can_judge_any_more_is_thrown_away(
    names: Callable[[], Names], plans: Path, damage: bytes | None
) -> None:
    known = names()
    cached = claim(known)
    agree(known, cached, FIRST)
    assert claim(known).size == cached.size
    (plans / FIRST).unlink()
    if damage is not None:
        (plans / FIRST).write_bytes(damage)
    # While the object is open its data stays what it is.
    (why,) = agree(known, cached, SECOND)
    assert why.startswith(f"blob {BLOB}: the plan of what domain d has of it is gone")
    anew = claim(known)
    assert (anew.size, anew.plans) == (cached.size + BLOCK, [])
    assert agree(known, anew, SECOND) == [""]
