"""The reader on images that Nydus does not write, and on images meant to hurt it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.erofs.errors import CorruptError, FormatError, NoSuchPathError, NydusErofsError, UnsupportedError
from nydus_erofs.erofs.image import Bootstrap
from nydus_erofs.erofs.ondisk import Layout
from nydus_erofs.erofs.rules import Rule
from nydus_erofs.erofs.source import BufferSource


@pytest.fixture(scope="module")
def tree(nodes: Any) -> Any:
    linked = nodes.regular(b"two names" * 700)
    return nodes.folder(
        {
            b" first": nodes.regular(b"sorts before the dots"),
            b"-": nodes.folder(),
            b"block": nodes.node(0o060640, rdev=0x10301),
            b"deep": nodes.folder({b"er": nodes.folder({b"file": nodes.regular(b"", uid=5, gid=6)})}),
            b"fifo": nodes.node(0o010600),
            b"hard1": linked,
            b"hard2": linked,
            b"long": nodes.symlink(b"t" * 4090),
            b"many": nodes.folder({b"%0200d" % i: nodes.regular(b"%d" % i) for i in range(100)}),
            b"socket": nodes.node(0o140755),
            b"tags": nodes.regular(b"x" * 5000, xattrs={b"user.big": b"y" * 4000, b"trusted.t": b""}),
            b"target": nodes.symlink(b"deep/er"),
            b"\xff\xfe": nodes.regular(b"no UTF-8"),
        }
    )


@pytest.mark.parametrize("compact", [False, True])
def test_made_image(compact: bool, tree: Any, make: Any) -> None:
    image = make(tree, compact=compact).image()
    bootstrap = image.bootstrap

    def compare(path: bytes, node: Any) -> None:
        inode = bootstrap.lookup(path)
        assert (inode.mode, inode.uid, inode.gid, inode.rdev) == (node.mode, node.uid, node.gid, node.rdev)
        assert bootstrap.xattrs(inode.nid) == node.xattrs
        assert inode.header_size == (32 if compact else 64)
        if inode.is_regular:
            assert image.read_at(inode.nid, 0, 1 << 30) == node.data
        elif inode.is_symlink:
            assert bootstrap.readlink(inode.nid) == node.data
        elif inode.is_dir:
            assert [entry.name for entry in bootstrap.listdir(inode.nid)] == sorted(node.children)
            for name, child in node.children.items():
                compare(path.rstrip(b"/") + b"/" + name, child)

    compare(b"/", tree)
    assert bootstrap.lookup(b"/hard1") == bootstrap.lookup(b"/hard2")
    assert bootstrap.lookup(b"/hard1").nlink == 2
    assert bootstrap.lookup(b"/long").layout == Layout.FLAT_PLAIN
    assert bootstrap.lookup(b"deep//er/") == bootstrap.lookup(b"/deep/er")
    assert [path for path, _ in bootstrap.walk()][:3] == [b"/", b"/ first", b"/-"]


@pytest.mark.oracle
@pytest.mark.parametrize("compact", [False, True])
def test_the_made_image_is_one(compact: bool, tree: Any, make: Any, oracles: Any, tmp_path: Path) -> None:
    """What the other tests rely on: fsck.erofs takes the maker's images for real ones, and reads their contents."""
    made = make(tree, compact=compact)
    (tmp_path / "boot").write_bytes(made.boot)
    image = made.image()
    reader = image.reader(0)
    with (tmp_path / "device").open("wb") as device:
        for number, info in enumerate(reader.chunks.rows()):
            device.seek(info.uncompressed_offset)
            device.write(reader.read(number))
        device.truncate(reader.entry.uncompressed_size)
    out = tmp_path / "out"
    command = [oracles.fsck_erofs, f"--device={tmp_path / 'device'}", f"--extract={out}", "--no-preserve"]
    subprocess.run([*command, tmp_path / "boot"], check=True, timeout=60, capture_output=True)
    assert (out / "tags").read_bytes() == b"x" * 5000
    assert (out / "hard2").read_bytes() == b"two names" * 700
    assert len(list((out / "many").iterdir())) == 100


@pytest.mark.parametrize("compact", [False, True])
def test_image_without_a_blob(compact: bool, make: Any, nodes: Any) -> None:
    bootstrap = make(nodes.folder({b"d": nodes.folder(), b"e": nodes.regular()}), compact=compact).bootstrap()
    assert bootstrap.blobs == []
    assert bootstrap.area.start == 0
    assert [path for path, _ in bootstrap.walk()] == [b"/", b"/d", b"/e"]


def test_no_such_path(tree: Any, make: Any) -> None:
    bootstrap = make(tree).bootstrap()
    for path in (b"/nope", b"/deep/nope", b"/fifo/x", b"/hard1/"[:-1] + b"/x"):
        with pytest.raises(NoSuchPathError):
            bootstrap.lookup(path)


def test_wrong_kind_of_file(tree: Any, make: Any) -> None:
    image = make(tree).image()
    bootstrap = image.bootstrap
    with pytest.raises(FormatError, match="not a symlink"):
        bootstrap.readlink(bootstrap.root_nid)
    with pytest.raises(FormatError, match="not a directory"):
        bootstrap.listdir(bootstrap.lookup(b"/fifo").nid)
    with pytest.raises(FormatError, match="not a regular file"):
        image.read_at(bootstrap.root_nid, 0, 1)


def test_every_chunk_is_verified(load: Any, edit: Any) -> None:
    editor = edit(load("none-sha256"))
    editor.blob[100] ^= 1
    image = editor.made.image()
    reader = image.reader(0)
    hit = next(
        n for n, info in enumerate(reader.chunks.rows()) if 0 <= 100 - info.compressed_offset < info.compressed_size
    )
    wrong = []
    for path, inode in image.bootstrap.walk():
        if inode.is_regular:
            try:
                list(image.stream(inode.nid))
            except CorruptError as error:
                wrong.append(path)
                assert f"chunk {hit} " in error.message
                assert image.bootstrap.blobs[0].id in error.message
    assert wrong


def test_chunk_that_cannot_be_decoded(load: Any, edit: Any) -> None:
    for name in ("plain", "lz4", "batch"):
        editor = edit(load(name))
        size = editor.original.blobs[0].entry.ci_offset
        editor.blob[:size] = bytes(size)
        image = editor.made.image()
        largest = max((inode for _, inode in image.bootstrap.walk()), key=lambda inode: inode.size)
        with pytest.raises(CorruptError):
            image.read_at(largest.nid, 0, 10)


# --- hostile images ---


def rule_of(made: Any) -> Rule:
    with pytest.raises(FormatError) as caught:
        list(made.bootstrap().walk())
    return caught.value.rule


def test_directory_below_itself(tree: Any, make: Any, edit: Any) -> None:
    editor = edit(make(tree))
    editor.dirent(b"/deep", b"er", nid=editor.original.root_nid)
    assert rule_of(editor.made) == Rule.DIRECTORY_LOOP
    editor = edit(make(tree))
    editor.dirent(b"/deep", b"er", nid=editor.original.lookup(b"/deep").nid)
    assert rule_of(editor.made) == Rule.DIRECTORY_LOOP


@pytest.mark.parametrize("size", [1 << 20, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("path", [b"/", b"/hard1", b"/target"])
def test_huge_sizes(size: int, path: bytes, tree: Any, make: Any, edit: Any) -> None:
    editor = edit(make(tree))
    editor.inode(path, file_size=size if path != b"/hard1" else max(size, 1 << 30))
    assert rule_of(editor.made) in (Rule.INODE_BOUNDS, Rule.INODE_SIZE, Rule.INLINE_TAIL)


@pytest.mark.parametrize("nid", [0, 1, 1 << 31, 1 << 59, (1 << 64) - 1])
def test_nids_into_nowhere(nid: int, tree: Any, make: Any, edit: Any) -> None:
    editor = edit(make(tree))
    editor.dirent(b"/deep", b"er", nid=nid)
    assert rule_of(editor.made) in (Rule.INODE_BOUNDS, Rule.INODE_FORMAT)


def test_endless_path(make: Any, nodes: Any) -> None:
    node = nodes.folder()
    for _ in range(40_000):
        node = nodes.folder({b"d": node})
    started = time.monotonic()
    assert rule_of(make(node)) == Rule.PATH_LENGTH
    assert time.monotonic() - started < 20


def test_64_levels_of_longest_names(make: Any, nodes: Any) -> None:
    node = nodes.folder()
    for _ in range(64):
        node = nodes.folder({b"d" * 255: node})
    assert len(list(make(node).bootstrap().walk())) == 65


def test_chunk_info_that_claims_to_be_large(load: Any, edit: Any) -> None:
    """A decompression bomb: the size it claims is refused before anything is decompressed."""
    editor = edit(load("plain"))
    editor.blob_entry(ci_uncompressed_size=1 << 36)
    with pytest.raises(FormatError) as caught:
        editor.made.bootstrap()
    assert caught.value.rule == Rule.BLOB_TABLE


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", FormatError, "0 bytes"),
        (b"x" * 100, FormatError, "100 bytes"),
        (bytes(4096), FormatError, "no EROFS superblock"),
        (b"\x1f\x8b" + bytes(9000), FormatError, "not a RAFS v6 bootstrap"),
        (b"SFAR" + bytes(9000), UnsupportedError, "RAFS v5"),
    ],
)
def test_foreign_files(data: bytes, error: type[NydusErofsError], message: str) -> None:
    with pytest.raises(error, match=message):
        Bootstrap(BufferSource(data))


@pytest.mark.oracle
def test_plain_erofs_is_refused(oracles: Any, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "file").write_text("text")
    image = tmp_path / "image"
    subprocess.run([oracles.mkfs_erofs, image, tmp_path / "src"], check=True, timeout=60, capture_output=True)
    with pytest.raises(FormatError, match="EROFS image, but not a RAFS v6 bootstrap"):
        Bootstrap(BufferSource(image.read_bytes()))


@pytest.mark.parametrize("kept", [0, 1, 1023, 1500, 4095, 4096, 5000, 8192, 12288, 100_000, 204_800])
def test_truncated(kept: int, load: Any) -> None:
    with pytest.raises(FormatError):
        list(Bootstrap(BufferSource(load("plain").boot[:kept])).walk())


def test_walk_of_many_files_is_fast(make: Any, nodes: Any) -> None:
    """A tenth of the tree that must be walked in 3 s, with room for a busy machine."""
    tree = nodes.folder(
        {b"%04d" % i: nodes.folder({b"a": nodes.regular(), b"b": nodes.regular()}) for i in range(7000)}
    )
    bootstrap = make(tree).bootstrap()
    started = time.process_time()
    assert sum(1 for _ in bootstrap.walk()) == 21_001
    assert time.process_time() - started < 1.0
