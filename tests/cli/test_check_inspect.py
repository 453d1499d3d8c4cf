"""``check`` and ``inspect`` as people and programs see them: lines, JSON, exit codes; never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nydus_erofs.erofs.image import Bootstrap
from nydus_erofs.erofs.rafs import BlobEntry
from nydus_erofs.erofs.source import BufferSource

COMMAND = [sys.executable, "-m", "nydus_erofs"]


def run(*arguments: str | Path | bytes, code: int = 0) -> tuple[str, str]:
    """Standard output and error of the command, which must end with this exit code and without a traceback."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=120, check=False)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, out + err
    assert "Traceback" not in err
    return out, err


@pytest.fixture
def image(nydus_images: Path, tmp_path: Path) -> Path:
    """A copy of the plain image: the bootstrap, its blob beside it."""
    shutil.copy(nydus_images / "plain" / "boot", tmp_path / "boot")
    for blob in (nydus_images / "plain" / "blobs").iterdir():
        shutil.copy(blob, tmp_path)
    return tmp_path / "boot"


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def blob_of(image: Path) -> Path:
    return next(path for path in image.parent.iterdir() if len(path.name) == 64)


# --- check ---


def test_sound_image_with_its_blob_beside_it(image: Path) -> None:
    out, err = run("check", image)
    assert out == "boot: sound; 1620 names, 52 chunks of files; 1 of 1 blobs read, 46 chunks verified\n"
    assert err == ""


def test_bootstrap_alone(image: Path) -> None:
    blob_of(image).unlink()
    out, _ = run("check", image)
    assert out == "boot: sound; 1620 names, 52 chunks of files; no blobs read (--blob-dir names their folder)\n"


def test_blob_dir(image: Path, nydus_images: Path) -> None:
    blob_of(image).unlink()
    out, _ = run("check", image, "--blob-dir", nydus_images / "plain" / "blobs")
    assert "1 of 1 blobs read" in out
    out, _ = run("check", image, "--blob-dir", nydus_images / "lz4" / "blobs", code=3)
    assert out.startswith("blob-missing: blob 0: no blob fbbdaf7a")


def test_findings_one_a_line(image: Path) -> None:
    patch(image, 1024 + 4, b"\1")  # the checksum
    patch(blob_of(image), 1000, b"!!!!")
    out, err = run("check", image, code=3)
    lines = out.splitlines()
    assert lines[0] == "superblock: superblock: checksum is 1, not 0"
    assert [line.split(":")[0] for line in lines[1:-1]] == ["chunk-digest"] * len(lines[1:-1])
    assert lines[-1].startswith(f"boot: {len(lines) - 1} findings; 1620 names")
    assert err == ""


def test_findings_as_json(image: Path) -> None:
    patch(image, 1024 + 16, struct.pack("<Q", 7))
    out, _ = run("check", image, "--json", code=3)
    report = json.loads(out)
    assert report["sound"] is False
    assert report["complete"] is True
    assert report["chunks_verified"] == 46
    assert report["findings"] == [
        {"rule": "totals", "where": "superblock", "detail": "it counts 7 names, there are 1620"}
    ]


def test_what_cannot_be_checked_has_its_own_code(nydus_images: Path) -> None:
    folder = nydus_images / "encrypt"
    out, _ = run("check", folder / "boot", "--blob-dir", folder / "blobs", code=4)
    assert out.startswith("unsupported: blob 0: reading encrypted blobs is not supported yet\n")
    _, err = run("check", nydus_images / "tarfs" / "boot", code=4)
    assert err == "nydus-erofs: images with 512-byte blocks (tarfs) are not supported yet\n"


@pytest.mark.parametrize("kept", [0, 100, 5000, 100_000])
def test_truncated(image: Path, kept: int) -> None:
    os.truncate(image, kept)
    out, err = run("check", image, code=3)
    assert len(out.splitlines()) >= 2
    assert err == ""


def test_foreign_files(image: Path) -> None:
    out, _ = run("check", blob_of(image), code=3)
    assert out.startswith("magic: bootstrap: no EROFS superblock at byte 1024: not a RAFS v6 bootstrap (name the ")
    _, err = run("check", image.parent, code=2)
    assert err == f"nydus-erofs: not a regular file: {image.parent}\n"
    _, err = run("check", image.parent / "nope", code=1)
    assert err == f"nydus-erofs: No such file or directory: {image.parent / 'nope'}\n"
    run("check", code=2)


def test_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    _, err = run("check", tmp_path / "fifo", code=2)
    assert "not a regular file" in err


# --- inspect ---


def test_summary(image: Path) -> None:
    out, _ = run("inspect", image)
    assert "inodes                 1620\n" in out
    assert "flags                  hash_blake3 explicit_uid_gid has_xattr compression_zstd encryption_none\n" in out
    assert blob_of(image).name in out
    assert "aligned cap_tar_toc" in out


def test_summary_as_json(image: Path) -> None:
    whole = json.loads(run("inspect", image, "--json")[0])
    assert whole["superblock"] == json.loads(run("inspect", image, "superblock", "--json")[0])
    assert whole["blobs"] == json.loads(run("inspect", image, "blobs", "--json")[0])
    assert whole["superblock"]["inodes"] == 1620
    (blob,) = whole["blobs"]
    assert (blob["id"], blob["chunk_count"], blob["compression"]) == (blob_of(image).name, 46, "zstd")
    assert blob["compressed_size"] == blob_of(image).stat().st_size


def test_keys_are_not_shown(nydus_images: Path, load_entry: Callable[[Path], BlobEntry]) -> None:
    path = nydus_images / "encrypt" / "boot"
    key = load_entry(path).meta_digest
    assert any(key)
    out, _ = run("inspect", path, "--json")
    assert key.hex() not in out
    assert json.loads(out)["blobs"][0]["cipher"] == "aes_128_xts"


@pytest.fixture
def load_entry() -> Callable[[Path], BlobEntry]:
    return lambda path: Bootstrap(BufferSource(path.read_bytes())).blobs[0].entry


def test_tree_keeps_every_name(image: Path, nydus_images: Path) -> None:
    out, _ = run("inspect", image, "tree", "--json")
    files = [json.loads(line) for line in out.splitlines()]
    names = {file["path"].encode("utf-8", "surrogateescape")[1:] or b"." for file in files}
    expected = json.loads((nydus_images / "expected.json").read_text())
    assert names == {bytes.fromhex(name) for name in expected}
    by_path = {file["path"]: file for file in files}
    assert by_path["/dev/big"]["rdev"] == "291:284280"
    assert "security.capability" in by_path["/xattr/cap"]["xattrs"]
    assert any("target" in file for file in files)


def test_tree_for_people(image: Path) -> None:
    out, _ = run("inspect", image, "tree", "/names", "/dev/null")
    lines = out.splitlines()
    assert any("/names/\\xff\\xfe\\x80bad" in line for line in lines)
    assert any("crw-r--r--" in line and " 1:3 " in line and line.endswith(" /dev/null") for line in lines)
    assert not any("/big" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_path_that_is_no_utf8(image: Path) -> None:
    out, _ = run("inspect", image, "tree", b"/names/\xff\xfe\x80bad")
    assert len(out.splitlines()) == 1


def test_chunks(image: Path) -> None:
    files = [json.loads(line) for line in run("inspect", image, "tree", "--json")[0].splitlines()]
    largest = max(files, key=lambda file: file["size"])
    report = json.loads(run("inspect", image, "chunks", largest["path"], "--json")[0])
    assert sum(chunk["size"] for chunk in report["chunks"]) == report["size"] == largest["size"]
    assert all(len(chunk["digest"]) == 64 for chunk in report["chunks"])
    out, _ = run("inspect", image, "chunks", largest["path"])
    assert len(out.splitlines()) == 2 + len(report["chunks"])
    assert report["chunks"][0]["digest"] in out


def test_prefetch(image: Path) -> None:
    assert run("inspect", image, "prefetch")[0] == "no prefetch table\n"
    nid = json.loads(run("inspect", image, "tree", "/dev", "--json")[0].splitlines()[0])["nid"]
    patch(image, 1152 + 40, struct.pack("<QI", 4096 + 256, 8))
    patch(image, 4096 + 256, struct.pack("<II", nid, 0))
    assert json.loads(run("inspect", image, "prefetch", "--json")[0]) == [{"nid": nid, "path": "/dev"}]
    assert run("inspect", image, "prefetch")[0].split() == ["nid", "path", str(nid), "/dev"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tree", "/no/such"], 1, "nydus-erofs: no such path in the image: /no/such\n"),
        (["chunks", "/dev"], 3, "nydus-erofs: not a regular file, so it has no chunks: /dev\n"),
        (["chunks"], 2, "chunks needs a PATH"),
        (["blobs", "/x"], 2, "blobs takes no PATH"),
        (["everything"], 2, "'everything' is not one of"),
    ],
)
def test_wrong_arguments(image: Path, arguments: list[str], code: int, message: str) -> None:
    out, err = run("inspect", image, *arguments, code=code)
    assert message in err
    assert out == ""


def test_inspect_of_a_broken_image(image: Path) -> None:
    patch(image, 1024 + 4, b"\1")
    _, err = run("inspect", image, code=3)
    assert err == "nydus-erofs: superblock: checksum is 1, not 0\n"


def test_reader_that_goes_away(image: Path) -> None:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{' '.join(COMMAND)} inspect {image} tree | head -1"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
