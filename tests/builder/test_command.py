"""The command: spellings of its options, what it prints, and the progress bar of a terminal."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "nydus_erofs", "build"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root fs"
    root.mkdir()
    (root / "a").write_text("a")
    (root / "b").write_text("b" * 100_000)
    return root


def build(*arguments: object) -> str:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_directory_and_an_output_directory_are_enough(tree: Path, tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    printed = build(tree, "-o", out)
    assert printed.count("\n") == 1
    assert f"{out}/root fs.meta" in printed
    report = json.loads((out / "output.json").read_bytes())
    (blob,) = report["blobs"]
    assert sorted(path.name for path in out.iterdir()) == sorted([blob, "output.json", "root fs.meta"])
    assert hashlib.sha256((out / blob).read_bytes()).hexdigest() == blob
    assert report["bootstrap"] == f"{out}/root fs.meta"
    assert (report["fs_version"], report["compressor"], report["external_bootstrap"]) == ("6", "zstd", "")
    assert report["external_blobs"] == []


def test_spellings_of_nydus_image(tree: Path, tmp_path: Path) -> None:
    (blobs := tmp_path / "blobs").mkdir()
    build(
        "--log-level", "warn", "-t", "dir-rafs", "-B", tmp_path / "boot", "-D", blobs, "-J", tmp_path / "json",
        "--compressor", "lz4_block", "--digester", "sha256", "--chunk-size", "0x10000", "--fs-version", "6",
        "--whiteout-spec", "none", "--batch-size", "0", tree,
    )  # fmt: skip
    report = json.loads((tmp_path / "json").read_bytes())
    assert report["blobs"] == os.listdir(blobs)
    long = ("--bootstrap", tmp_path / "boot2", "--blob", tmp_path / "blob2", "--source-dir", tree,
            "--output-json", tmp_path / "json2", "--source-type", "directory", "--compressor", "lz4_block",
            "--digester", "sha256", "--chunk-size", 65536)  # fmt: skip
    build(*long)
    assert (tmp_path / "boot2").read_bytes() == (tmp_path / "boot").read_bytes()
    assert (tmp_path / "blob2").read_bytes() == (blobs / report["blobs"][0]).read_bytes()


def test_a_bootstrap_without_a_name_goes_under_its_digest(tree: Path, tmp_path: Path) -> None:
    (blobs := tmp_path / "blobs").mkdir()
    build(tree, "--blob-dir", blobs)
    assert len(os.listdir(blobs)) == 2
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in blobs.iterdir())


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\n")
    (tree := tmp_path / name).mkdir()
    (out := tmp_path / f"{name}out").mkdir()
    assert "\\xff" in build(tree, "-o", out)
    done = subprocess.run([*COMMAND, tree / "x", "-o", out], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_own_outputs_are_named(tree: Path) -> None:
    (out := tree / "out").mkdir()
    done = subprocess.run([*COMMAND, tree, "-o", out], capture_output=True, text=True, check=True)
    assert done.stderr == f"left out {out}: the image is written there\n"


def test_a_terminal_gets_a_bar(tree: Path, tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    with (tree / "large").open("wb") as file:
        for _ in range(40):
            file.write(os.urandom(1 << 20))
    master, slave = pty.openpty()
    process = subprocess.Popen([*COMMAND, tree, "-o", out, "--workers", "2"], stderr=slave, stdout=subprocess.PIPE)
    os.close(slave)
    seen = b""
    while True:
        try:
            seen += os.read(master, 4096)
        except OSError:  # the terminal's other end is closed
            break
    os.close(master)
    assert process.communicate()[0].count(b"\n") == 1
    assert process.returncode == 0
    assert re.search(rb"[0-9] files", seen)
    assert b"\x1b[" in seen


def test_no_terminal_no_bar(tree: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """And rich, which takes longer to load than a small build takes, is not loaded."""
    (out := tmp_path / "out").mkdir()
    code = (
        "import sys; from nydus_erofs.cli import main\n"
        "try: main()\n"
        "finally: print(*[name for name in ('rich', 'boto3', 'structlog') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "build", tree, "-o", out], capture_output=True, text=True, check=True
    )
    assert done.stderr == "\n"
