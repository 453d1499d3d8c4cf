"""A source whose owner puts other things in the place of what was listed, at the worst moments: a build that runs as
root takes nothing that he could not have given it anyway."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.builder.descent import Descent, Files, Root
from nydus_erofs.builder.walk import DirectorySource
from nydus_erofs.erofs.errors import SourceError
from tests.kit.processes import descriptors

SWAP = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
pairs = [tuple(os.fsencode(name) for name in pair.split(":")) for pair in sys.argv[1:]]
while os.getppid() > 1:
    for a, b in pairs:
        assert libc.renameat2(-100, a, -100, b, 2) == 0  # AT_FDCWD, RENAME_EXCHANGE
    time.sleep(0.001)
"""


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """What is not for those who own the source, with the names it has there."""
    folder = tmp_path / "secret"
    folder.mkdir(mode=0o700)
    (folder / "shadow").write_text("root:secret hash")
    (folder / "mine").write_text("root:secret mine")
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`a0`, ... with a file each, and `zz` with `mine`."""
    root = tmp_path / "tree"
    for name in [*(f"a{number}/file" for number in range(5)), "zz/mine"]:
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(name)
    return root


@pytest.fixture
def opened() -> Iterator[Callable[[Path], Root]]:
    fds = []

    def opened(path: Path) -> Root:
        fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        return Root(fds[-1], os.fsencode(path), b"/proc/self/fd/")

    yield opened
    for fd in fds:
        os.close(fd)


def source(root: Root, **options: Any) -> DirectorySource:
    return DirectorySource(root, own_outputs={}, chunk_size=1 << 20, **options)


def replace(path: Path, kind: str, target: Path) -> None:
    """Something else under the name of `path`."""
    path.rename(path.with_name("moved away"))
    if kind == "link":
        path.symlink_to(target)
    elif kind == "folder":
        path.mkdir()
        (path / "shadow").write_text("another")
    elif kind == "file":
        path.write_text("another")
    else:
        os.mknod(path, stat.S_IFIFO | 0o600)


@pytest.mark.parametrize("kind", ["link", "folder", "file", "fifo"])
def test_a_folder_that_is_replaced(kind: str, tree: Path, secret: Path, opened: Any) -> None:
    """After it was listed by name, before it is opened."""
    listings = source(opened(tree)).listings()
    assert [node.name for node in next(listings).nodes][-1] == b"zz"
    replace(tree / "zz", kind, secret)
    with pytest.raises(SourceError, match="/zz changed while the image was built"):
        list(listings)


@pytest.mark.parametrize("kind", ["link", "folder", "file", "fifo"])
@pytest.mark.parametrize("name", ["empty", "socket", "link"])
def test_a_name_that_is_replaced(kind: str, name: str, tree: Path, secret: Path, opened: Any) -> None:
    """After its attributes were read, before its xattrs and its target are."""
    (tree / "empty").touch()
    os.mknod(tree / "socket", stat.S_IFSOCK | 0o600)
    (tree / "link").symlink_to("zz")

    def between(found: bytes, mode: int, rdev: int) -> bool:
        if os.fsdecode(found) == name:
            replace(tree / name, kind, secret)
        return False

    with pytest.raises(SourceError, match=f"/{name} changed while the image was built"):
        next(source(opened(tree), whiteout=between).listings())


def test_a_file_with_xattrs_that_is_replaced(tree: Path, opened: Any) -> None:
    os.setxattr(tree / "zz" / "mine", "user.x", b"1")

    def between(name: bytes, mode: int, rdev: int) -> bool:
        if name == b"mine":
            replace(tree / "zz" / "mine", "file", tree)
            os.setxattr(tree / "zz" / "mine", "user.x", b"2")
        return False

    with pytest.raises(SourceError, match="/zz/mine changed"):
        list(source(opened(tree), whiteout=between).listings())


@pytest.mark.parametrize("what", ["zz", "zz/mine"])
def test_reading_follows_no_link(what: str, tree: Path, secret: Path, opened: Any) -> None:
    """Neither where a folder was nor where the file itself was; the folder is not even looked into."""
    files = Files(opened(tree))
    path = os.fsencode(tree / "zz" / "mine")
    replace(tree / what, "link", secret if what == "zz" else secret / "mine")
    with pytest.raises(SourceError, match="/zz/mine changed"):
        files.open(path)
    files.close()


def test_a_folder_that_was_opened_stays_the_same(tree: Path, secret: Path, opened: Any) -> None:
    files = Files(opened(tree))
    path = os.fsencode(tree / "zz" / "mine")
    os.close(files.open(path))
    replace(tree / "zz", "link", secret)
    with os.fdopen(files.open(path)) as file:
        assert file.read() == "zz/mine"
    files.close()


def deep(root: Path, depth: int) -> Path:
    bottom = root.joinpath(*(["d"] * depth))
    bottom.mkdir(parents=True)
    return bottom


def test_few_descriptors_however_deep(tmp_path: Path, opened: Any) -> None:
    """Down 300 levels and up again, with something on each level that comes after the folder below."""
    root = tmp_path / "tree"
    deep(root, 300)
    for depth in range(300):
        (root.joinpath(*(["d"] * depth)) / "e").mkdir()
    before = len(descriptors())
    most = seen = 0
    for _ in source(opened(root)).listings():
        most = max(most, len(descriptors()))
        seen += 1
    assert seen == 601
    assert most < before + 50
    assert len(descriptors()) == before + 1  # the source itself


def test_a_folder_moved_away_with_us_in_it(tmp_path: Path, opened: Any) -> None:
    """What is above it now is not what was: the way back must not lead there."""
    root = tmp_path / "tree"
    bottom = deep(root, 60)
    place = Descent(opened(root))
    place.go([b"d"] * 60)
    assert os.fstat(place.fd).st_ino == bottom.stat().st_ino
    upper = root.joinpath(*(["d"] * 10))
    upper.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="/d/d/d changed while the image was built"):
        place.go([b"d", b"e"])
    place.close()


def test_back_and_down_again(tmp_path: Path, opened: Any) -> None:
    root = tmp_path / "tree"
    bottom = deep(root, 60)
    (bottom.parent / "other").mkdir()
    place = Descent(opened(root))
    for steps in ([b"d"] * 60, [b"d"] * 3, [b"d"] * 60, [b"d"] * 59 + [b"other"], [], [b"d"] * 40):
        place.go(steps)
        assert os.fstat(place.fd).st_ino == root.joinpath(*map(os.fsdecode, steps)).stat().st_ino
    place.close()


def test_a_build_leaves_no_descriptor(tree: Path, build_image: Any, tmp_path: Path) -> None:
    before = descriptors()
    build_image(tree, tmp_path / "out", workers=1)
    (tree / "zz" / "mine").unlink()
    os.mkfifo(tree / "zz" / "mine")
    build_image(tree, tmp_path / "out", workers=2)
    assert descriptors() == before


@pytest.mark.root
def test_without_proc(tree: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nydus_erofs", "build", tree, "-o", tmp_path]
    without = ["unshare", "--mount", "sh", "-c", 'umount -l /proc && exec "$@"', "sh"]
    done = subprocess.run([*without, *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert done.stderr == (
        "nydus-erofs: a build needs /proc, which is not mounted\n  hint: mount -t proc proc /proc\n"
    )


@pytest.mark.root
@pytest.mark.parametrize("workers", [1, 2])
def test_swapping_all_the_time(
    workers: int, tree: Path, secret: Path, build_image: Any, open_image: Any, tmp_path: Path
) -> None:
    """A folder, a file in it and one below it change places with links to what is secret while builds run."""
    for number in range(5, 200):
        (tree / f"a{number}").mkdir()
        (tree / f"a{number}" / "file").write_text(f"a{number}/file")
    (tmp_path / "to folder").symlink_to(secret)
    (tmp_path / "to file").symlink_to(secret / "mine")
    pairs = [f"{tree}/zz:{tmp_path}/to folder", f"{tree}/a199/file:{tmp_path}/to file"]
    swapper = subprocess.Popen([sys.executable, "-c", SWAP, *pairs])
    built = refused = 0
    try:
        for number in range(30):
            try:
                result = build_image(tree, tmp_path / f"out{number}", workers=workers)
            except SourceError as error:
                assert "changed while" in error.message or "vanished while" in error.message
                refused += 1
                continue
            built += 1
            image = open_image(result)
            found = dict(image.bootstrap.walk())
            assert b"/zz/shadow" not in found
            assert len(found) - (b"/zz/mine" in found) == 402
            for path, inode in found.items():
                if inode.is_regular:
                    assert b"".join(image.stream(inode.nid)) == path[1:]
                elif inode.is_symlink:
                    assert os.fsdecode(image.bootstrap.readlink(inode.nid)).startswith(str(secret))
    finally:
        swapper.kill()
        swapper.wait()
    assert built + refused == 30
