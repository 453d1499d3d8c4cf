"""Tables of contents and tar headers against blobs that Nydus wrote, and against Python's tar reader."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from nydus_erofs.erofs import toc
from nydus_erofs.erofs.check import check
from nydus_erofs.erofs.errors import FormatError
from nydus_erofs.erofs.source import BufferSource


def test_header_is_a_tar_header() -> None:
    info = tarfile.TarInfo.frombuf(toc.pack_tar_header(b"image.boot", 0o1234567), "ascii", "strict")
    assert (info.name, info.size, info.type) == ("image.boot", 0o1234567, tarfile.REGTYPE)


def test_toc_of_nydus(load: Any) -> None:
    made = load("toc")
    ((_, data),) = made.blobs.items()
    blob, entry = BufferSource(data), made.bootstrap().blobs[0].entry
    sections = {section.name: section for section in toc.tail_sections(blob)}
    assert list(sections) == [toc.TOC, toc.BLOB_DIGEST, toc.BLOB_META, toc.BLOB_DATA]
    entries = {found.name: found for found in toc.read_toc(blob, entry.toc_size, entry.toc_digest)}
    assert list(entries) == [toc.BLOB_DATA, toc.BLOB_META, toc.BLOB_META_HEADER, toc.BLOB_DIGEST]
    # The same bytes again: entries and headers are written as Nydus writes them.
    last = sections[toc.TOC]
    assert toc.pack_toc(list(entries.values())) == data[last.offset :]
    for name, offset, size in sections.values():
        assert data[offset + size : offset + size + 512] == toc.pack_tar_header(name, size)
    # The digest of the data counts its tar header, the others only what they name.
    end = sections[toc.BLOB_DATA].size
    assert entries[toc.BLOB_DATA].digest == hashlib.sha256(data[: end + 512]).digest()
    digests = sections[toc.BLOB_DIGEST]
    assert entries[toc.BLOB_DIGEST].digest == hashlib.sha256(data[digests.offset :][: digests.size]).digest()


def test_bootstrap_inside_a_blob(nydus_images: Path) -> None:
    data = (nydus_images / "inline-toc" / "blobs" / "layer").read_bytes()
    entry = next(found for found in toc.read_toc(BufferSource(data)) if found.name == toc.BOOTSTRAP)
    section = next(found for found in toc.tail_sections(BufferSource(data)) if found.name == toc.BOOTSTRAP)
    assert (entry.compressed_offset, entry.compressed_size) == section[1:]
    boot = data[section.offset : section.offset + section.size]
    if entry.flags == toc.TocFlags.ZSTD:
        boot = zstandard.ZstdDecompressor().decompress(boot, max_output_size=entry.uncompressed_size)
    assert hashlib.sha256(boot).digest() == entry.digest
    assert check(BufferSource(boot), lambda _: BufferSource(data)) == []


@pytest.mark.parametrize("at", [0, 200, 400, 600, 800])
def test_damage_is_noticed(at: int, load: Any) -> None:
    made = load("toc")
    (data,) = made.blobs.values()
    entry = made.bootstrap().blobs[0].entry
    bad = bytearray(data)
    bad[len(bad) - entry.toc_size + at] ^= 4
    with pytest.raises(FormatError):
        toc.read_toc(BufferSource(bad), entry.toc_size, entry.toc_digest)


@pytest.mark.parametrize("blob", [b"", bytes(511), bytes(512), bytes(5000), toc.pack_tar_header(b"image.blob", 4096)])
def test_no_toc(blob: bytes) -> None:
    with pytest.raises(FormatError):
        toc.read_toc(BufferSource(blob))
