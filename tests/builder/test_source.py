"""What of a directory is in its image: excludes, whiteouts, own outputs, extremes of names, depth and number."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.builder import WhiteoutSpec
from nydus_erofs.builder.exclude import exclude_test
from nydus_erofs.erofs.errors import ConfigError, SourceError, UnsupportedError


def names(image: Any) -> set[str]:
    return {os.fsdecode(path) for path, _ in image.bootstrap.walk()} - {"/"}


def plant(root: Path, *files: str) -> Path:
    root.mkdir()
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


@pytest.mark.parametrize(
    ("pattern", "out"),
    [
        ("*.o", ["a.o", "src/b.o", "src/deep/c.o"]),
        ("src/*.o", ["src/b.o", "src/deep/c.o"]),
        ("/*.o", ["a.o", "src/b.o", "src/deep/c.o"]),
        ("/a.o", ["a.o"]),
        ("deep", ["src/deep", "src/deep/c.o"]),
        ("deep/", ["src/deep", "src/deep/c.o"]),
        ("a.o/", []),
        ("src/", ["src", "src/b.o", "src/deep", "src/deep/c.o", "src/x.c"]),
        ("[ab].o", ["a.o", "src/b.o"]),
        ("?.c", ["src/x.c"]),
        ("nothing", []),
    ],
)
def test_excludes(pattern: str, out: list[str], build_image: Any, open_image: Any, tmp_path: Path) -> None:
    tree = plant(tmp_path / "tree", "a.o", "src/b.o", "src/deep/c.o", "src/x.c")
    everything = {"/" + str(path.relative_to(tree)) for path in tree.rglob("*")}
    result = build_image(tree, tmp_path / "out", exclude=(pattern,))
    assert names(open_image(result)) == everything - {"/" + name for name in out}


def test_an_exclude_must_name_something() -> None:
    with pytest.raises(ConfigError):
        exclude_test(["/"])
    assert exclude_test([]) is None


def test_excludes_are_bytes() -> None:
    test = exclude_test([os.fsdecode(b"\xff*")])
    assert test
    assert test(b"a/\xff\xfe", False)
    assert not test(b"a/\xfe", False)


@pytest.mark.root
@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        (WhiteoutSpec.OCI, {"/device", "/opaque", "/opaque/x", "/null"}),
        (WhiteoutSpec.OVERLAYFS, {"/.wh.gone", "/.wh.folder", "/.wh.folder/y", "/opaque", "/opaque/x",
                                  "/opaque/.wh..wh..opq", "/null"}),
        (WhiteoutSpec.NONE, {"/.wh.gone", "/.wh.folder", "/.wh.folder/y", "/device", "/opaque", "/opaque/x",
                             "/opaque/.wh..wh..opq", "/null"}),
    ],
)  # fmt: skip
def test_whiteouts(spec: WhiteoutSpec, kept: set[str], build_image: Any, open_image: Any, tmp_path: Path) -> None:
    tree = plant(tmp_path / "tree", ".wh.gone", ".wh.folder/y", "opaque/x", "opaque/.wh..wh..opq")
    os.mknod(tree / "device", stat.S_IFCHR | 0o600, 0)
    os.mknod(tree / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.setxattr(tree / "opaque", "trusted.overlay.opaque", b"y")
    image = open_image(build_image(tree, tmp_path / "out", whiteout_spec=spec))
    assert names(image) == kept
    assert image.bootstrap.xattrs(image.bootstrap.lookup(b"/opaque").nid) == {b"trusted.overlay.opaque": b"y"}


def test_the_output_is_not_its_own_input(build_image: Any, open_image: Any, tmp_path: Path) -> None:
    tree = plant(tmp_path / "tree", "a", "sub/b", "sub/old.meta")
    for _ in range(2):
        result = build_image(tree, tree / "sub" / "out", bootstrap=tree / "sub" / "old.meta")
        assert names(open_image(result)) == {"/a", "/sub", "/sub/b"}
        assert sorted(result.own_outputs) == [f"{tree}/sub/old.meta", f"{tree}/sub/out"]
    with pytest.raises(ConfigError, match="its own image"):
        build_image(tree, tree)
    assert sorted(path.name for path in tree.iterdir()) == ["a", "sub"]


def test_the_source_may_be_a_symlink(build_image: Any, open_image: Any, tmp_path: Path) -> None:
    plant(tmp_path / "tree", "a")
    (tmp_path / "link").symlink_to("tree")
    result = build_image(tmp_path / "link", tmp_path / "out")
    assert result.bootstrap.name == "tree.meta"
    assert names(open_image(result)) == {"/a"}


def test_an_empty_directory(build_image: Any, assert_sound: Any, tmp_path: Path) -> None:
    result = build_image(plant(tmp_path / "tree"), tmp_path / "out")
    assert (result.blob, result.files, result.directories) == (None, 0, 1)
    assert_sound(result)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["output.json", "tree.meta"]


def test_a_hundred_thousand_names(build_image: Any, open_image: Any, assert_sound: Any, tmp_path: Path) -> None:
    (tree := tmp_path / "tree").mkdir()
    for number in range(100_000):
        os.close(os.open(tree / f"{number}", os.O_CREAT | os.O_WRONLY))
    result = build_image(tree, tmp_path / "out")
    assert_sound(result)
    assert names(open_image(result)) == {f"/{number}" for number in range(100_000)}


def test_deeper_than_a_path_can_be_long(build_image: Any, open_image: Any, tmp_path: Path) -> None:
    """1,500 levels, 9,000 bytes of path: no recursion, and no system call that gets it all."""
    (tree := tmp_path / "tree").mkdir()
    fd = os.open(tree, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("level", dir_fd=fd)
        inner = os.open("level", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    with open(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd), "wb") as file:
        file.write(b"deep down")
    os.symlink("target", "link", dir_fd=fd)
    os.setxattr(f"/proc/self/fd/{fd}/bottom", "user.depth", b"1500")
    os.close(fd)
    image = open_image(build_image(tree, tmp_path / "out", workers=2))
    bottom = image.bootstrap.lookup(b"/level" * 1500 + b"/bottom")
    assert b"".join(image.stream(bottom.nid)) == b"deep down"
    assert image.bootstrap.xattrs(bottom.nid) == {b"user.depth": b"1500"}
    assert image.bootstrap.readlink(image.bootstrap.lookup(b"/level" * 1500 + b"/link").nid) == b"target"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nydus_erofs.builder.walk.MAX_PATH", 8000)
        with pytest.raises(SourceError, match="paths longer than 8000 bytes below"):
            build_image(tree, tmp_path / "out")
    subprocess.run(["rm", "-rf", tree], check=True)  # shutil.rmtree recurses too deep for this one


@pytest.mark.root
def test_an_xattr_that_does_not_fit_is_refused(build_image: Any, tmp_path: Path) -> None:
    """Linux allows 65,536 bytes, the format one less. Of the usual filesystems only tmpfs takes as many."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        tree = plant(Path(folder) / "tree", "file")
        os.setxattr(tree / "file", "trusted.large", bytes(65536))
        with pytest.raises(SourceError, match=r"/file: .*trusted\.large"):
            build_image(tree, tmp_path / "out")
        os.setxattr(tree / "file", "trusted.large", bytes(65535))
        build_image(tree, tmp_path / "out")


def test_more_metadata_than_a_bootstrap_can_have(build_image: Any, tmp_path: Path) -> None:
    """Found out before any memory is taken."""
    tree = plant(tmp_path / "tree", "file")
    os.truncate(tree / "file", 2 << 40)
    with pytest.raises(UnsupportedError, match="2048 MiB"):
        build_image(tree, tmp_path / "out", chunk_size=0x1000)
    assert list((tmp_path / "out").iterdir()) == []
    result = build_image(tree, tmp_path / "out", chunk_size=0x1000000)
    assert (result.chunks, result.distinct_chunks) == ((2 << 40) // 0x1000000, 2)  # its first one has text


def test_more_chunks_than_a_blob_can_have(build_image: Any, tmp_path: Path, monkeypatch: Any) -> None:
    tree = plant(tmp_path / "tree", "a", "b", "c", "d")
    monkeypatch.setattr("nydus_erofs.builder.blob.MAX_CHUNKS", 3)
    with pytest.raises(UnsupportedError, match="3 different chunks"):
        build_image(tree, tmp_path / "out")
    (tree / "d").unlink()
    assert build_image(tree, tmp_path / "out").chunks == 3
