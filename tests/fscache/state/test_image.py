"""The record of a prepared image: anything that is not as it was written is damage, and is prepared again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nydus_erofs.erofs.errors import FormatError
from nydus_erofs.fscache.state import image
from nydus_erofs.fscache.state.image import ImageRecord, StoreRef

KEY = "ab" * 32


def save(folder: Path, record: ImageRecord, boot: bytes = b"boot") -> str:
    (folder / image.BOOT).write_bytes(boot)
    (folder / image.RECORD).write_bytes(msgspec.json.encode(record))
    return str(folder)


def record(**changes: Any) -> ImageRecord:
    fields: dict[str, Any] = {"key": KEY, "blob_id": "cd" * 32, "segments": 2, "size": 8192} | changes
    return ImageRecord(stores=[StoreRef(**fields)], boot_size=4)


def test_round_trip(tmp_path: Path) -> None:
    loaded = image.load(save(tmp_path, record()))
    assert loaded == record()
    assert image.devices(loaded) == [f"{KEY}/00000", f"{KEY}/00001"]


def test_no_blobs(tmp_path: Path) -> None:
    loaded = image.load(save(tmp_path, ImageRecord(stores=[], boot_size=4)))
    assert image.devices(loaded) == []


@pytest.mark.parametrize("key", ["", "ab" * 31, "AB" * 32, "../" + "a" * 61, "a" * 63 + "/"])
def test_a_key_cannot_lead_elsewhere(key: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="store"):
        image.load(save(tmp_path, record(key=key)))


@pytest.mark.parametrize("boot", [b"", b"boo", b"boot!"])
def test_a_bootstrap_of_another_size(boot: bytes, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="damaged"):
        image.load(save(tmp_path, record(), boot))


@pytest.mark.parametrize("missing", [image.BOOT, image.RECORD])
def test_something_missing(missing: str, tmp_path: Path) -> None:
    folder = save(tmp_path, record())
    (tmp_path / missing).unlink()
    with pytest.raises(FormatError, match="damaged"):
        image.load(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_record(data: st.DataObject, tmp_path: Path) -> None:
    folder = save(tmp_path, record())
    path = tmp_path / image.RECORD
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        loaded = image.load(folder)
    except FormatError as error:
        assert "\n" not in error.message
    else:
        assert loaded.boot_size == 4
        assert all("/" not in store.key and len(store.key) == 64 for store in loaded.stores)


def test_an_id_stands_for_one_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "boot"
    path.write_bytes(b"x" * 100)

    def name(segment_size: int = 1 << 21) -> str:
        fd = os.open(path, os.O_RDONLY)
        try:
            return image.image_id(fd, segment_size)
        finally:
            os.close(fd)

    first = name()
    assert first == name()
    assert len(first) == 32
    assert first != name(1 << 22)
    os.utime(path, ns=(0, 12345))
    assert (second := name()) != first
    # Written anew with the same size and times: still another file, its change time tells.
    path.write_bytes(b"y" * 100)
    os.utime(path, ns=(0, 12345))
    assert name() not in (first, second)
