"""What the cachefiles engine remembers: the kernel must never find old data under a name that means something new."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_erofs.erofs.errors import FormatError
from nydus_erofs.fscache.keeper.engine import culling
from nydus_erofs.fscache.keeper.engine.names import Names
from nydus_erofs.fscache.keeper.origin import Given
from tests.kit.stores import OpenImages

BLOCK = 4096


@pytest.fixture
def names(tmp_path: Path) -> Callable[[], Names]:
    def make() -> Names:
        return Names(str(tmp_path / "names.json"), str(tmp_path / "objects.json"))

    return make


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.booleans()), max_size=12))
def test_content_is_never_stale(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bool]]) -> None:
    """The kernel keeps what it has as long as an object's size is the same (fs/cachefiles/xattr.c, 6.1)."""
    folder = tmp_path_factory.mktemp("n")
    paths = str(folder / "names"), str(folder / "objects")
    names, kernel = Names(*paths), None  # what the kernel's cache has: (content, size)
    for content, restart in steps:
        if restart:
            names = Names(*paths)
        size = names.size_of("volume", "image", content, 10 * BLOCK)
        assert size in (10 * BLOCK, 11 * BLOCK)
        if kernel is None or kernel[1] != size:
            kernel = (content, size)
        assert kernel[0] == content


def test_registered_until_a_reboot(names: Callable[[], Names]) -> None:
    names().register("v", "f", Given("/a.meta", ["/blobs"]), True)
    registered = names().registered("v", "f")
    assert registered is not None
    assert registered.given == Given("/a.meta", ["/blobs"])
    assert names().registered("other", "f") is None


@pytest.fixture
def plans(open_image: OpenImages, tmp_path: Path) -> Callable[..., str]:
    """`plans(name, changed)`: the folder of a plan of an image, with a digest changed or not."""

    def make(name: str, at: int | None = None) -> str:
        folder = tmp_path / name
        folder.mkdir()
        plan = bytearray(open_image().plan)
        if at is not None:
            plan[at] ^= 1
        (folder / "plan").write_bytes(plan)
        return str(folder)

    return make


def test_images_that_agree_and_images_that_do_not(
    names: Callable[[], Names], plans: Callable[..., str], open_image: OpenImages
) -> None:
    known = names()
    known.size_of("v", "blob", "blob", BLOCK)
    assert not known.holds("v", "blob")
    first, same = plans("first"), plans("same")
    known.agree("v", "blob", first)
    assert known.holds("v", "blob")
    known.agree("v", "blob", same)
    digest = open_image().plan.index(next(d for d in open_image().map.digests if d))
    for number in range(3):  # it does not get truer by being asked again, nor after a restart
        with pytest.raises(FormatError, match="other digests in another image of domain v"):
            known.agree("v", "blob", plans(f"other{number}", digest))
        known = names()
    # Another domain has data of its own.
    known.size_of("w", "blob", "blob", BLOCK)
    known.agree("w", "blob", plans("elsewhere", digest))


def test_data_that_nobody_can_judge_any_more_is_thrown_away(
    names: Callable[[], Names], plans: Callable[..., str], tmp_path: Path
) -> None:
    known, folder = names(), plans("gone")
    size = known.size_of("v", "blob", "blob", BLOCK)
    known.agree("v", "blob", folder)
    assert known.size_of("v", "blob", "blob", BLOCK) == size
    (tmp_path / "gone/plan").unlink()
    assert not known.holds("v", "blob")
    assert known.size_of("v", "blob", "blob", BLOCK) != size


@pytest.mark.parametrize("damage", [b"", b"\xff", b"[1]", b'{"v/f": 1}', b"{"])
def test_damaged_records_are_forgotten(names: Callable[[], Names], tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "names.json").write_bytes(damage)
    (tmp_path / "objects.json").write_bytes(damage)
    assert names().registered("v", "f") is None
    assert names().size_of("v", "f", "x", BLOCK) == BLOCK


def test_room_is_short_or_not(tmp_path: Path) -> None:
    assert not culling.short(str(tmp_path), 0)
    assert culling.short(str(tmp_path), 101)
