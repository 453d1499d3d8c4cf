"""Parse and pack are inverse to each other, for anything that the format can hold."""

from __future__ import annotations

import os
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_erofs.erofs import blobmeta, dirent, inode, ondisk, toc, xattr
from nydus_erofs.erofs.blobmeta import ChunkInfo
from nydus_erofs.erofs.dirent import Dirent
from nydus_erofs.erofs.errors import FormatError, UnsupportedError
from nydus_erofs.erofs.inode import Area, ChunkIndex
from nydus_erofs.erofs.ondisk import Layout
from nydus_erofs.erofs.rafs import BlobFeatures
from nydus_erofs.erofs.rules import Rule
from nydus_erofs.erofs.source import BufferSource

# The same examples every time in CI, others at every run elsewhere.
many = settings(derandomize=os.environ.get("NYDUS_EROFS_NO_SKIPS") == "1", max_examples=100, deadline=None)

BLOCK = 4096

# --- directories ---

names = st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name)
# Short names that differ in few bits, and the dots, are where order goes wrong.
small_names = st.text(alphabet=" !-./012az~", min_size=1, max_size=4).map(str.encode).filter(lambda n: b"/" not in n)


@st.composite
def directories(draw: Any) -> list[Dirent]:
    chosen = {b".", b".."} | draw(st.sets(names | small_names, max_size=60))
    return [
        Dirent(name, draw(st.integers(0, (1 << 64) - 1)), draw(st.sampled_from(range(8)))) for name in sorted(chosen)
    ]


def blocks(data: bytes, size: int, block_size: int) -> list[bytes]:
    return [data[at : min(at + block_size, size)] for at in range(0, size, block_size)]


@many
@given(directories(), st.sampled_from([512, 4096]))
def test_directory(entries: list[Dirent], block_size: int) -> None:
    data, size = dirent.pack_blocks(entries, block_size)
    assert len(data) % block_size == 0
    assert 0 <= len(data) - size < block_size
    assert size == dirent.packed_size([entry.name for entry in entries], block_size)
    assert list(dirent.parse_blocks(blocks(data, size, block_size))) == entries
    # The same with the filling of the last block, as the kernel reads it from a plain directory.
    padded = dirent.parse_block(data[-block_size:])
    assert padded == entries[-len(padded) :]


def test_large_directory() -> None:
    entries = [Dirent(name, 5, 1) for name in sorted([b".", b"..", *(b"%06d" % i for i in range(100_000))])]
    data, size = dirent.pack_blocks(entries, BLOCK)
    assert list(dirent.parse_blocks(blocks(data, size, BLOCK))) == entries


@many
@given(directories())
def test_directory_out_of_order(entries: list[Dirent]) -> None:
    entries[0], entries[-1] = entries[-1], entries[0]
    with pytest.raises(FormatError) as caught:
        dirent.pack_blocks(entries, BLOCK)
    assert caught.value.rule == Rule.DIRENT_ORDER


@pytest.mark.parametrize("name", [b"", b"a/b", b"a\0", b"x" * 256])
def test_names_that_are_none(name: bytes) -> None:
    with pytest.raises(FormatError):
        dirent.pack_blocks([Dirent(name, 1, 1)], BLOCK)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        bytes(11),
        bytes(12),
        struct.pack("<QHBB", 1, 12, 1, 0),  # a name at the block's end: empty
        struct.pack("<QHBB", 1, 24, 1, 0) + b"a" * 20,  # the second entry is not one
        struct.pack("<QHBBQHBB", 1, 24, 1, 0, 2, 24, 1, 0) + b"ab",  # two names at one place
        struct.pack("<QHBBQHBB", 1, 24, 1, 0, 2, 999, 1, 0) + b"ab",
        struct.pack("<QHBBQHBB", 1, 26, 1, 0, 2, 25, 1, 0) + b"abcd",
        struct.pack("<QHBB", 1, 12, 9, 0) + b"a",
        struct.pack("<QHBB", 1, 12, 1, 0) + b"a" * 256,
        struct.pack("<QHBB", 1, 12, 1, 0) + b"\0a",
    ],
)
def test_blocks_that_are_none(block: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        dirent.parse_block(block)
    assert caught.value.rule in (Rule.DIRENT_FORMAT, Rule.DIRENT_NAME)


@many
@given(st.binary(max_size=200))
def test_any_block(data: bytes) -> None:
    try:
        entries = dirent.parse_block(data)
    except FormatError:
        return
    assert all(0 < len(entry.name) < 256 and b"/" not in entry.name for entry in entries)


# --- xattrs ---

suffixes = st.binary(min_size=1, max_size=240).filter(lambda name: b"\0" not in name)
xattr_names = st.one_of(
    st.sampled_from([b"system.posix_acl_access", b"system.posix_acl_default"]),
    st.builds(lambda prefix, rest: prefix + rest, st.sampled_from([b"user.", b"trusted.", b"security."]), suffixes),
)


@many
@given(st.dictionaries(xattr_names, st.binary(max_size=300), max_size=8))
def test_xattrs(xattrs: dict[bytes, bytes]) -> None:
    area = xattr.pack(xattrs)
    assert xattr.parse(area) == xattrs
    assert list(xattr.parse(area)) == sorted(xattrs)
    assert xattr.area_size(xattr.area_count(len(area))) == len(area)
    assert xattr.pack(dict(reversed(xattrs.items()))) == area


def test_largest_xattr() -> None:
    xattrs = {b"user." + b"n" * 250: b"v" * 65535}
    assert xattr.parse(xattr.pack(xattrs)) == xattrs


@pytest.mark.parametrize(
    ("xattrs", "message"),
    [
        ({b"system.other": b""}, "namespace"),
        ({b"btrfs.x": b""}, "btrfs.x"),
        ({b"user.": b""}, "user."),
        ({b"system.posix_acl_access2": b""}, "acl_access2"),
        ({b"user." + b"x" * 251: b""}, "not an xattr name"),
        ({b"user.x": bytes(65536)}, "65536"),
        ({b"user.%d" % i: bytes(65535) for i in range(5)}, "on one file"),
    ],
)
def test_xattrs_that_do_not_fit(xattrs: dict[bytes, bytes], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        xattr.pack(xattrs)


@many
@given(st.binary(max_size=100))
def test_any_xattr_area(data: bytes) -> None:
    try:
        xattr.parse(data)
    except FormatError as error:
        assert error.rule == Rule.XATTR


# --- inodes ---


@many
@given(
    st.sampled_from([0o100644, 0o104755, 0o120777, 0o020600, 0o060600, 0o010600, 0o140777, 0o041777]),
    st.integers(0, 40_000),
    st.integers(-(1 << 40), 1 << 40),
    st.integers(0, 0xFFFFFFFF),
    st.dictionaries(xattr_names, st.binary(max_size=40), max_size=3),
)
def test_inode(mode: int, size: int, mtime: int, number: int, xattrs: dict[bytes, bytes]) -> None:
    area = Area(start=BLOCK, first=BLOCK, end=64 * BLOCK, block_size=BLOCK, chunk_size=BLOCK)
    attributes = xattr.pack(xattrs)
    kind = mode & 0o170000
    layout, u = Layout.FLAT_PLAIN, number
    if kind == 0o100000:
        layout, u = Layout.CHUNK_BASED, ondisk.CHUNK_FORMAT_INDEXES
    elif kind in (0o040000, 0o120000):
        size = size % 4096 + 1 if kind == 0o120000 else size + 1
        layout, u = inode.flat_layout(64, len(attributes), size, BLOCK), 20
    else:
        size = 0
    header = inode.pack_inode(
        layout=layout, mode=mode, nlink=number, size=size, uid=number, gid=number ^ 1, mtime=mtime,
        mtime_nsec=number, ino=number, u=u, xattr_size=len(attributes),
    )  # fmt: skip
    data = bytearray(64 * BLOCK)
    data[2 * BLOCK : 2 * BLOCK + len(header) + len(attributes)] = header + attributes
    got = inode.parse_inode(bytes(data), 128, area)
    assert (got.mode, got.size, got.mtime, got.mtime_nsec, got.nlink) == (mode, size, mtime, number, number)
    assert (got.uid, got.gid, got.layout, got.u) == (number, number ^ 1, layout, u)
    assert got.rdev == (number if kind in (0o020000, 0o060000) else 0)
    assert xattr.parse(data[got.xattr_offset : got.tail_offset]) == xattrs


@many
@given(st.lists(st.tuples(st.integers(0, 253), st.integers(0, (1 << 24) - 1), st.integers(0, (1 << 32) - 1))))
def test_chunk_indexes(chunks: list[tuple[int, int, int]]) -> None:
    indexes = [ChunkIndex(*chunk) for chunk in chunks]
    assert list(inode.parse_chunk_indexes(inode.pack_chunk_indexes(indexes))) == indexes


# --- chunk info ---

sizes = st.integers(1, 1 << 24)
offsets = st.integers(0, (1 << 40) - 1)
block_offsets = st.integers(0, (1 << 32) - 1).map(lambda n: n << 12)


@many
@given(st.lists(st.tuples(offsets, sizes, block_offsets, sizes)))
def test_chunk_info_v1(chunks: list[tuple[int, int, int, int]]) -> None:
    array = blobmeta.pack_chunk_info_v1(chunks)
    infos = list(blobmeta.chunk_columns(array, len(chunks), 0).rows())
    assert [info[:4] for info in infos] == chunks
    assert all(info.flags == (info.compressed_size != info.uncompressed_size) for info in infos)
    assert [blobmeta.chunk_columns(array, len(chunks), 0).row(number) for number in range(len(chunks))] == infos


@many
@given(
    st.lists(
        st.builds(
            ChunkInfo, offsets, st.integers(0, (1 << 24) - 1), block_offsets, sizes, st.integers(0, 31),
            st.integers(0, (1 << 64) - 1),
        )
    )
)  # fmt: skip
def test_chunk_info_v2(chunks: list[ChunkInfo]) -> None:
    features = int(BlobFeatures.CHUNK_INFO_V2)
    array = blobmeta.pack_chunk_info_v2(chunks)
    assert list(blobmeta.chunk_columns(array, len(chunks), features).rows()) == chunks


# --- table of contents ---

toc_entries = st.builds(
    toc.TocEntry,
    st.sampled_from(list(toc.TocFlags)).map(int),
    st.sampled_from([toc.BLOB_DATA, toc.BLOB_META, toc.BLOB_META_HEADER]).map(lambda name: name.ljust(16, b"\0")),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
    st.integers(0, (1 << 64) - 1),
)


@many
@given(st.lists(toc_entries, min_size=1, max_size=toc.MAX_ENTRIES), st.binary(max_size=50))
def test_toc(entries: list[toc.TocEntry], before: bytes) -> None:
    packed = toc.pack_toc(entries)
    assert len(packed) <= 4096
    assert toc.read_toc(BufferSource(before + packed)) == entries


@many
@given(st.lists(st.tuples(st.sampled_from([b"a", b"blob.meta", b"n" * 99]), st.binary(max_size=100)), max_size=10))
def test_sections_from_the_tail(sections: list[tuple[bytes, bytes]]) -> None:
    blob = b"".join([data + toc.pack_tar_header(name, len(data)) for name, data in sections])
    found = [(name, blob[offset : offset + size]) for name, offset, size in toc.tail_sections(BufferSource(blob))]
    assert found == sections[::-1]
