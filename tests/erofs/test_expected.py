"""The reader against images that Nydus built: the tree they were built from comes back exactly."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.erofs.check import examine
from nydus_erofs.erofs.errors import UnsupportedError
from nydus_erofs.erofs.image import Bootstrap, Image
from nydus_erofs.erofs.source import BufferSource, FdSource, FileSource


def described(bootstrap: Bootstrap, image: Image | None) -> dict[str, dict[str, Any]]:
    """The tree in the form of expected.json; without contents if there is no image."""
    out = {}
    for path, inode in bootstrap.walk():
        entry: dict[str, Any] = {
            "mode": oct(inode.mode),
            "uid": inode.uid,
            "gid": inode.gid,
            "mtime_ns": inode.mtime * 10**9 + inode.mtime_nsec,
        }
        if inode.is_regular:
            entry |= {"size": inode.size, "nlink": inode.nlink}
            if image is not None:
                digest = hashlib.sha256()
                for chunk in image.stream(inode.nid):
                    digest.update(chunk)
                entry["sha256"] = digest.hexdigest()
        elif inode.is_symlink:
            entry["target"] = bootstrap.readlink(inode.nid).hex()
        elif stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
            rdev = inode.rdev
            entry["rdev"] = [rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00]
        if xattrs := bootstrap.xattrs(inode.nid):
            entry["xattrs"] = {name.decode(): value.hex() for name, value in xattrs.items()}
        out[(path[1:] or b".").hex()] = entry
    return out


@pytest.fixture(scope="module")
def expected(nydus_images: Path) -> dict[str, dict[str, Any]]:
    tree: dict[str, dict[str, Any]] = json.loads((nydus_images / "expected.json").read_text())
    tree[b".".hex()]["mtime_ns"] = 0  # Nydus drops the root's
    return tree


@pytest.mark.parametrize("name", ["plain", "lz4", "none-sha256", "toc", "batch"])
def test_tree_and_contents(name: str, load: Any, expected: dict[str, dict[str, Any]]) -> None:
    made = load(name)
    assert described(made.bootstrap(), made.image()) == expected


@pytest.mark.parametrize("name", ["tar", "zran", "tar-ref", "encrypt"])
def test_tree_of_other_sources(name: str, load: Any, expected: dict[str, dict[str, Any]]) -> None:
    """Metadata of images whose contents a later version reads; a tar has whole seconds and no sockets."""
    made = load(name)
    tree = described(made.bootstrap(), made.image() if name == "tar" else None)
    want = {path: dict(entry) for path, entry in expected.items()}
    for entry in want.values():
        if name != "tar":
            entry.pop("sha256", None)
    if name != "encrypt":
        for missing in (b"dev/sock", b"links/shl"):
            del want[missing.hex()]
        for entry in want.values():
            entry["mtime_ns"] -= entry["mtime_ns"] % 10**9
        tree[b".".hex()]["mtime_ns"] = 0
    assert tree == want


@pytest.mark.parametrize(
    ("name", "what"), [("encrypt", "encrypted"), ("zran", "zran"), ("tar-ref", "OCI layers used in place")]
)
def test_contents_that_are_not_read_yet(name: str, what: str, load: Any) -> None:
    image = load(name).image()
    nid = next(inode.nid for _, inode in image.bootstrap.walk() if inode.is_regular and inode.size)
    with pytest.raises(UnsupportedError, match=what):
        image.read_at(nid, 0, 1)


def test_read_at_anywhere(load: Any) -> None:
    image = load("plain").image()
    largest = max((inode for _, inode in image.bootstrap.walk()), key=lambda inode: inode.size)
    whole = b"".join(image.stream(largest.nid))
    assert len(whole) == largest.size > image.bootstrap.chunk_size
    step = image.bootstrap.chunk_size
    for offset in (0, 1, step - 1, step, step + 1, len(whole) - 1, len(whole), len(whole) + 5):
        for length in (0, 1, 2, 4096, step, step + 2, 1 << 40):
            assert image.read_at(largest.nid, offset, length) == whole[offset : offset + length]


def test_any_source_will_do(nydus_images: Path) -> None:
    path = nydus_images / "plain" / "boot"
    with path.open("rb") as file:
        trees = [
            list(Bootstrap(source).walk())
            for source in (
                BufferSource(path.read_bytes()),
                FdSource(file.fileno()),
                FileSource(os.dup(file.fileno())),
            )
        ]
    assert trees[0] == trees[1] == trees[2]


@pytest.mark.oracle
@pytest.mark.parametrize(
    "options",
    [[], ["--features", "blob-toc"], ["--compressor", "none", "--digester", "sha256", "--chunk-size", "0x1000"]],
    ids=" ".join,
)
def test_image_of_an_older_nydus(options: list[str], oracles: Any, tmp_path: Path) -> None:
    """What nydus-image 2.2 makes of a tree, with a prefetch table."""
    source, blobs = tmp_path / "source", tmp_path / "blobs"
    (source / "folder").mkdir(parents=True)
    blobs.mkdir()
    contents = {"empty": b"", "folder/large": random.Random(1).randbytes(3_000_000), "small": b"text" * 100}
    for name, data in contents.items():
        (source / name).write_bytes(data)
    (source / "link").symlink_to("folder/large")
    (source / "linked").hardlink_to(source / "small")
    command = [oracles.nydus_image, "create", "--type", "directory", "--fs-version", "6", "--bootstrap",
               tmp_path / "boot", "--blob-dir", blobs, "--prefetch-policy", "fs", *options, source]  # fmt: skip
    subprocess.run(command, input=b"/folder\n", check=True, timeout=60, capture_output=True)

    def blob(name: str) -> BufferSource:
        return BufferSource((blobs / name).read_bytes())

    boot = BufferSource((tmp_path / "boot").read_bytes())
    report = examine(boot, blob)
    assert report.findings == []
    assert report.blobs_read == 1
    image = Image(Bootstrap(boot), blob)
    for name, data in contents.items():
        assert image.read_at(image.bootstrap.lookup(name.encode()).nid, 0, 1 << 30) == data
    assert image.bootstrap.lookup(b"linked").nlink == 2
    assert list(image.bootstrap.prefetch_nids()) == [image.bootstrap.lookup(b"folder").nid]
