"""Back to the law after a crash of the machine, and after a crash of what brings it back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nydus_erofs.erofs.errors import FormatError
from nydus_erofs.fscache.keeper.stores import epoch
from nydus_erofs.fscache.keeper.stores import restore as restoring
from nydus_erofs.fscache.keeper.stores.spec import load_folder
from tests.kit.stores import MadeStore, MakeStore, OpenImages

SEGMENTS = 13


@pytest.fixture
def made(open_image: OpenImages, make_store: MakeStore) -> MadeStore:
    store = make_store(open_image("none-sha256"))
    assert len(store.store.plan.segments) == SEGMENTS
    return store


def restore(made: MadeStore) -> None:
    restoring.restore(str(made.folder), os.geteuid(), os.geteuid())


def crash(made: MadeStore) -> None:
    (made.folder / "epoch").write_text("another boot")


def test_what_is_there_is_set_aside(made: MadeStore) -> None:
    made.path(0).write_bytes(b"whole")
    made.path(4).write_bytes(b"more than its size" * 100_000)
    empty = made.path(1).stat().st_ino
    crash(made)
    with pytest.raises(FormatError, match="may have lost data"):
        load_folder(str(made.folder), os.geteuid())
    restore(made)
    spec = load_folder(str(made.folder), os.geteuid())
    assert spec.have == [0] * SEGMENTS
    assert spec.begun
    assert made.path(1).stat().st_ino == empty
    assert made.set_aside(0).read_bytes() == b"whole"
    assert sorted(path.name for path in (made.folder / "old").iterdir()) == ["00000", "00004"]
    spec.close()


def test_what_is_no_segment_stays(made: MadeStore) -> None:
    """A fifo in a segment's place is damage, which is found; and nothing waits for its other end."""
    made.path(2).unlink()
    os.mkfifo(made.path(2))
    (made.folder / "notes").write_text("by somebody")
    crash(made)
    restore(made)
    assert (made.folder / "notes").exists()
    with pytest.raises(FormatError, match="is damaged"):
        load_folder(str(made.folder), os.geteuid())


@pytest.mark.parametrize("name", ["link", "file"])
def test_something_else_where_things_are_set_aside(name: str, made: MadeStore, tmp_path: Path) -> None:
    """Nothing is led elsewhere, and what is not set aside is not believed."""
    made.path(0).write_bytes(b"x")
    (tmp_path / "elsewhere").mkdir()
    if name == "link":
        (made.folder / "old").symlink_to(tmp_path / "elsewhere")
    else:
        (made.folder / "old").touch()
    crash(made)
    with pytest.raises(OSError, match="old"):
        restore(made)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not epoch.trusted(str(made.folder))


class Ended(BaseException):
    """As if the process had been killed."""


class Dying:
    """Stands for ``os`` in the module, and ends at some call."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def __getattr__(self, name: str) -> Any:
        what = getattr(os, name)
        return self._counted(what) if name in {"mkdir", "open", "fchmod", "rename", "fchown"} else what

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if not self._left:
                raise Ended
            self._left -= 1
            return call(*arguments, **options)

        return counted


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    held=st.lists(st.sampled_from([b"", b"old", b"x" * 9000]), min_size=SEGMENTS, max_size=SEGMENTS),
    ends=st.lists(st.integers(0, 40), max_size=3),
    data=st.data(),
)
def test_ended_anywhere_and_done_again(
    held: list[bytes], ends: list[int], data: st.DataObject, open_image: OpenImages, make_store: MakeStore
) -> None:
    """However often it ends: nothing counts that was not verified, nothing is lost that may be right."""
    made = make_store(open_image("none-sha256"))
    for number, before in enumerate(held):
        made.path(number).write_bytes(before)
    crash(made)
    for calls in ends:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(restoring, "os", Dying(calls))
            try:
                if not epoch.trusted(str(made.folder)):
                    restore(made)
            except Ended:
                assert not epoch.trusted(str(made.folder))
        if data.draw(st.booleans()):
            crash(made)  # of the machine as well
    if not epoch.trusted(str(made.folder)):
        restore(made)
    spec = load_folder(str(made.folder), os.geteuid())
    assert not any(spec.have)
    spec.close()
    for number, before in enumerate(held):
        assert made.path(number).stat().st_size == 0
        if before:
            assert made.set_aside(number).read_bytes() == before
