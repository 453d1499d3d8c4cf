"""What counts after a crash: the note that an era leaves, and every state a power cut may leave it in."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nydus_erofs.fscache.keeper.stores import epoch

FOREIGN = "00000000-1111-2222-3333-444444444444"


@pytest.fixture(autouse=True)
def own_era() -> None:
    epoch.new_era()


def test_life(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert epoch.trusted(folder)  # nothing was ever begun: it was synced
    epoch.begin(folder)
    assert epoch.trusted(folder)  # it is on its way to the disk
    assert epoch.settle(folder)
    assert epoch.settle(folder)  # nothing to do
    assert os.listdir(folder) == []
    epoch.begin(folder)
    epoch.new_era()
    assert not epoch.trusted(folder)
    assert not epoch.settle(folder), "nobody knows whether all of it came to the disk"
    epoch.begin(folder)
    assert not epoch.trusted(folder), "writing more makes nothing better"
    epoch.begin(folder, anew=True)
    assert epoch.settle(folder)


def test_eras_have_names_of_their_own() -> None:
    names = {epoch.era()}
    for _ in range(20):
        epoch.new_era()
        names.add(epoch.era())
    assert len(names) == 21
    assert {len(name) for name in names} == {32}


def test_begun_again(tmp_path: Path) -> None:
    """What is there already stays, so that the disk has nothing to do; anew, anything else is replaced, however
    long."""
    note = tmp_path / "epoch"
    epoch.begin(str(tmp_path))
    os.utime(note, (1, 1))
    for anew in (False, True):
        epoch.begin(str(tmp_path), anew=anew)
        assert note.stat().st_mtime == 1
    for other in (FOREIGN, epoch.era().decode() + FOREIGN, "x" * 100):
        note.write_text(other)
        epoch.begin(str(tmp_path))
        assert note.read_text() == other
        epoch.begin(str(tmp_path), anew=True)
        assert note.read_bytes() == epoch.era()


def test_only_root_may_read_it(tmp_path: Path) -> None:
    epoch.begin(str(tmp_path))
    assert (tmp_path / "epoch").stat().st_mode & 0o777 == 0o400


def test_the_disk_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But if the one that waited was killed, or had an error, then once more."""
    note, waits = tmp_path / "epoch", list[int]()
    monkeypatch.setattr(os, "fsync", waits.append)
    for _ in range(3):
        epoch.begin(str(tmp_path))
    assert len(waits) == 1
    epoch.new_era()
    epoch.begin(str(tmp_path))
    assert len(waits) == 1
    epoch.begin(str(tmp_path), anew=True)
    assert len(waits) == 2
    note.unlink()
    note.write_bytes(epoch.era())
    epoch.begin(str(tmp_path))
    assert len(waits) == 3

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    epoch.new_era()
    with pytest.raises(OSError, match="Input/output"):
        epoch.begin(str(tmp_path), anew=True)
    monkeypatch.setattr(os, "fsync", waits.append)
    epoch.begin(str(tmp_path))
    assert len(waits) == 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=60))
def test_anything_but_this_era_is_not_trusted(raw: bytes, tmp_path: Path) -> None:
    """An empty or half-written note is a crash while it was written: before any data."""
    (tmp_path / "epoch").write_bytes(raw)
    assert not epoch.trusted(str(tmp_path))


@pytest.mark.parametrize("cut", [0, 1, 31])
def test_a_cut_off_note_of_this_era(cut: int, tmp_path: Path) -> None:
    (tmp_path / "epoch").write_bytes(epoch.era()[:cut])
    assert not epoch.trusted(str(tmp_path))
    epoch.begin(str(tmp_path), anew=True)
    assert epoch.trusted(str(tmp_path))
