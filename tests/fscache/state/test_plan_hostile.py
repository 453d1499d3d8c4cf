"""Plans that lie: a program without privilege wrote them, or a power cut left them; root reads them."""

from __future__ import annotations

import contextlib
import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.erofs.errors import FormatError
from nydus_erofs.erofs.rafs import Compression, DigestAlgo
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.state.plan import CHUNK, MAGIC, SEGMENT, Plan, PlanChunk, PlanHeader

SEGMENTS, EACH, CHUNK_SIZE = 3, 2, 4096
FIELDS = (72, 76, 80, 84, 88)  # where the header's numbers are: compression, digest, segments, chunks, chunk size
MANY = 0xFFFF_FFFF


def sound() -> bytes:
    """A plan of three segments, two chunks each."""
    header = PlanHeader(MAGIC, b"ab" * 32, Compression.NONE, DigestAlgo.SHA256, SEGMENTS, SEGMENTS * EACH, CHUNK_SIZE)
    size = EACH * CHUNK_SIZE
    segments = [SEGMENT.pack(number * size, size, number * EACH, EACH) for number in range(SEGMENTS)]
    chunks = [
        CHUNK.pack(bytes(32), at, at, CHUNK_SIZE, CHUNK_SIZE, 0, CHUNK_SIZE, 0)
        for at in range(0, SEGMENTS * size, CHUNK_SIZE)
    ]
    return header.pack() + b"".join(segments + chunks)


def read_whole(raw: bytes) -> list[list[PlanChunk]]:
    """All that a plan says, segment by segment; FormatError is the one error that may come of it."""
    fd = os.memfd_create("plan")
    os.write(fd, raw)
    plan = Plan(Fd(fd))
    found = [list(plan.chunks(number)) for number in range(len(plan.segments))]
    assert [len(chunks) for chunks in found] == [segment.chunks for segment in plan.segments]
    return found


def test_the_sound_one_is_read() -> None:
    assert [len(chunks) for chunks in read_whole(sound())] == [EACH] * SEGMENTS


@given(st.binary(max_size=600))
def test_any_bytes(raw: bytes) -> None:
    with pytest.raises(FormatError):
        read_whole(raw)


@given(st.binary(max_size=600))
def test_any_bytes_behind_a_right_beginning(raw: bytes) -> None:
    with contextlib.suppress(FormatError):
        read_whole(sound()[:72] + raw)


@given(st.integers(0, len(sound()) - 1))
def test_cut_off_anywhere(length: int) -> None:
    with pytest.raises(FormatError):
        read_whole(sound()[:length])


@given(st.lists(st.tuples(st.integers(0, len(sound()) - 1), st.binary(min_size=1, max_size=8)), max_size=4))
def test_bytes_changed_anywhere(changes: list[tuple[int, bytes]]) -> None:
    raw = bytearray(sound())
    for at, data in changes:
        raw[at : at + len(data)] = data
    with contextlib.suppress(FormatError):
        read_whole(bytes(raw))


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [0x7FFF_FFFF, 0x8000_0000, MANY])
def test_numbers_that_promise_what_is_not_there(field: int, value: int) -> None:
    """Nothing is allocated on a plan's word."""
    raw = bytearray(sound())
    raw[field : field + 4] = struct.pack("<I", value)
    tracemalloc.start()
    try:
        with contextlib.suppress(FormatError):
            read_whole(bytes(raw))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("first", [0, 1, SEGMENTS * EACH, MANY])
@pytest.mark.parametrize("count", [SEGMENTS * EACH + 1, MANY])
def test_a_segment_of_chunks_that_are_not_there(first: int, count: int) -> None:
    raw = bytearray(sound())
    SEGMENT.pack_into(raw, PlanHeader.size(), 0, EACH * CHUNK_SIZE, first, count)
    with pytest.raises(FormatError):
        read_whole(bytes(raw))


def test_cut_off_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    path.write_bytes(sound())
    plan = Plan(Fd(os.open(path, os.O_RDONLY)))
    assert list(plan.chunks(0))
    os.truncate(path, len(sound()) - 1)
    with pytest.raises(FormatError, match="cut off"):
        list(plan.chunks(len(plan.segments) - 1))
