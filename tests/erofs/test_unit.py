"""Units: where chunks may be stored, and what is taken out of them."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from nydus_erofs.erofs import rafs
from nydus_erofs.erofs.blobmeta import BatchContext, ChunkColumns, ChunkInfo, ChunkInfoFlags
from nydus_erofs.erofs.codec import codec
from nydus_erofs.erofs.errors import CorruptError, FormatError
from nydus_erofs.erofs.record import Buffer
from nydus_erofs.erofs.rules import Rule
from nydus_erofs.erofs.unit import BATCH, COMPRESSED, Decoder, Unit, find_units

END = 1000  # bytes of chunk data in the blob
Z, B = ChunkInfoFlags.COMPRESSED.value, ChunkInfoFlags.BATCH.value


def entry(features: int) -> rafs.BlobEntry:
    values: dict[str, Any] = dict.fromkeys(rafs.BlobEntry.__slots__, 0)
    return rafs.BlobEntry(**values | {"chunk_size": 4096, "compressed_size": END, "features": features})


def units(*chunks: ChunkInfo, batches: list[tuple[int, int]] | None = None, features: int | None = None) -> Any:
    known = int(rafs.BlobFeatures.CHUNK_INFO_V2 | rafs.BlobFeatures.BATCH) if features is None else features
    contexts = [BatchContext(*sizes) for sizes in batches or []]
    found = find_units(ChunkColumns.of(zip(*chunks, strict=True)), contexts, entry(known))
    return list(zip(*found, strict=True))


def test_every_kind_of_chunk() -> None:
    chunks = [
        ChunkInfo(0, 100, 0, 100, 0, 0),
        ChunkInfo(100, 50, 4096, 4096, Z, 0),
        ChunkInfo(150, 0, 8192, 60, Z | B, 0 << 32 | 0),
        ChunkInfo(150, 0, 12288, 40, Z | B, 0 << 32 | 60),
        ChunkInfo(180, 0, 16384, 820, Z | B, 1 << 32 | 0),
    ]
    assert units(*chunks, batches=[(30, 100), (820, 820)]) == [
        (100, 100, 0, 0),
        (50, 4096, 0, COMPRESSED),
        (30, 100, 0, BATCH | COMPRESSED),
        (30, 100, 60, BATCH | COMPRESSED),
        (820, 820, 0, BATCH),
    ]
    assert units(*chunks[:2], features=0) == [(100, 100, 0, 0), (50, 4096, 0, COMPRESSED)]


@pytest.mark.parametrize(
    ("chunks", "batches"),
    [
        ([ChunkInfo(901, 100, 0, 100, 0, 0)], []),
        ([ChunkInfo(1 << 39, 100, 0, 100, 0, 0)], []),
        ([ChunkInfo(0, 101, 0, 100, Z, 0)], []),
        ([ChunkInfo(0, 99, 0, 100, 0, 0)], []),
        ([ChunkInfo(0, 0, 0, 100, Z, 0)], []),
        ([ChunkInfo(0, 100, 0, 100, ChunkInfoFlags.ENCRYPTED.value, 0)], []),
        ([ChunkInfo(0, 100, 0, 100, ChunkInfoFlags.ZRAN.value, 0)], []),
        ([ChunkInfo(0, 0, 0, 60, B, 0)], []),
        ([ChunkInfo(0, 0, 0, 60, B, 1 << 32)], [(10, 100)]),
        ([ChunkInfo(0, 0, 0, 60, B, 41)], [(10, 100)]),
        ([ChunkInfo(0, 0, 0, 60, B, 0)], [(10, 4097)]),
        ([ChunkInfo(0, 0, 0, 60, B, 0)], [(101, 100)]),
        ([ChunkInfo(0, 0, 0, 60, B, 0)], [(0, 100)]),
        ([ChunkInfo(991, 0, 0, 60, B, 0)], [(10, 100)]),
        ([ChunkInfo(0, 0, 0, 60, B, 0), ChunkInfo(1, 0, 4096, 40, B, 60)], [(10, 100)]),
    ],
    ids=[
        "behind the data", "far behind", "more stored than there is", "plain of two sizes", "nothing stored",
        "encrypted", "zran", "no batches", "no such batch", "behind the batch", "batch larger than a chunk",
        "batch with more stored", "empty batch", "batch behind the data", "one batch at two places",
    ],
)  # fmt: skip
def test_out_of_bounds(chunks: list[ChunkInfo], batches: list[tuple[int, int]]) -> None:
    with pytest.raises(FormatError, match=r"chunk [01] ") as caught:
        units(*chunks, batches=batches)
    assert caught.value.rule == Rule.CHUNK_UNIT


def sha256(data: Buffer) -> bytes:
    return hashlib.sha256(data).digest()


def test_members_of_a_batch_are_decoded_once() -> None:
    data = b"first" * 20 + b"second" * 20
    stored = codec(rafs.Compression.ZSTD).compress(data)
    unit = Unit(7, len(stored), len(data), compressed=True)
    reads = []

    def read_at(offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return stored

    decoder = Decoder(rafs.Compression.ZSTD, sha256)
    for start, size in ((0, 100), (100, 120), (0, 100)):
        piece = data[start : start + size]
        assert decoder.chunk(unit, start, size, sha256(piece), read_at) == piece
    assert reads == [(7, len(stored))]


def test_a_wrong_batch_is_asked_for_again() -> None:
    """What is at hand may be what is wrong."""
    answers = [b"x" * 100, b"y" * 100]
    decoder = Decoder(rafs.Compression.NONE, sha256)
    unit = Unit(0, 100, 100, compressed=False)
    with pytest.raises(CorruptError, match="digest"):
        decoder.chunk(unit, 0, 40, sha256(b"y" * 40), lambda *_: answers.pop(0))
    assert decoder.chunk(unit, 0, 40, sha256(b"y" * 40), lambda *_: answers.pop(0)) == b"y" * 40


@pytest.mark.parametrize("stored", [b"", b"no frame at all"])
def test_what_cannot_be_decoded(stored: bytes) -> None:
    decoder = Decoder(rafs.Compression.ZSTD, sha256)
    with pytest.raises(CorruptError, match="decoded"):
        decoder.chunk(Unit(0, len(stored), 100, compressed=True), 0, 100, None, lambda *_: stored)


def test_without_a_digest_the_size_counts() -> None:
    decoder = Decoder(rafs.Compression.NONE, sha256)
    assert decoder.chunk(Unit(0, 3, 3, compressed=False), 0, 3, None, lambda *_: b"abc") == b"abc"
    with pytest.raises(CorruptError):
        decoder.chunk(Unit(0, 3, 3, compressed=False), 0, 3, None, lambda *_: b"ab")
