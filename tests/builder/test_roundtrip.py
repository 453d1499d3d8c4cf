"""Whatever tree there is: what the reader finds in its image is what is on disk, for any options."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nydus_erofs.builder import WhiteoutSpec
from nydus_erofs.erofs.rafs import Compression, DigestAlgo

pytestmark = pytest.mark.root

CHUNK = 4096

names = st.one_of(
    st.sampled_from([b"a", b"b", b"!", b"-x", b".-", b"...", b"~", b"\xff", b".wh.a", b"n" * 255]),
    st.binary(min_size=1, max_size=40).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")),
)
xattrs = st.dictionaries(
    st.sampled_from(["user.a", "user.bb", "trusted.c", "security.ddd"]), st.binary(max_size=600), max_size=2
)
times = st.integers(-(2**31) * 10**9, 2**33 * 10**9)
# Few kinds of blocks, so that chunks are equal often; the end of a file is of any length.
contents = st.builds(
    lambda blocks, end: b"".join(bytes([b]) * CHUNK for b in blocks) + end,
    st.lists(st.integers(0, 3), max_size=5),
    st.binary(max_size=50),
)


def attributes(node: st.SearchStrategy[tuple[Any, ...]]) -> st.SearchStrategy[tuple[Any, ...]]:
    owner = st.sampled_from([0, 1, 65536, 2**32 - 2])
    return st.tuples(node, st.integers(0, 0o7777), owner, owner, times, xattrs)


files = st.one_of(
    st.tuples(st.just("file"), contents),
    st.tuples(st.just("hole"), st.integers(0, 6 * CHUNK), st.integers(0, 6 * CHUNK)),
    st.tuples(st.just("symlink"), st.integers(1, 4095)),
    st.tuples(st.sampled_from(["fifo", "chr", "blk"]), st.integers(0, 4095), st.integers(0, 2**20 - 1)),
    st.tuples(st.just("link"), st.integers(0, 10)),
)
trees = st.recursive(
    st.dictionaries(names, attributes(files), max_size=6),
    lambda inner: st.dictionaries(
        names, st.one_of(attributes(files), attributes(st.tuples(st.just("folder"), inner))), max_size=5
    ),
    max_leaves=12,
)


def plant(folder: bytes, tree: dict[bytes, Any], links: list[bytes]) -> None:
    """Make the tree; `links` collects regular files that may get more names."""
    os.mkdir(folder)
    for name, (node, mode, uid, gid, mtime, extra) in tree.items():
        path = folder + b"/" + name
        match node:
            case ("folder", inner):
                plant(path, inner, links)
            case ("file", data):
                with open(path, "wb") as file:
                    file.write(data)
                links.append(path)
            case ("hole", start, length):
                with open(path, "wb") as file:
                    file.truncate(start + length)
                    os.pwrite(file.fileno(), b"x", start)
            case ("symlink", length):
                os.symlink(b"t" * length, path)
            case ("link", number):
                if links:
                    os.link(links[number % len(links)], path)
                continue
            case (kind, major, minor):
                modes = {"fifo": stat.S_IFIFO, "chr": stat.S_IFCHR, "blk": stat.S_IFBLK}
                os.mknod(path, modes[kind] | 0o600, os.makedev(major, minor) if kind != "fifo" else 0)
        os.chown(path, uid, gid, follow_symlinks=False)
        if node[0] != "symlink":
            os.chmod(path, mode)
        for attribute, value in extra.items():
            if not attribute.startswith("user.") or node[0] in ("file", "hole", "folder"):
                os.setxattr(path, attribute, value, follow_symlinks=False)
        os.utime(path, ns=(0, mtime), follow_symlinks=False)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("roundtrip")
    yield path
    shutil.rmtree(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    tree=trees,
    chunk_size=st.sampled_from([CHUNK, 8 * CHUNK]),
    compression=st.sampled_from([Compression.NONE, Compression.LZ4_BLOCK, Compression.ZSTD]),
    digest=st.sampled_from(list(DigestAlgo)),
)
def test_what_goes_in_comes_out(
    tree: Any, chunk_size: int, compression: Compression, digest: DigestAlgo, work: Path,
    build_image: Any, open_image: Any, assert_same: Any, assert_sound: Any,
) -> None:  # fmt: skip
    source, out = work / "source", work / "out"
    for path in (source, out):
        shutil.rmtree(path, ignore_errors=True)
    plant(os.fsencode(source), tree, [])
    result = build_image(
        source, out, chunk_size=chunk_size, compression=compression, digest=digest, whiteout_spec=WhiteoutSpec.NONE
    )
    assert_sound(result)
    assert_same(open_image(result), source)
