"""Filling segments of real files from real blobs: whatever was there before, what is there then is right."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nydus_erofs.erofs.blobmeta import ChunkInfo
from nydus_erofs.erofs.errors import BackendError, CacheFullError, CorruptError
from nydus_erofs.erofs.record import Buffer
from nydus_erofs.erofs.source import FileSource
from nydus_erofs.fscache.prepare.plan_writer import pack_plan
from nydus_erofs.fscache.state.plan import PlanChunk, PlanFlags
from nydus_erofs.fscache.worker.fill import RUN_MAX, _runs
from tests.kit.stores import MadeStore, MakeStore, OpenImage, OpenImages

FIXTURES = ("plain", "lz4", "none-sha256", "toc", "batch")


def fill(made: MadeStore, segment: int) -> tuple[int, list[int]]:
    """(bytes fetched, what was reported on the way)"""
    seen: list[int] = []
    fetched = made.fill(segment, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == made.store.plan.segments[segment].size
    return fetched, seen


def contents(image: OpenImage) -> list[bytes]:
    """Every segment's right bytes, from the reader of the format, which knows nothing of segments."""
    space = bytearray(sum(segment.size for segment in image.map.segments))
    reader = image.image()
    for _, inode in reader.bootstrap.walk():
        if inode.is_regular and inode.size:
            data = b"".join(reader.stream(inode.nid))
            at = 0
            for chunk in reader.bootstrap.chunk_indexes(inode):
                start = chunk.start_block * 4096
                piece = data[at : at + image.head.ext.chunk_size]
                space[start : start + len(piece)] = piece
                at += len(piece)
    return [bytes(space[s.start : s.start + s.size]) for s in image.map.segments]


def corrupt(image: OpenImage, segment: int, number: int = 0) -> tuple[bytes, ChunkInfo]:
    """(the blob with one bit flipped inside a chunk of a segment, that chunk)"""
    chunk = used(image, segment)[number]
    blob = bytearray(image.blob)
    blob[chunk.compressed_offset + chunk.compressed_size // 2] ^= 0x10
    return bytes(blob), chunk


def used(image: OpenImage, segment: int) -> list[ChunkInfo]:
    _, _, start, size = image.map.segments[segment]
    return [
        chunk
        for chunk, digest in zip(image.map.chunks.rows(), image.map.digests, strict=True)
        if digest and start <= chunk.uncompressed_offset < start + size
    ]


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("segment_size", [4096, 1 << 20, 64 << 20])
def test_every_segment_is_right(name: str, segment_size: int, open_image: OpenImages, make_store: MakeStore) -> None:
    image = open_image(name, segment_size)
    made = make_store(image)
    for number, right in enumerate(contents(image)):
        fill(made, number)
        assert made.path(number).read_bytes() == right
    assert fill(made, 0) == (0, [image.map.segments[0].size])  # nothing is fetched twice


@pytest.mark.parametrize("name", ["plain", "batch"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_goes_on_from_any_length(
    name: str, data: st.DataObject, open_image: OpenImages, make_store: MakeStore
) -> None:
    """A worker may be killed after any byte of any write."""
    image = open_image(name)
    rights = contents(image)
    segment = data.draw(st.integers(0, len(rights) - 1))
    right = rights[segment]
    edges = [chunk.uncompressed_offset - image.map.segments[segment].start for chunk in used(image, segment)]
    near = st.builds(lambda edge, by: max(0, min(len(right), edge + by)), st.sampled_from(edges), st.integers(-2, 2))
    length = data.draw(st.one_of(near, st.integers(0, len(right))))
    made = make_store(image)
    made.path(segment).write_bytes(right[:length])
    fetched, seen = fill(made, segment)
    assert made.path(segment).read_bytes() == right
    # Whole chunks that are there are not fetched again, and count from the start.
    there = max([edge for edge in edges if edge <= length], default=0)
    assert there <= seen[0]
    assert fetched == 0 if length == len(right) else fetched > 0


def test_longer_than_it_should_be(open_image: OpenImages, make_store: MakeStore) -> None:
    image = open_image()
    right = contents(image)[0]
    made = make_store(image)
    made.path(0).write_bytes(right + b"x" * 5000)
    fill(made, 0)
    assert made.path(0).read_bytes() == right


@pytest.mark.parametrize("name", ["plain", "batch"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_after_a_power_cut_what_is_there_is_verified(
    name: str, data: st.DataObject, open_image: OpenImages, make_store: MakeStore
) -> None:
    """Blocks of zeros, old bytes, half a file: only what has the right digest counts."""
    image = open_image(name)
    rights = contents(image)
    segment = data.draw(st.integers(0, len(rights) - 1))
    right = rights[segment]
    bad = bytearray(right)
    for at in data.draw(st.lists(st.integers(0, len(right) - 1), max_size=3)):
        if data.draw(st.booleans()):
            bad[at] ^= 1
        else:
            bad[at : at + 4096] = bytes(len(bad[at : at + 4096]))
    length = data.draw(st.one_of(st.just(len(right)), st.integers(0, len(right))))
    made = after_a_crash(image, make_store, segment, bytes(bad[:length]))
    fetched, _ = fill(made, segment)
    assert made.path(segment).read_bytes() == right
    if bad == right and length == len(right):
        assert fetched == 0


def after_a_crash(image: OpenImage, make_store: MakeStore, segment: int, data: bytes) -> MadeStore:
    """A store of whose segment these bytes were set aside."""
    made = make_store(image)
    made.set_aside(segment).parent.mkdir()
    made.set_aside(segment).write_bytes(data)
    return make_store(image, where=made.folder)


def test_what_is_set_aside_is_taken_back_behind_what_is_there(open_image: OpenImages, make_store: MakeStore) -> None:
    """An earlier job ended after some chunks."""
    image = open_image()
    right = contents(image)[0]
    made = after_a_crash(image, make_store, 0, right)
    second = used(image, 0)[1].uncompressed_offset - image.map.segments[0].start
    made.path(0).write_bytes(right[:second])
    made.set_aside(0).write_bytes(bytes(second) + right[second:])
    assert fill(made, 0)[0] == 0
    assert made.path(0).read_bytes() == right


def test_padding_is_never_taken_from_what_is_set_aside(open_image: OpenImages, make_store: MakeStore) -> None:
    """Behind a chunk's bytes there are zeros up to the next block: a mapped file shows them."""
    image = open_image()
    right = contents(image)[0]
    chunk = next(c for c in used(image, 0) if c.uncompressed_size % 4096)
    at = chunk.uncompressed_offset - image.map.segments[0].start + chunk.uncompressed_size
    made = after_a_crash(image, make_store, 0, right[:at] + b"\xff" + right[at + 1 :])
    assert fill(made, 0)[0] == 0
    assert made.path(0).read_bytes() == right


def test_a_store_tells_which_segments_are_complete(open_image: OpenImages, make_store: MakeStore) -> None:
    image = open_image()
    made = make_store(image)
    fill(made, 0)
    assert list(made.checked.filled(made.store.plan)) == [1] + [0] * (len(image.map.segments) - 1)


@pytest.mark.parametrize("name", FIXTURES)
def test_a_corrupt_chunk_is_named_and_what_precedes_it_stays(
    name: str, open_image: OpenImages, make_store: MakeStore
) -> None:
    image = open_image(name)
    right = contents(image)[1]
    blob, chunk = corrupt(image, 1, -1)
    made = make_store(image, blob)
    with pytest.raises(CorruptError) as caught:
        made.fill(1)
    assert image.name in caught.value.message
    assert f"byte {chunk.compressed_offset} " in caught.value.message
    assert caught.value.hint
    have = made.path(1).read_bytes()
    assert have == right[: len(have)]
    assert len(have) < len(right)


@pytest.mark.parametrize("order", ["bad first", "good first"])
@pytest.mark.parametrize("name", FIXTURES)
def test_a_second_source_heals(name: str, order: str, open_image: OpenImages, make_store: MakeStore) -> None:
    image = open_image(name)
    blob, _ = corrupt(image, 1)
    blobs = [blob, image.blob] if order == "bad first" else [image.blob, blob]
    made = make_store(image, *blobs)
    fill(made, 1)
    assert made.path(1).read_bytes() == contents(image)[1]


def test_who_brought_wrong_bytes_is_asked_last(
    open_image: OpenImages, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: each costs its first wrong chunk."""
    image = open_image()
    blob, _ = corrupt(image, 0)
    made = make_store(image, *[blob] * 5, image.blob)
    right = made.store.sources[-1]
    fill(made, 0)
    assert made.store.sources[0] is right
    asked: list[object] = []
    read_at = FileSource.read_at

    def read(source: FileSource, offset: int, length: int) -> Buffer:
        asked.append(source)
        return read_at(source, offset, length)

    monkeypatch.setattr(FileSource, "read_at", read)
    fill(made, 1)
    assert set(asked) == {right}
    assert made.path(1).read_bytes() == contents(image)[1]


def test_heals_in_place(open_image: OpenImages, make_store: MakeStore) -> None:
    image = open_image()
    blob, _ = corrupt(image, 0)
    made = make_store(image, blob)
    with pytest.raises(CorruptError):
        made.fill(0)
    (source,) = made.store.sources
    assert isinstance(source, FileSource)
    os.pwrite(source.fd, image.blob, 0)
    fill(made, 0)
    assert made.path(0).read_bytes() == contents(image)[0]


@pytest.mark.parametrize("name", ["plain", "batch"])
@pytest.mark.parametrize("left", [0, 1, 1000])
def test_a_truncated_blob(name: str, left: int, open_image: OpenImages, make_store: MakeStore) -> None:
    image = open_image(name, 64 << 20)
    right = contents(image)[0]
    made = make_store(image, image.blob[:left])
    with pytest.raises(BackendError, match=f"blob {image.name}.*ends"):
        made.fill(0)
    have = made.path(0).read_bytes()
    assert have == right[: len(have)]
    # Another one that is whole is used in its place.
    made = make_store(image, image.blob[:left], image.blob)
    fill(made, 0)
    assert made.path(0).read_bytes() == right


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 7)), min_size=1, max_size=30), data=st.data())
def test_any_damage_to_a_blob_gives_right_bytes_or_an_error(
    flips: list[tuple[int, int]], data: st.DataObject, open_image: OpenImages, make_store: MakeStore
) -> None:
    image = open_image(data.draw(st.sampled_from(FIXTURES)), 64 << 20)
    blob = bytearray(image.blob)
    for at, bit in flips:
        blob[at % len(blob)] ^= 1 << bit
    made = make_store(image, bytes(blob))
    with contextlib.suppress(BackendError):
        fill(made, 0)
    have = made.path(0).read_bytes()
    assert have == contents(image)[0][: len(have)]


def test_a_unit_of_a_batch_is_decoded_once(open_image: OpenImages, make_store: MakeStore) -> None:
    """Chunks of a batch lie one behind the other: the one read for all of them serves all."""
    image = open_image("batch", 64 << 20)
    made = make_store(image)
    fetched, _ = fill(made, 0)
    units = {(c.compressed_offset, c.compressed_size) for c in made.store.plan.chunks(0) if c.compressed_size}
    assert len(units) < len(list(made.store.plan.chunks(0)))
    assert fetched <= 2 * sum(size for _, size in units)


def test_chunks_that_the_image_does_not_use_are_not_fetched(open_image: OpenImages, make_store: MakeStore) -> None:
    image = open_image()
    *_, last = image.map.chunks.rows()
    image.map.digests[-1] = None
    image.plan = pack_plan(image.map)
    end = last.compressed_offset
    number = len(image.map.segments) - 1
    made = make_store(image, image.blob[:end])  # it is not even there
    fill(made, number)
    right = contents(image)[number]
    at = last.uncompressed_offset - image.map.segments[number].start
    assert made.path(number).read_bytes() == right[:at] + bytes(len(right) - at)


@pytest.mark.root
def test_no_room(open_image: OpenImages, make_store: MakeStore, tmp_path: Path) -> None:
    """Half of a segment fits: what fits is right, and with room again it is completed from there."""
    image = open_image("none-sha256")
    small = tmp_path / "small"
    small.mkdir()
    room = sum(segment.size for segment in image.map.segments[:1]) + (600 << 10)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", small], check=True, timeout=20)
    try:
        made = make_store(image, where=small / "store")
        fill(made, 0)
        with pytest.raises(CacheFullError) as caught:
            made.fill(1)
        assert caught.value.errno == errno.ENOSPC
        right = contents(image)
        have = made.path(1).read_bytes()
        assert have == right[1][: len(have)]
        subprocess.run(["mount", "-o", "remount,size=64M", small], check=True, timeout=20)
        fill(made, 1)
        assert made.path(1).read_bytes() == right[1]
        del made
    finally:
        subprocess.run(["umount", "-l", small], check=True, timeout=20)


chunks = st.lists(
    st.tuples(st.integers(0, 400 << 10), st.integers(1, 3 << 20), st.booleans(), st.booleans()), max_size=60
)


@given(chunks)
def test_runs_are_near_and_bounded(spec: list[tuple[int, int, bool, bool]]) -> None:
    """Grouping loses no chunk, keeps the order, and no read is larger than it may be."""
    made, at = [], 0
    for gap, size, back, unused in spec:
        at = max(0, at - gap) if back else at + gap
        made.append(PlanChunk(b"", at, 0, size, size, PlanFlags.UNUSED.value if unused else 0, size, 0))
        at += size
    runs = list(_runs(made))
    assert [chunk for run in runs for chunk in run] == made
    for run in runs:
        wanted = [c for c in run if not c.flags & PlanFlags.UNUSED]
        if wanted:
            start = wanted[0].compressed_offset
            assert start == min(c.compressed_offset for c in wanted)
            end = max(c.compressed_offset + c.compressed_size for c in wanted)
            assert end - start <= RUN_MAX or len(wanted) == 1
