"""Descriptors that are owned."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nydus_erofs.fscache.kernel.fd import Fd


def test_a_file_that_is_held_can_be_opened_anew_without_its_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"held")
    with Fd(os.open(path, os.O_RDONLY)) as fd:
        held = fd.as_path()
    path.unlink()
    path.write_bytes(b"another")
    with held, held.reopen() as again:
        assert os.read(again.fd, 100) == b"held"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.read(held.fd, 100)


def test_a_folder_that_is_held(tmp_path: Path) -> None:
    (tmp_path / "name").touch()
    with Fd(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)) as fd, fd.as_path() as held, held.reopen() as again:
        assert os.listdir(again.fd) == ["name"]
