"""A tree with everything, judged by the kernel, by erofs-utils and by Nydus."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.erofs.rafs import Compression, DigestAlgo

pytestmark = pytest.mark.root

OPTIONS = {
    "default": {},
    "lz4": {"compression": Compression.LZ4_BLOCK},
    "none-sha256": {"compression": Compression.NONE, "digest": DigestAlgo.SHA256},
    "chunks-64k": {"chunk_size": 0x10000, "workers": 2},
    "chunks-16m": {"chunk_size": 0x1000000, "compression_level": 1},
}


@pytest.fixture(scope="session")
def rich_tree(make_rich_tree: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rich_tree(tmp_path_factory.mktemp("rich") / "tree")


@pytest.fixture(scope="session", params=OPTIONS)
def image(request: pytest.FixtureRequest, rich_tree: Path, build_image: Any, tmp_path_factory: Any) -> Any:
    return build_image(rich_tree, tmp_path_factory.mktemp("out"), **OPTIONS[request.param])


def test_the_kernel_shows_the_same_tree(image: Any, rich_tree: Path, kernel_mount: Any, compare_trees: Any) -> None:
    with kernel_mount(image) as mounted:
        compare_trees(rich_tree, mounted)


def test_our_checker_finds_nothing(image: Any, assert_sound: Any) -> None:
    assert_sound(image)


@pytest.mark.oracle
def test_erofs_utils_find_nothing(image: Any, oracles: Any, write_device: Any, tmp_path: Path) -> None:
    device = tmp_path / "device"
    write_device(image, device)
    run(oracles.fsck_erofs, "--extract", f"--device={device}", image.bootstrap)
    shown = run(oracles.dump_erofs, "-s", f"--device={device}", image.bootstrap)
    assert "Filesystem magic number" in shown
    device.unlink()


def test_a_file_beyond_4_gib(build_image: Any, kernel_mount: Any, assert_sound: Any, tmp_path: Path) -> None:
    (tree := tmp_path / "tree").mkdir()
    size, places = (4 << 30) + (3 << 20) + 5, (0, (1 << 30) - 3, (4 << 30) + 17, (4 << 30) + (3 << 20))
    with (tree / "large").open("wb") as file:
        file.truncate(size)
        for place in places:
            os.pwrite(file.fileno(), b"here", place)
    image = build_image(tree, tmp_path / "out")
    assert image.distinct_chunks == 6  # five with data, one of zeros
    assert_sound(image)
    with kernel_mount(image) as mounted, (mounted / "large").open("rb") as file:
        assert os.fstat(file.fileno()).st_size == size
        for place in places:
            start = max(place - 4096, 0)
            assert os.pread(file.fileno(), 8192, start) == os.pread(os.open(tree / "large", os.O_RDONLY), 8192, start)


@pytest.fixture(scope="module")
def nydus_tree(make_rich_tree: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without ACLs: Nydus 2.2 cannot read them, in its own images neither."""
    return make_rich_tree(tmp_path_factory.mktemp("for-nydus") / "tree", acls=False)


@pytest.mark.oracle
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_nydus_finds_nothing(options: Any, nydus_tree: Path, build_image: Any, oracles: Any, tmp_path: Path) -> None:
    image = build_image(nydus_tree, tmp_path / "out", **options)
    assert image.blob_id in run(oracles.nydus_image, "check", "-B", image.bootstrap, "-D", tmp_path / "out")


@pytest.mark.oracle
def test_nydus_makes_the_same_tree_and_nothing_smaller(
    nydus_tree: Path, build_image: Any, open_image: Any, oracles: Any, tmp_path: Path
) -> None:
    ours = build_image(nydus_tree, tmp_path / "ours")
    (theirs := tmp_path / "theirs").mkdir()
    run(oracles.nydus_image, "create", "-t", "directory", "-B", theirs / "boot", "-D", theirs, "--log-level", "warn",
        nydus_tree)  # fmt: skip
    (blob,) = (path for path in theirs.iterdir() if len(path.name) == 64)
    assert ours.bootstrap_size <= (theirs / "boot").stat().st_size
    assert ours.blob_size <= blob.stat().st_size * 1.001  # its zstd is of another version
    theirs_opened = open_image(replace(ours, bootstrap=theirs / "boot", blob=blob, blob_id=blob.name))
    assert facts(open_image(ours)) == facts(theirs_opened)


def facts(image: Any) -> dict[bytes, Any]:
    """All that a tree says, numbers that are a builder's own choice left out."""
    found = {}
    for path, inode in image.bootstrap.walk():
        attributes = [inode.mode, inode.size, inode.uid, inode.gid]
        if inode.is_regular or inode.is_dir:  # of others Nydus 2.2 counts links that it does not make
            attributes.append(inode.nlink)
            attributes += [inode.ino] if path != b"/" else []
        if path != b"/":  # there it has the nanoseconds of the root, without the seconds
            attributes += [inode.mtime, inode.mtime_nsec]
        rest: Any = inode.rdev
        if inode.is_symlink:
            rest = image.bootstrap.readlink(inode.nid)
        elif inode.is_regular:
            rest = [image.bootstrap.chunk_row(chunk).digest for chunk in image.bootstrap.chunk_indexes(inode)]
            attributes.append(inode.u)
        found[path] = attributes, rest, image.bootstrap.xattrs(inode.nid)
    return found


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
