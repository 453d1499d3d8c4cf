"""Every rule of the checker, each by an image in which exactly that rule is broken."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nydus_erofs.erofs import blobmeta, inode
from nydus_erofs.erofs.check import MAX_FINDINGS, Rule, check, examine
from nydus_erofs.erofs.errors import BlobNotFoundError, UnsupportedError
from nydus_erofs.erofs.source import BufferSource

Break = Callable[[Any], None]
BREAKS: dict[Rule, tuple[str, Break]] = {}  # rule -> (image, what is done to it)


def breaks(rule: Rule, image: str = "small") -> Callable[[Break], Break]:
    def note(function: Break) -> Break:
        BREAKS[rule] = (image, function)
        return function

    return note


@pytest.fixture(scope="module")
def small(make: Any, nodes: Any) -> Any:
    """A small image with everything that the rules are about."""
    hard = nodes.regular(b"linked" * 1000)
    tree = nodes.folder(
        {
            b"dir": nodes.folder({b"below": nodes.folder(), b"file": nodes.regular(b"in a folder")}),
            b"empty": nodes.regular(),
            b"fifo": nodes.node(0o010644),
            b"four": nodes.regular(bytes(range(256)) * 50),  # 12,800 bytes in chunks of 4096
            b"hard1": hard,
            b"hard2": hard,
            b"last": nodes.regular(b"z" * 100),
            b"link": nodes.symlink(b"over/there"),
            b"long1": nodes.symlink(b"1" * 4090),
            b"long2": nodes.symlink(b"2" * 4090),
            b"null": nodes.node(0o020666, rdev=259),
            b"tags": nodes.regular(b"tagged", xattrs={b"user.k": b"v", b"security.capability": bytes(20)}),
        }
    )
    return make(tree)


def found(made: Any) -> list[Any]:
    """Findings of an image with its blobs."""

    def find(name: str) -> BufferSource:
        if name not in made.blobs:
            raise BlobNotFoundError(f"no blob {name}")
        return BufferSource(made.blobs[name])

    return check(BufferSource(made.boot), find)


# --- one break for each rule ---


@breaks(Rule.FILE_SIZE)
def _(e: Any) -> None:
    e.boot += bytes(100)


@breaks(Rule.MAGIC)
def _(e: Any) -> None:
    e.superblock(magic=0)


@breaks(Rule.SUPERBLOCK)
def _(e: Any) -> None:
    e.superblock(checksum=1)


@breaks(Rule.EXT_SUPERBLOCK)
def _(e: Any) -> None:
    e.ext(flags=lambda flags: flags | 0x80)


@breaks(Rule.TABLE_BOUNDS)
def _(e: Any) -> None:
    e.ext(prefetch_table_offset=4356, prefetch_table_size=4)


@breaks(Rule.TABLE_OVERLAP)
def _(e: Any) -> None:
    e.ext(prefetch_table_offset=4096 + 240, prefetch_table_size=8)  # the reserved end of the blob entry: zeros


@breaks(Rule.DEVICE_TABLE)
def _(e: Any) -> None:
    e.device(tag=b"0" * 64)


@breaks(Rule.BLOB_TABLE)
def _(e: Any) -> None:
    e.blob_entry(blob_index=1)


@breaks(Rule.PREFETCH_TABLE)
def _(e: Any) -> None:
    e.ext(prefetch_table_offset=4096 + 256, prefetch_table_size=4)
    struct.pack_into("<I", e.boot, 4096 + 256, 129)


@breaks(Rule.TOTALS)
def _(e: Any) -> None:
    e.superblock(inodes=lambda n: n + 1)


@breaks(Rule.INODE_BOUNDS)
def _(e: Any) -> None:
    e.dirent(b"/", b"last", nid=1 << 60)


@breaks(Rule.INODE_FORMAT)
def _(e: Any) -> None:
    e.inode(b"/empty", mode=0o644)


@breaks(Rule.INODE_SIZE)
def _(e: Any) -> None:
    e.inode(b"/fifo", file_size=1)


@breaks(Rule.INODE_TIME)
def _(e: Any) -> None:
    e.inode(b"/empty", mtime_nsec=1_000_000_000)


@breaks(Rule.INLINE_TAIL)
def _(e: Any) -> None:
    e.inode(b"/link", file_size=4000)


@breaks(Rule.XATTR)
def _(e: Any) -> None:
    e.boot[e.original.lookup(b"/tags").xattr_offset + 13] = 5  # name index of lustre


@breaks(Rule.SYMLINK)
def _(e: Any) -> None:
    e.tail(b"/link", 3, b"\0")


@breaks(Rule.NLINK)
def _(e: Any) -> None:
    e.inode(b"/hard1", nlink=3)


@breaks(Rule.METADATA_OVERLAP)
def _(e: Any) -> None:
    e.inode(b"/long2", u=e.original.lookup(b"/long1").u)


@breaks(Rule.DIRENT_FORMAT)
def _(e: Any) -> None:
    e.dirent(b"/dir", b".", start=13)


@breaks(Rule.DIRENT_NAME)
def _(e: Any) -> None:
    e.dirent(b"/dir", b"below", new_name=b"be/ow")


@breaks(Rule.DIRENT_ORDER)
def _(e: Any) -> None:
    e.dirent(b"/dir", b"below", new_name=b"zelow")


@breaks(Rule.DIRENT_DOTS)
def _(e: Any) -> None:
    e.dirent(b"/dir/below", b"..", nid=e.original.root_nid)


@breaks(Rule.DIRENT_TYPE)
def _(e: Any) -> None:
    e.dirent(b"/", b"fifo", kind=6)


@breaks(Rule.DIRECTORY_LOOP)
def _(e: Any) -> None:
    e.dirent(b"/dir", b"below", nid=e.original.root_nid)


@breaks(Rule.CHUNK_FORMAT)
def _(e: Any) -> None:
    e.inode(b"/four", u=0x21)  # 8 KiB for the kernel, 4 KiB in the image


@breaks(Rule.CHUNK_INDEX)
def _(e: Any) -> None:
    e.tail(b"/four", 8, inode.pack_chunk_indexes([inode.ChunkIndex(7, 0, 0)]))


@breaks(Rule.CHUNK_ROW)
def _(e: Any) -> None:
    first, *_ = e.original.chunk_indexes(e.original.lookup(b"/four"))
    e.tail(b"/four", 0, inode.pack_chunk_indexes([first._replace(start_block=first.start_block + 1)]))


@breaks(Rule.CHUNK_TABLE)
def _(e: Any) -> None:
    e.row(0, flags=0x100)


@breaks(Rule.BLOB_MISSING)
def _(e: Any) -> None:
    e.blobs.clear()


@breaks(Rule.BLOB_SIZE)
def _(e: Any) -> None:
    del e.blob[-1:]


@breaks(Rule.CI_HEADER)
def _(e: Any) -> None:
    e.blob[-4096 + 12] += 1


@breaks(Rule.CI_ARRAY, "plain")
def _(e: Any) -> None:
    e.blob[e.original.blobs[0].entry.ci_offset] ^= 0xFF


@breaks(Rule.CI_DENSE)
def _(e: Any) -> None:
    """Move the last chunk up by one block, everywhere: all agrees, but for the hole before it."""
    entry = e.original.blobs[0].entry
    at = entry.ci_offset + 16 * (entry.chunk_count - 1)
    (info,) = blobmeta.chunk_columns(e.blob[at : at + 16], 1, 0).rows()
    moved = (info.compressed_offset, info.compressed_size, info.uncompressed_offset + 4096, info.uncompressed_size)
    e.blob[at : at + 16] = blobmeta.pack_chunk_info_v1([moved])
    path = next(
        path
        for path, found in e.original.walk()
        if found.is_regular and any(c.ci_index == entry.chunk_count - 1 for c in e.original.chunk_indexes(found))
    )
    chunks = list(e.original.chunk_indexes(e.original.lookup(path)))
    last = chunks[-1]
    e.tail(path, 8 * (len(chunks) - 1), inode.pack_chunk_indexes([last._replace(start_block=last.start_block + 1)]))
    e.row(e.original.row_number(last), uncompressed_offset=info.uncompressed_offset + 4096)
    e.blob_entry(uncompressed_size=entry.uncompressed_size + 4096)
    e.device(blocks=lambda n: n + 1)
    e.superblock(blocks=lambda n: n + 1)


@breaks(Rule.CHUNK_UNIT)
def _(e: Any) -> None:
    """The first chunk has more bytes stored than it has uncompressed, and its row says so."""
    at = e.original.blobs[0].entry.ci_offset
    (info,) = blobmeta.chunk_columns(e.blob[at : at + 16], 1, 0).rows()
    longer = (info.compressed_offset, info.uncompressed_size + 1, info.uncompressed_offset, info.uncompressed_size)
    e.blob[at : at + 16] = blobmeta.pack_chunk_info_v1([longer])
    number = next(number for number, row in enumerate(e.original.chunk_rows()) if row[8] == 0)
    e.row(number, compressed_size=info.uncompressed_size + 1, flags=1)


@breaks(Rule.CHUNK_INFO)
def _(e: Any) -> None:
    e.row(0, compressed_offset=lambda n: n + 1)


@breaks(Rule.CHUNK_DIGEST)
def _(e: Any) -> None:
    e.blob[0] ^= 1


@breaks(Rule.TOC, "toc")
def _(e: Any) -> None:
    e.blob[-512 - 128 + 40] ^= 1  # a digest in the last entry


@breaks(Rule.UNSUPPORTED, "encrypt")
def _(e: Any) -> None:
    pass


@pytest.mark.parametrize("rule", list(BREAKS))
def test_exactly_this_rule(rule: Rule, small: Any, load: Any, edit: Any) -> None:
    image, function = BREAKS[rule]
    editor = edit(small if image == "small" else load(image))
    function(editor)
    findings = found(editor.made)
    assert {finding.rule for finding in findings} == {rule}, findings
    assert all(finding.where and finding.detail and "\n" not in finding.detail for finding in findings)


def test_every_rule_has_a_break() -> None:
    # "format" stands for what has no rule of its own; a path too long needs a tree of its own, below.
    assert set(Rule) - set(BREAKS) == {Rule.FORMAT, Rule.PATH_LENGTH}


# --- more of what the checker is for ---


def test_small_image_is_sound(small: Any) -> None:
    assert found(small) == []


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"ext_slots": 1}, Rule.SUPERBLOCK),
        ({"xattr_block": 1}, Rule.SUPERBLOCK),
        ({"feature_incompat": 0x8C}, Rule.SUPERBLOCK),
        ({"device_table_slot": 12}, Rule.SUPERBLOCK),
        ({"reserved": b"\1" + bytes(37)}, Rule.SUPERBLOCK),
        ({"meta_block": 1 << 30}, Rule.SUPERBLOCK),
        ({"extra_devices": 65535}, Rule.TABLE_BOUNDS),
        ({"feature_compat": 0}, Rule.MAGIC),
        ({"feature_compat": 0x40000001}, Rule.SUPERBLOCK),
        ({"block_bits": 14}, Rule.SUPERBLOCK),
    ],
)
def test_superblock(fields: dict[str, Any], rule: Rule, small: Any, edit: Any) -> None:
    editor = edit(small)
    editor.superblock(**fields)
    assert rule in {finding.rule for finding in found(editor.made)}


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"flags": 0}, Rule.EXT_SUPERBLOCK),
        ({"flags": 0x1000 | 0x81}, Rule.EXT_SUPERBLOCK),
        ({"chunk_size": 5000}, Rule.EXT_SUPERBLOCK),
        ({"chunk_size": 0}, Rule.EXT_SUPERBLOCK),
        ({"blob_table_size": 255}, Rule.TABLE_BOUNDS),
        ({"blob_table_offset": 1 << 63}, Rule.TABLE_BOUNDS),
        ({"chunk_table_size": 1 << 63}, Rule.TABLE_BOUNDS),
        ({"chunk_table_size": (1 << 64) - 16}, Rule.TABLE_BOUNDS),
        ({"prefetch_table_offset": 1 << 20, "prefetch_table_size": 0xFFFFFFFC}, Rule.TABLE_BOUNDS),
        ({"chunk_table_offset": 4096}, Rule.TABLE_OVERLAP),
        ({"chunk_table_offset": 8192}, Rule.TABLE_OVERLAP),
    ],
)
def test_extended_superblock(fields: dict[str, Any], rule: Rule, small: Any, edit: Any) -> None:
    editor = edit(small)
    editor.ext(**fields)
    assert rule in {finding.rule for finding in found(editor.made)}


@pytest.mark.parametrize(
    "fields",
    [
        {"raw_id": b"../" * 21 + b"x"},
        {"chunk_size": 8192},
        {"chunk_count": 0},
        {"chunk_count": 1 << 25},
        {"compression": 9},
        {"ci_compression": 9},
        {"digest_algo": 2},
        {"features": 0x40001001},
        {"features": 0xC0000001},
        {"features": 0x40000000},
        {"compressed_size": 1 << 41},
        {"ci_uncompressed_size": 1 << 40},
    ],
)
def test_blob_entry(fields: dict[str, Any], small: Any, edit: Any) -> None:
    editor = edit(small)
    editor.blob_entry(**fields)
    if "raw_id" in fields:
        editor.device(tag=fields["raw_id"])
    assert {finding.rule for finding in found(editor.made)} == {Rule.BLOB_TABLE}


def test_mapped_devices_must_not_overlap_the_bootstrap(small: Any, edit: Any) -> None:
    editor = edit(small)
    editor.device(mapped_block=1)
    assert {finding.rule for finding in found(editor.made)} == {Rule.DEVICE_TABLE}


def test_goes_on_after_a_finding(small: Any, edit: Any) -> None:
    editor = edit(small)
    for rule in (Rule.SUPERBLOCK, Rule.INODE_TIME, Rule.XATTR, Rule.DIRENT_ORDER, Rule.CHUNK_ROW, Rule.CHUNK_INFO):
        BREAKS[rule][1](editor)
    rules = {finding.rule for finding in found(editor.made)}
    assert rules == {
        Rule.SUPERBLOCK, Rule.INODE_TIME, Rule.XATTR, Rule.DIRENT_ORDER, Rule.CHUNK_ROW, Rule.CHUNK_INFO
    }  # fmt: skip


def test_dots_are_directories(small: Any, edit: Any) -> None:
    editor = edit(small)
    editor.dirent(b"/dir", b"..", kind=3)
    assert {finding.rule for finding in found(editor.made)} == {Rule.DIRENT_TYPE}


def test_two_rows_for_one_chunk(small: Any, edit: Any) -> None:
    editor = edit(small)
    row = editor.original.chunk_row(next(editor.original.chunk_indexes(editor.original.lookup(b"/four"))))
    other = next(n for n, r in enumerate(editor.original.chunk_rows()) if r[8] == row.index + 1)
    editor.row(other, index=row.index, uncompressed_offset=row.uncompressed_offset)
    rules = {finding.rule for finding in found(editor.made)}
    assert Rule.CHUNK_TABLE in rules


def test_findings_are_bounded(make: Any, nodes: Any, edit: Any) -> None:
    made = make(nodes.folder({b"%05d" % i: nodes.regular(mtime_nsec=1 << 31) for i in range(3000)}))
    report = examine(BufferSource(made.boot))
    assert len(report.findings) == MAX_FINDINGS
    assert not report.complete


@pytest.mark.parametrize("compact", [False, True])
def test_endless_path(compact: bool, make: Any, nodes: Any) -> None:
    """Neither recursion nor the length of paths may hurt."""
    node = nodes.folder()
    for _ in range(40_000):
        node = nodes.folder({b"d": node})
    started = time.monotonic()
    findings = check(BufferSource(make(node, compact=compact).boot))
    assert {finding.rule for finding in findings} == {Rule.PATH_LENGTH}
    assert time.monotonic() - started < 20


def test_names_in_findings_are_printable(make: Any, nodes: Any) -> None:
    made = make(nodes.folder({b"a\x1b[31m\n\xff": nodes.regular(mtime_nsec=1 << 31)}))
    (finding,) = check(BufferSource(made.boot))
    assert finding.where.isprintable()
    assert finding.where.endswith("/a\\x1b[31m\\n\\xff")


@pytest.mark.parametrize("name", ["plain", "lz4", "none-sha256", "toc", "batch", "tar"])
def test_images_of_nydus_are_sound(name: str, load: Any) -> None:
    made = load(name)
    report = examine(BufferSource(made.boot), lambda blob: BufferSource(made.blobs[blob]))
    assert report.findings == []
    assert (report.blobs_read, report.verified, report.chunks) == (1, 46, 52)


@pytest.mark.parametrize(
    "name", ["encrypt", "zran", "tar-ref", "merge/merged", "merge/zmerged", "merge/p1", "merge/d1"]
)
def test_metadata_of_other_images_of_nydus_is_sound(name: str, nydus_images: Any) -> None:
    path = nydus_images / (f"{name}.boot" if "/" in name else f"{name}/boot")
    assert check(BufferSource(path.read_bytes())) == []


def test_layer_without_blobs_is_sound(nydus_images: Any) -> None:
    layers = sorted((nydus_images / "merge" / "boots").iterdir())
    reports = [examine(BufferSource(path.read_bytes())) for path in layers]
    assert all(report.findings == [] for report in reports)
    assert 0 in [report.blobs for report in reports]


def test_tarfs_is_refused(load: Any) -> None:
    with pytest.raises(UnsupportedError, match="tarfs"):
        check(BufferSource(load("tarfs").boot))


def test_progress(load: Any) -> None:
    made = load("plain")
    steps: list[tuple[int, int]] = []
    examine(BufferSource(made.boot), lambda blob: BufferSource(made.blobs[blob]), lambda *step: steps.append(step))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert 0.9 < steps[-1][0] / steps[-1][1] <= 1


def test_blob_of_another_image(load: Any) -> None:
    plain, lz4 = load("plain"), load("lz4")
    (foreign,) = lz4.blobs.values()
    findings = found(replace(plain, blobs=dict.fromkeys(plain.blobs, foreign)))
    assert findings
    assert {finding.rule for finding in findings} <= {Rule.CI_HEADER, Rule.BLOB_SIZE, Rule.FORMAT}
