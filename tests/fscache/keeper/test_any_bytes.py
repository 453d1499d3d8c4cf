"""What lies in the service's folders, with anything in its place: it counts or it does not, and nobody waits."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nydus_erofs.erofs.errors import FormatError, NydusErofsError
from nydus_erofs.fscache.config.backend import Registry
from nydus_erofs.fscache.keeper.engine.mounted import load_record
from nydus_erofs.fscache.keeper.images.bootstraps import Bootstraps, _key
from nydus_erofs.fscache.keeper.images.origin import Origin
from nydus_erofs.fscache.keeper.stores import epoch
from nydus_erofs.fscache.keeper.stores.spec import load_folder, load_plan
from nydus_erofs.fscache.state import image

KEY = "ab" * 32
STORE = {"key": KEY, "blob_id": KEY, "segments": 1, "size": 4096}
IMAGE = {"stores": [STORE], "boot_size": 0}
GIVEN = {"image": "/image.meta", "folders": ["/blobs"]}
MOUNT = {"image": "0" * 32, "given": GIVEN, "target": "/mnt", "prefetch": True}

Place = Callable[[Path], None]


@pytest.fixture(autouse=True)
def no_wait() -> Iterator[None]:
    """To open a FIFO could wait for ever."""

    def ring(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def content(data: bytes) -> Place:
    def place(path: Path) -> None:
        path.write_bytes(data)

    return place


NO_FILES: dict[str, Place] = {
    "nothing": lambda path: None,
    "fifo": os.mkfifo,
    "folder": os.mkdir,
    "link": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "device": lambda path: path.symlink_to("/dev/tty"),
}
NO_RECORDS: dict[str, Place] = {
    "empty": content(b""),
    "cut off": content(b'{"stores": ['),
    "no json": content(b"\0" * 100),
    "no utf-8": content(b'{"stores": "\xff"}'),
    "deep": content(b"[" * 100_000),
    "deep object": content(b'{"a":' * 100_000),
    "huge": content(b'{"stores": [' + b" " * (1 << 21)),
    "another type": content(b"7"),
    "null": content(b"null"),
    "huge number": content(b'{"stores": [], "boot_size": ' + b"9" * 400 + b"}"),
}
PLACES = [pytest.param(place, id=name) for name, place in (NO_FILES | NO_RECORDS).items()]


def changed(record: dict[str, Any], **fields: object) -> bytes:
    return json.dumps(record | fields).encode()


def write(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


# --- image.json -----------------------------------------------------------------------------------------


def test_an_image(tmp_path: Path) -> None:
    write(tmp_path, "image.json", changed(IMAGE))
    assert image.load(str(tmp_path)).stores[0].key == KEY


@pytest.mark.parametrize("place", PLACES)
def test_no_image(place: Place, tmp_path: Path) -> None:
    place(tmp_path / "image.json")
    with pytest.raises(FormatError, match="is damaged"):
        image.load(str(tmp_path))


@pytest.mark.parametrize(
    "fields",
    [{"stores": [STORE | {"key": "../../etc"}]}, {"stores": [STORE | {"key": f"{KEY}\n"}]}, {"stores": {}},
     {"stores": [STORE | {"key": "\0" * 64}]}, {"stores": [STORE | {"segments": 0}]}, {"more": 1},
     {"stores": [STORE | {"segments": 1 << 40}]}, {"boot_size": -1}, {"boot_size": 4096}, {"boot_size": "x"}],
    ids=repr,
)  # fmt: skip
def test_an_image_that_cannot_be(fields: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, "image.json", changed(IMAGE, **fields))
    write(tmp_path, "boot", b"boot")
    with pytest.raises(FormatError, match="is damaged"):
        image.load(str(tmp_path))


@pytest.mark.parametrize("place", [pytest.param(place, id=name) for name, place in NO_FILES.items()])
def test_an_image_without_its_bootstrap(place: Place, tmp_path: Path) -> None:
    write(tmp_path, "image.json", changed(IMAGE, boot_size=4096))
    place(tmp_path / "boot")
    with pytest.raises(FormatError, match="is damaged"):
        image.load(str(tmp_path))


# --- mount.json -----------------------------------------------------------------------------------------


def test_a_mount(tmp_path: Path) -> None:
    write(tmp_path, "mount.json", changed(MOUNT))
    assert load_record(str(tmp_path)).target == "/mnt"


@pytest.mark.parametrize("place", PLACES)
def test_no_mount(place: Place, tmp_path: Path) -> None:
    place(tmp_path / "mount.json")
    with pytest.raises(FormatError, match=r"mount\.json"):
        load_record(str(tmp_path))


@pytest.mark.parametrize(
    "fields",
    [{"image": "../../etc"}, {"image": ""}, {"image": "0\0"}, {"target": "/\0"}, {"target": 7}, {"given": []},
     {"given": GIVEN | {"image": "/a\0b"}}, {"given": GIVEN | {"folders": ["/a\0b"]}},
     {"given": GIVEN | {"backend_file": "\0"}}],
    ids=repr,
)  # fmt: skip
def test_a_mount_that_cannot_be(fields: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, "mount.json", changed(MOUNT, **fields))
    with pytest.raises(FormatError, match=r"mount\.json"):
        load_record(str(tmp_path))


# --- epoch, plan, store ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NO_FILES.keys() - {"nothing"}))
def test_an_epoch_that_is_no_file_is_not_trusted(name: str, tmp_path: Path) -> None:
    NO_FILES[name](tmp_path / "epoch")
    assert not epoch.trusted(str(tmp_path))
    assert epoch.begun(str(tmp_path))
    epoch.settle(str(tmp_path))  # no error


@pytest.mark.parametrize("place", PLACES)
def test_no_plan(place: Place, tmp_path: Path) -> None:
    place(tmp_path / "plan")
    with pytest.raises(FormatError):
        load_plan(str(tmp_path / "plan"))
    with pytest.raises(FormatError):
        load_folder(str(tmp_path), 0)


# --- bootstraps/*.json ----------------------------------------------------------------------------------

REMOTE = Origin("host/repo:tag", [], Registry(host="host", repo="repo"), "tag")
MEASURED = {"sha256": KEY, "identity": "sha256:" + KEY}
Known = Callable[[Place], Any]


@pytest.fixture
def known(tmp_path: Path) -> Known:
    """`known(place)`: what is known of a published bootstrap whose record this is."""

    class Paths:
        bootstraps = str(tmp_path)

    def load(place: Place) -> Any:
        with contextlib.suppress(FileNotFoundError):
            (tmp_path / f"{_key(REMOTE)}.json").unlink()
        place(tmp_path / f"{_key(REMOTE)}.json")
        paths: Any = Paths()
        link: Any = None
        return Bootstraps(paths, link)._load(_key(REMOTE))

    (tmp_path / f"{KEY}.meta").touch()
    (tmp_path / "up.meta").touch()
    return load


def test_a_bootstrap_from_afar(known: Known) -> None:
    assert known(content(json.dumps({"version": "1", "measured": MEASURED}).encode())).version == "1"


@pytest.mark.parametrize("place", PLACES)
def test_no_bootstrap_from_afar(place: Place, known: Known) -> None:
    assert known(place) is None


@pytest.mark.parametrize("sha256", ["up", f"../{'a' * 64}", KEY[:63], f"{KEY}\n", "\0", "", 7])
def test_a_bootstrap_with_a_name_that_leads_elsewhere(sha256: object, known: Known) -> None:
    assert known(content(json.dumps({"version": "1", "measured": MEASURED | {"sha256": sha256}}).encode())) is None


# --- any bytes ------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_any_bytes(data: st.DataObject, tmp_path: Path) -> None:
    """A sound file with pieces exchanged, or nothing like one."""
    good = data.draw(st.sampled_from([changed(IMAGE), changed(MOUNT), b""]))
    cut = data.draw(st.integers(0, len(good)))
    raw = good[:cut] + data.draw(st.binary(max_size=40)) + good[data.draw(st.integers(cut, len(good))) :]
    for name in ("image.json", "mount.json", "plan"):
        write(tmp_path, name, raw)
    for load in (image.load, load_record, lambda folder: load_folder(folder, 0)):
        with contextlib.suppress(NydusErofsError):
            found = load(str(tmp_path))
            assert isinstance(found, msgspec.Struct)
