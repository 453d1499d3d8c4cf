"""Plans: what `prepare` writes is what keeper and worker read, and stores are shared exactly when plans agree."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_erofs.erofs import blobmeta, localize, rafs
from nydus_erofs.erofs.errors import FormatError
from nydus_erofs.erofs.ids import blob_id
from nydus_erofs.erofs.localize import BlobMap
from nydus_erofs.erofs.segments import cut
from nydus_erofs.erofs.unit import find_units
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.prepare.plan_writer import pack_plan
from nydus_erofs.fscache.state.plan import Plan, PlanFlags, RawPlan
from tests.kit.stores import OpenImages

BLOCK = 4096


def opened(raw: bytes | bytearray) -> Plan:
    fd = os.memfd_create("plan")
    os.write(fd, raw)
    return Plan(Fd(fd))


def entry(chunk_size: int, uncompressed: int, count: int) -> rafs.BlobEntry:
    values: dict[str, Any] = dict.fromkeys(rafs.BlobEntry.__slots__, 0)
    values |= {
        "raw_id": b"ab" * 32,
        "chunk_size": chunk_size,
        "chunk_count": count,
        "compression": int(rafs.Compression.ZSTD),
        "compressed_size": 1 << 40,
        "uncompressed_size": uncompressed,
        "toc_digest": b"",
        "meta_digest": b"",
    }
    return rafs.BlobEntry(**values)


@st.composite
def maps(draw: st.DrawFn) -> tuple[BlobMap, int]:
    """A blob as the chunk-info array describes it: chunks one behind the other, each at a block."""
    chunk_size = 1 << draw(st.integers(12, 24))
    chunks, digests, at, where = [], [], 0, 0
    for _ in range(draw(st.integers(1, 30))):
        size = draw(st.integers(1, chunk_size))
        stored = draw(st.one_of(st.just(size), st.integers(1, size)))
        flags = int(blobmeta.ChunkInfoFlags.COMPRESSED) if stored != size else 0
        chunks.append(blobmeta.ChunkInfo(where, stored, at, size, flags, 0))
        digests.append(draw(st.one_of(st.none(), st.binary(min_size=32, max_size=32))))
        where += stored + draw(st.integers(0, 3))
        at += -(-size // BLOCK) * BLOCK
    segment_size = 1 << draw(st.integers(12, 26))
    columns = blobmeta.ChunkColumns.of(zip(*chunks, strict=True))
    segments = cut(columns.uncompressed_offset, at, segment_size)
    blob = entry(chunk_size, at, len(chunks))
    units = find_units(columns, [], blob)
    return localize.BlobMap(blob_id("ab" * 32), blob, columns, units, digests, segments), segment_size


@given(maps())
@settings(deadline=None)
def test_round_trip(made: tuple[BlobMap, int]) -> None:
    blob, segment_size = made
    plan = opened(pack_plan(blob))
    assert plan.segments == blob.segments
    assert plan.blob_id == blob.blob_id
    assert (plan.compression, plan.digest_algo) == (rafs.Compression.ZSTD, rafs.DigestAlgo.BLAKE3)
    assert plan.size == blob.entry.uncompressed_size
    chunks = list(blob.chunks.rows())
    index = 0
    for number, segment in enumerate(plan.segments):
        at = segment.start
        assert segment.size <= segment_size or segment.chunks == 1
        for chunk in plan.chunks(number):
            known, digest = chunks[index], blob.digests[index]
            assert chunk.uncompressed_offset == at == known.uncompressed_offset
            assert chunk.uncompressed_size == known.uncompressed_size
            if digest is None:
                assert chunk.flags == PlanFlags.UNUSED
            else:
                assert chunk.digest == digest
                place = (chunk.compressed_offset, chunk.compressed_size)
                assert place == (known.compressed_offset, known.compressed_size)
                assert bool(chunk.flags & PlanFlags.COMPRESSED) == (chunk.compressed_size != chunk.uncompressed_size)
            at += -(-chunk.uncompressed_size // BLOCK) * BLOCK
            index += 1
        assert at == segment.start + segment.size
    assert index == len(chunks)


@given(maps(), st.data())
@settings(deadline=None)
def test_another_digest_is_another_plan(made: tuple[BlobMap, int], data: st.DataObject) -> None:
    """Two images share what was fetched only if they agree on every digest."""
    blob, _ = made
    index = data.draw(st.integers(0, len(blob.digests) - 1))
    other = list(blob.digests)
    other[index] = data.draw(st.binary(min_size=32, max_size=32).filter(lambda d: d != blob.digests[index]))
    assert pack_plan(blob) != pack_plan(replace(blob, digests=other))


def test_batches(open_image: OpenImages) -> None:
    image = open_image("batch")
    plan = opened(image.plan)
    members = [c for number in range(len(plan.segments)) for c in plan.chunks(number) if c.flags & PlanFlags.BATCH]
    assert members
    for chunk in members:
        assert chunk.unit_offset + chunk.uncompressed_size <= chunk.unit_size
        assert chunk.compressed_offset + chunk.compressed_size <= len(image.blob)


@pytest.mark.parametrize("raw", [b"", b"x" * 127, bytes(128), b"NEPLAN02" + bytes(200)])
def test_not_a_plan(raw: bytes) -> None:
    with pytest.raises(FormatError):
        opened(raw)


@given(size=st.integers(1, 1 << 22), bits=st.integers(12, 20))
@settings(deadline=None)
def test_raw_plan_covers_a_file(size: int, bits: int) -> None:
    plan = RawPlan("boot", size, 1 << bits)
    chunks = [chunk for number in range(len(plan.segments)) for chunk in plan.chunks(number)]
    assert sum(chunk.uncompressed_size for chunk in chunks) == size
    assert [chunk.compressed_offset for chunk in chunks] == [segment.start for segment in plan.segments]
    assert plan.segments[-1].start + plan.segments[-1].size == -(-size // BLOCK) * BLOCK
