"""The memory of ``prepare`` is in proportion to its bootstrap, whatever the blob table claims."""

from __future__ import annotations

import dataclasses
import struct
from array import array
from pathlib import Path

import pytest
import zstandard

from nydus_erofs.erofs import rafs
from nydus_erofs.erofs.blobmeta import header_for
from nydus_erofs.erofs.errors import FormatError
from nydus_erofs.erofs.head import read_head
from nydus_erofs.erofs.source import BufferSource
from nydus_erofs.fscache.prepare.__main__ import check_chunks
from tests.kit.engines import FANOTIFY
from tests.kit.images import Built
from tests.kit.service import MakeService, RefusedError

EXTRA_DEVICES_BLOCKS = 1408 + 64  # of the first device slot
DATA = 1 << 20  # bytes before the chunk-info array


def claim(bootstrap: Path, chunks: int, out: Path) -> Path:
    """A copy of an image whose blob says that it has so many chunks, nearly all of which no file has."""
    raw = bytearray(bootstrap.read_bytes())
    head = read_head(BufferSource(bytes(raw)))
    entry = head.blobs[0].entry
    words = array("Q", bytes(16 * chunks))
    words[0::2] = array("Q", [0xFFF << 44 | number << 12 for number in range(chunks)])
    info = zstandard.ZstdCompressor().compress(words.tobytes())
    entry = dataclasses.replace(
        entry, chunk_count=chunks, uncompressed_size=chunks << 12, compressed_size=DATA, ci_offset=DATA,
        ci_compressed_size=len(info), ci_uncompressed_size=16 * chunks, ci_compression=rafs.Compression.ZSTD.value,
        features=entry.features & ~rafs.BlobFeatures.CHUNK_INFO_V2,
    )  # fmt: skip
    at = head.ext.blob_table_offset
    raw[at : at + entry.size()] = entry.pack()
    struct.pack_into("<I", raw, EXTRA_DEVICES_BLOCKS, chunks)
    out.mkdir()
    (out / head.blobs[0].stored_id()).write_bytes(bytes(DATA) + info + header_for(entry).pack())
    (out / "claims.meta").write_bytes(raw)
    return out / "claims.meta"


@pytest.mark.root
def test_a_small_blob_of_many_chunks(make_service: MakeService, built: Built, tmp_path: Path) -> None:
    bootstrap = claim(built.bootstrap, 4_000_000, tmp_path / "claims")
    service = make_service(FANOTIFY)
    with pytest.raises(RefusedError, match=r"4000000 chunks, it uses [0-9]+: more than [0-9]+ would take too much"):
        service.mount(bootstrap)


@pytest.mark.parametrize(("chunks", "used"), [(1, 1), (1 << 18, 1), (5_000_000, 5_000_000), (1_000_000, 200_000)])
def test_what_an_image_may_have(chunks: int, used: int) -> None:
    check_chunks(chunks, used)


@pytest.mark.parametrize(("chunks", "used"), [(300_000, 1), (16_000_000, 1_000_000)])
def test_what_it_may_not(chunks: int, used: int) -> None:
    with pytest.raises(FormatError, match="too much memory"):
        check_chunks(chunks, used)
