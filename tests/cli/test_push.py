"""`push` and `build --backend-push` into a folder; servers are in tests/fscache/backend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from signal import Signals
from typing import Any

import pytest

from nydus_erofs.erofs import merkle, verity
from tests.kit.command import CLI, cli
from tests.kit.waiting import wait_for


@pytest.fixture
def image(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(100_000))
    cli("build", tree, "-o", tmp_path / "image", check=True)
    return tmp_path / "image" / "tree.meta"


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, Path]:
    """A folder to push to, and the file that names it."""
    target = tmp_path / "published"
    target.mkdir()
    config = tmp_path / "backend.json"
    config.write_text(json.dumps({"type": "localfs", "dir": str(target)}))
    return target, config


def blob_of(image: Path) -> str:
    (blob,) = json.loads((image.parent / "output.json").read_text())["blobs"]
    return str(blob)


def test_into_a_folder(image: Path, folder: tuple[Path, Path]) -> None:
    target, config = folder
    done = cli("push", image, "--backend-config-file", config, "--json", check=True)
    answer = json.loads(done.stdout)
    blob = blob_of(image)
    assert sorted(os.listdir(target)) == sorted([blob, "tree.meta", "tree.meta.verity"])
    assert (target / "tree.meta").read_bytes() == image.read_bytes()
    tree = verity.parse_tree((target / "tree.meta.verity").read_bytes())
    assert answer["identity"] == tree.identity == merkle.identity(image.read_bytes())
    assert answer["uploaded"] == [blob, "tree.meta.verity", "tree.meta"]  # in this order
    again = json.loads(cli("push", image, "--backend-config-file", config, "--json").stdout)
    assert again["skipped"] == [blob]


def test_under_another_name(image: Path, folder: tuple[Path, Path]) -> None:
    target, config = folder
    done = cli("push", image, "--backend-config-file", config, "--name", "app", check=True)
    assert "app.meta published" in done.stdout
    assert (target / "app.meta").exists()


def test_right_after_the_build(tmp_path: Path, image: Path, folder: tuple[Path, Path]) -> None:
    target, config = folder
    done = cli(
        "build", tmp_path / "tree", "-o", tmp_path / "again", "--backend-push", "--backend-type", "localfs",
        "--backend-config-file", config, check=True,
    )  # fmt: skip
    assert "tree.meta published" in done.stdout
    assert (target / blob_of(image)).exists()


@pytest.fixture
def nowhere(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Options of a command that may leave nothing: neither where it runs nor among temporary files."""
    for folder in ("here", "tmp"):
        (tmp_path / folder).mkdir()
    yield {"cwd": tmp_path / "here", "env": {"TMPDIR": str(tmp_path / "tmp")}}
    assert os.listdir(tmp_path / "here") == os.listdir(tmp_path / "tmp") == []


def test_without_any_place_here(
    tmp_path: Path,
    image: Path,
    folder: tuple[Path, Path],
    nowhere: dict[str, Any],
) -> None:
    target, config = folder
    push = ["--backend-push", "--backend-config-file", config]
    done = cli("build", tmp_path / "tree", "--name", "app", *push, check=True, **nowhere)
    assert sorted(os.listdir(target)) == sorted([blob_of(image), "app.meta", "app.meta.verity"])
    assert f"{target}: app.meta published" in done.stdout
    assert done.stdout.startswith(f"bootstrap (20.0 KiB), blob {blob_of(image)} (")
    cli("build", tmp_path / "tree", *push, check=True, **nowhere)
    assert (target / "tree.meta").read_bytes() == (target / "app.meta").read_bytes()


def test_nothing_stays_of_what_failed(
    tmp_path: Path,
    image: Path,
    folder: tuple[Path, Path],
    nowhere: dict[str, Any],
) -> None:
    """Before, while and after the image is built."""
    target, config = folder
    push = ["--backend-push", "--backend-config-file", config]
    done = cli("build", tmp_path / "tree", *push, "--workers", "99", **nowhere)
    assert done.returncode == 2
    done = cli("build", tmp_path / "tree", *push, "--output-json", tmp_path / "json", **nowhere)
    assert done.returncode == 2
    assert "--bootstrap FILE" in done.stderr
    os.truncate(tmp_path / "tree" / "file", 2 << 40)
    too_much = ["--chunk-size", "0x1000"]
    assert cli("build", tmp_path / "tree", *push, *too_much, **nowhere).returncode == 4
    os.truncate(tmp_path / "tree" / "file", 1000)
    os.rmdir(target)
    assert cli("build", tmp_path / "tree", *push, **nowhere).returncode == 11


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_stays_of_what_was_ended(
    number: Signals,
    tmp_path: Path,
    folder: tuple[Path, Path],
    nowhere: dict[str, Any],
) -> None:
    target, config = folder
    (tmp_path / "large").mkdir()
    with open(tmp_path / "large" / "noise", "wb") as file:
        for _ in range(60):
            file.write(os.urandom(1 << 20))
    command = [*CLI, "build", str(tmp_path / "large"), "--compression-level", "19", "--backend-push"]
    process: subprocess.Popen[bytes] = subprocess.Popen(
        [*command, "--backend-config-file", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **nowhere
    )
    wait_for("the build", lambda: list((tmp_path / "tmp").glob("nydus-erofs-*/.*.tmp")))
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.decode()) == (128 + number, f"nydus-erofs: ended by {number.name}\n")
    assert os.listdir(target) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend-config-file", "/nonexistent"], "/nonexistent"),
        ([], "--backend-config-file"),
        (["--backend-type", "s3", "--backend-config-file", "CONFIG"], "is a localfs backend, not s3"),
        (["team/app:v1"], "does not begin with a registry"),
        (["hub.example.com/app@sha256:" + "a" * 64], "under a tag"),
        (["127.0.0.1:1/app:v1"], "127.0.0.1:1"),
    ],
)
def test_wrong(arguments: list[str], said: str, image: Path, folder: tuple[Path, Path]) -> None:
    target, config = folder
    arguments = [str(config) if argument == "CONFIG" else argument for argument in arguments]
    done = cli("push", image, *arguments)
    assert done.returncode != 0
    assert said in done.stderr
    assert os.listdir(target) == []


def test_a_missing_blob_publishes_nothing(image: Path, folder: tuple[Path, Path]) -> None:
    target, config = folder
    blob = blob_of(image)
    (image.parent / blob).unlink()
    done = cli("push", image, "--backend-config-file", config)
    assert done.returncode == 6
    assert blob in done.stderr
    assert os.listdir(target) == []


def test_what_is_no_bootstrap(image: Path, folder: tuple[Path, Path]) -> None:
    target, config = folder
    done = cli("push", image.parent / blob_of(image), "--backend-config-file", config)
    assert done.returncode == 3
    assert os.listdir(target) == []


def test_a_folder_that_is_not_there(image: Path, tmp_path: Path) -> None:
    config = tmp_path / "backend.json"
    config.write_text(json.dumps({"type": "localfs", "dir": str(tmp_path / "missing")}))
    done = cli("push", image, "--backend-config-file", config)
    assert done.returncode == 11
    assert str(tmp_path / "missing") in done.stderr
