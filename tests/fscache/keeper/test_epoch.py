"""What counts after a crash: the note that this boot leaves, and every state a power cut may leave it in."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nydus_erofs.fscache.keeper.stores import epoch

FOREIGN = "00000000-1111-2222-3333-444444444444"


def test_boot_id_is_this_boots() -> None:
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", epoch.boot_id())
    assert epoch.boot_id() == epoch.boot_id()


def test_life(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert epoch.trusted(folder)  # nothing was ever begun: it was synced
    epoch.begin(folder)
    assert epoch.trusted(folder)  # the page cache of this boot has everything
    (tmp_path / "epoch").write_text(FOREIGN)
    assert not epoch.trusted(folder)
    epoch.settle(folder)
    assert epoch.trusted(folder)
    epoch.settle(folder)  # nothing to do
    assert os.listdir(folder) == []


def test_begun_again(tmp_path: Path) -> None:
    """What is there already stays, so that the disk has nothing to do; anything else is replaced, however long."""
    note = tmp_path / "epoch"
    epoch.begin(str(tmp_path))
    os.utime(note, (1, 1))
    epoch.begin(str(tmp_path))
    assert note.stat().st_mtime == 1
    for other in (FOREIGN, epoch.boot_id() + FOREIGN, "x" * 100):
        note.write_text(other)
        epoch.begin(str(tmp_path))
        assert note.read_text() == epoch.boot_id()


def test_only_root_may_read_it(tmp_path: Path) -> None:
    epoch.begin(str(tmp_path))
    assert (tmp_path / "epoch").stat().st_mode & 0o777 == 0o600


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=60))
def test_anything_but_this_boot_is_not_trusted(raw: bytes, tmp_path: Path) -> None:
    """An empty or half-written note is a crash while it was written: before any data."""
    (tmp_path / "epoch").write_bytes(raw)
    assert not epoch.trusted(str(tmp_path))


@pytest.mark.parametrize("cut", [0, 1, 35])
def test_a_cut_off_note_of_this_boot(cut: int, tmp_path: Path) -> None:
    (tmp_path / "epoch").write_text(epoch.boot_id()[:cut])
    assert not epoch.trusted(str(tmp_path))
    epoch.begin(str(tmp_path))
    assert epoch.trusted(str(tmp_path))


def test_many_are_settled_by_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is there; what was put in a folder's place meanwhile was not written, and is not settled."""
    folders = [tmp_path / name for name in ("one", "two", "replaced", "gone")]
    for folder in folders[:3]:
        folder.mkdir()
        epoch.begin(str(folder))

    def sync(fd: int) -> None:
        assert os.path.samestat(os.fstat(fd), os.stat(tmp_path))
        folders[2].rename(tmp_path / "before")
        folders[2].mkdir()
        epoch.begin(str(folders[2]))

    monkeypatch.setattr(epoch, "sync_filesystem", sync)
    epoch.settle_all(str(tmp_path), list(map(str, folders)))
    assert [epoch.begun(str(folder)) for folder in folders] == [False, False, True, False]
