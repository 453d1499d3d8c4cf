"""The fanotify protocol with Hypothesis as the kernel: everything it may send, and what it must never send."""

from __future__ import annotations

import contextlib
import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.erofs.errors import KernelError
from nydus_erofs.fscache.proto import fanotify as proto
from nydus_erofs.fscache.proto.fanotify import PreContentEvent

# include/uapi/linux/fanotify.h (6.14): struct fanotify_event_metadata, fanotify_event_info_header, _info_range.
METADATA = struct.Struct("=IBBHQii")
INFO = struct.Struct("=BBH")
RANGE = struct.Struct("=BBHIQQ")
PRE_ACCESS = 0x100000
RANGE_TYPE = 6


def event(fd: int, pid: int, *infos: bytes, version: int = 3, metadata_extra: bytes = b"") -> bytes:
    """One record as the kernel lays it out; later kernels may append to the metadata."""
    body = metadata_extra + b"".join(infos)
    head = METADATA.size + len(metadata_extra)
    return METADATA.pack(METADATA.size + len(body), version, 0, head, PRE_ACCESS, fd, pid) + body


def range_info(offset: int, count: int, extra: bytes = b"") -> bytes:
    return RANGE.pack(RANGE_TYPE, 0, RANGE.size + len(extra), 0, offset, count) + extra


def other_info(kind: int, body: bytes) -> bytes:
    return INFO.pack(kind, 0, INFO.size + len(body)) + body


u64 = st.integers(0, (1 << 64) - 1)
fds = st.integers(0, (1 << 31) - 1)
kinds = st.integers(0, 255).filter(lambda kind: kind != RANGE_TYPE)
others = st.lists(st.builds(other_info, kinds, st.binary(max_size=40)), max_size=3).map(b"".join)


Made = tuple[PreContentEvent | None, bytes]


@st.composite
def events(draw: st.DrawFn) -> Made:
    """(what the program must see, the record)"""
    fd, pid = draw(st.one_of(st.just(-1), fds)), draw(st.integers(-1, 1 << 22))
    before, after = draw(others), draw(others)
    extra = draw(st.binary(max_size=16))
    ranged = draw(st.one_of(st.none(), st.tuples(u64, u64)))
    infos = [before, range_info(*ranged, draw(st.binary(max_size=8))) if ranged else b"", after]
    expected = PreContentEvent(fd, pid, *(ranged or (None, 0)))
    return (None if fd < 0 else expected), event(fd, pid, *infos, metadata_extra=extra)


@given(st.lists(events(), max_size=80))
def test_many_events_with_unknown_information(
    made: list[Made],
) -> None:
    buffer = b"".join(record for _, record in made)
    # An event without a descriptor (queue overflow) has nothing to answer.
    assert list(proto.parse(buffer)) == [expected for expected, _ in made if expected]


def test_size_of_an_ordinary_event() -> None:
    assert len(event(5, 1, range_info(0, 4096))) == proto.EVENT_SIZE


@given(st.lists(events(), min_size=1, max_size=4), st.data())
def test_truncated_anywhere(
    made: list[Made],
    data: st.DataObject,
) -> None:
    buffer = b"".join(record for _, record in made)
    cut = data.draw(st.integers(0, len(buffer) - 1))
    borders, at = {0}, 0
    for _, record in made:
        at += len(record)
        borders.add(at)
    if cut in borders:
        list(proto.parse(buffer[:cut]))
    else:
        with pytest.raises(KernelError):
            list(proto.parse(buffer[:cut]))


@given(st.integers(0, 255).filter(lambda version: version != 3))
def test_another_version_is_refused(version: int) -> None:
    with pytest.raises(KernelError, match=f"version {version}"):
        list(proto.parse(event(5, 1, range_info(0, 1), version=version)))


@given(st.integers(0, RANGE.size - 1), u64)
def test_a_range_record_that_is_too_short_gives_no_range(size: int, offset: int) -> None:
    """It must not be read beyond its end."""
    short = INFO.pack(RANGE_TYPE, 0, max(size, INFO.size)) + struct.pack("=IQQ", 0, offset, 1)[: max(0, size - 4)]
    (seen,) = proto.parse(event(7, 1, short))
    assert seen.offset is None


@pytest.mark.parametrize("size", [0, 1, 2, 3, 45, 1 << 15])
def test_an_information_record_with_a_wrong_length_ends_it(size: int) -> None:
    """A length of 0 would make a careless loop endless."""
    with pytest.raises(KernelError, match="information record"):
        list(proto.parse(event(7, 1, INFO.pack(1, 0, size) + bytes(40))))


@given(st.binary(max_size=300))
def test_noise(buffer: bytes) -> None:
    try:
        for seen in proto.parse(buffer):
            assert seen.fd >= 0
    except KernelError:
        pass


@given(st.lists(events(), min_size=1, max_size=5), st.data())
def test_flipped_bits(
    made: list[Made],
    data: st.DataObject,
) -> None:
    """Whatever the bytes are: events, or the one error that the engine expects."""
    buffer = bytearray(b"".join(record for _, record in made))
    for at in data.draw(st.lists(st.integers(0, len(buffer) * 8 - 1), min_size=1, max_size=8)):
        buffer[at // 8] ^= 1 << at % 8
    with contextlib.suppress(KernelError):
        assert len(list(proto.parse(bytes(buffer)))) <= len(buffer) // METADATA.size


@given(fds, st.booleans())
def test_responses(fd: int, allow: bool) -> None:
    # struct fanotify_response; FAN_ALLOW is 1, FAN_DENY is 2, the errno of a denial above it (FAN_DENY_ERRNO).
    assert struct.unpack("=iI", proto.response(fd, allow)) == (fd, 1 if allow else 2 | errno.EIO << 24)
    full = proto.response(fd, allow, errno.ENOSPC)
    assert struct.unpack("=iI", full) == (fd, 1 if allow else 2 | errno.ENOSPC << 24)
