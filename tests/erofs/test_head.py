"""The head of a bootstrap: read in little pieces, with the same bounds for all; and what `mount` demands besides."""

from __future__ import annotations

import io
from typing import Any

import pytest

from nydus_erofs.erofs import localize
from nydus_erofs.erofs.blob_table import PLACEHOLDER_ID
from nydus_erofs.erofs.check import Rule, check
from nydus_erofs.erofs.errors import FormatError, UnsupportedError
from nydus_erofs.erofs.head import read_head
from nydus_erofs.erofs.record import Buffer
from nydus_erofs.erofs.source import BufferSource


class Far(BufferSource):
    """A bootstrap that is far away: it counts what is asked of it, and has nothing but its head."""

    def __init__(self, head: bytes, size: int) -> None:
        super().__init__(head)
        self._length, self.reads = size, []

    def size(self) -> int:
        return self._length

    def read_at(self, offset: int, length: int) -> Buffer:
        self.reads.append(length)
        return super().read_at(offset, length)


def mount(made: Any) -> list[localize.BlobMap]:
    """What `mount` does with an image."""
    head = read_head(BufferSource(made.boot))
    maps = localize.read_blob_maps(made.boot, head, lambda name: BufferSource(made.blobs[name]), 1 << 20)
    localize.write_localized(made.boot, head, maps, io.BytesIO())
    return maps


@pytest.fixture(scope="module")
def small(make: Any, nodes: Any) -> Any:
    return make(nodes.folder({b"four": nodes.regular(bytes(range(256)) * 50), b"one": nodes.regular(b"1")}))


def test_few_and_small_reads(load: Any) -> None:
    boot = load("plain").boot
    far = Far(boot[:8192], len(boot))
    whole = read_head(BufferSource(boot))
    assert read_head(far) == whole
    assert far.reads == [4096, 256]


@pytest.mark.parametrize(
    "fields",
    [{"extra_devices": 255}, {"extra_devices": 65535}, {"blob_table_size": 1 << 31}, {"chunk_size": 1 << 31}],
)
def test_numbers_do_not_make_it_read_more(fields: dict[str, int], small: Any, edit: Any) -> None:
    editor = edit(small)
    if "extra_devices" in fields:
        editor.superblock(**fields)
    else:
        editor.ext(**fields)
    far = Far(bytes(editor.boot), 1 << 30)
    with pytest.raises(FormatError):
        read_head(far)
    assert sum(far.reads) <= 4096


def test_a_blob_without_an_id_cannot_be_mounted(small: Any, edit: Any) -> None:
    """It can be checked: somebody may have the blob under any name."""
    editor = edit(small)
    editor.device(tag=PLACEHOLDER_ID.encode())
    editor.blob_entry(raw_id=PLACEHOLDER_ID.encode())
    assert check(BufferSource(bytes(editor.boot))) == []
    with pytest.raises(UnsupportedError, match="blob 0 has no id") as caught:
        mount(editor.made)
    assert caught.value.hint


def test_tarfs_by_its_flag_alone(small: Any, edit: Any) -> None:
    editor = edit(small)
    editor.ext(flags=lambda flags: flags | 0x200)
    with pytest.raises(FormatError, match="tarfs") as caught:
        mount(editor.made)
    assert caught.value.rule == Rule.EXT_SUPERBLOCK


# --- the chunk table: `mount` refuses what `check` finds ---


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"uncompressed_size": lambda n: n - 1}, Rule.CHUNK_INFO),
        ({"uncompressed_offset": lambda n: n ^ 4096}, Rule.CHUNK_INFO),
        ({"compressed_size": lambda n: n - 1}, Rule.CHUNK_INFO),
        ({"compressed_offset": lambda n: n + 1}, Rule.CHUNK_INFO),
        ({"flags": 1}, Rule.CHUNK_INFO),
        ({"flags": 0x20}, Rule.CHUNK_TABLE),
        ({"flags": 1 << 31}, Rule.CHUNK_TABLE),
        ({"blob_index": 1}, Rule.CHUNK_TABLE),
        ({"blob_index": 0xFFFFFFFF}, Rule.CHUNK_TABLE),
        ({"index": lambda n: n ^ 1}, Rule.CHUNK_TABLE),
        ({"index": 5}, Rule.CHUNK_TABLE),
        ({"index": 0xFFFFFFFF}, Rule.CHUNK_TABLE),
    ],
)
def test_a_row_that_is_wrong(fields: dict[str, Any], rule: Rule, small: Any, edit: Any) -> None:
    editor = edit(small)
    editor.row(editor.row_of(b"/four"), **fields)
    found = check(BufferSource(bytes(editor.boot)), lambda name: BufferSource(small.blobs[name]))
    assert rule in {finding.rule for finding in found}
    with pytest.raises(FormatError, match=r"row [0-9]+ of the chunk table") as caught:
        mount(editor.made)
    assert caught.value.rule == rule


def test_a_chunk_of_a_file_without_a_row(small: Any, edit: Any) -> None:
    """It is not one that the image does not use: zeros would be served in its place."""
    editor = edit(small)
    start, count = editor.original.head.chunk_rows
    editor.boot[start : start + 80] = editor.boot[start + 80 * (count - 1) : start + 80 * count]
    editor.ext(chunk_table_size=80 * (count - 1))
    found = check(BufferSource(bytes(editor.boot)))
    assert {finding.rule for finding in found} == {Rule.CHUNK_ROW}
    with pytest.raises(FormatError, match="the chunk table has not"):
        mount(editor.made)


def test_a_chunk_of_no_file_needs_no_row(small: Any, edit: Any) -> None:
    editor = edit(small)
    number, index = editor.row_of(b"/one"), editor.original.chunk_rows
    row = list(index())[number][8]
    editor.dirent(b"/", b"one", nid=editor.original.lookup(b"/four").nid)
    start, count = editor.original.head.chunk_rows
    last = start + 80 * (count - 1)
    editor.boot[start + 80 * number : start + 80 * number + 80] = editor.boot[last : last + 80]
    editor.ext(chunk_table_size=80 * (count - 1))
    (blob,) = mount(editor.made)
    assert [place for place, digest in enumerate(blob.digests) if digest is None] == [row]
