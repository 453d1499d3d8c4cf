"""A bootstrap is what a child of the keeper finds it to be, on a copy that nobody else can write to."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from nydus_erofs.erofs import merkle
from nydus_erofs.erofs.errors import FormatError
from nydus_erofs.fscache.keeper.images.measure import kept
from nydus_erofs.fscache.kernel.fd import Fd

DATA = bytes(range(256)) * 5000


def keep(source: Path, folder: Path) -> tuple[str, str]:
    with Fd(os.open(source, os.O_RDWR)) as file:
        measured = asyncio.run(kept(file, str(folder)))
        os.pwrite(file.fd, b"other bytes", 0)  # whoever fetched it still has it open
    return measured.sha256, measured.identity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bootstraps").mkdir()
    return tmp_path / "bootstraps"


def test_the_copy_is_measured(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    digest = hashlib.sha256(DATA).hexdigest()
    assert keep(tmp_path / "file", folder) == (digest, merkle.identity(DATA))
    (copy,) = folder.iterdir()
    assert copy.name == f"{digest}.meta"
    assert copy.read_bytes() == DATA
    assert copy.stat().st_mode & 0o777 == 0o600


def test_a_copy_that_is_there_stays(tmp_path: Path, folder: Path) -> None:
    for _ in range(2):
        (tmp_path / "file").write_bytes(DATA)
        keep(tmp_path / "file", folder)
        (copy,) = folder.iterdir()
    first = copy.stat().st_ino
    (tmp_path / "file").write_bytes(DATA)
    keep(tmp_path / "file", folder)
    assert [path.stat().st_ino for path in folder.iterdir()] == [first]


def test_an_empty_one_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FormatError, match="empty"):
        keep(tmp_path / "file", folder)
    assert not list(folder.iterdir())
