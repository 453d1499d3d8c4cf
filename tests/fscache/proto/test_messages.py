"""Messages between keeper, worker and prepare: neither of the two others is trusted, whatever they send."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.fscache.kernel import channel
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto import prepare, worker
from nydus_erofs.fscache.proto.worker import Failed, FillReason, Progress, Synced
from tests.kit.processes import descriptors

DECODERS = [worker.decode_for_keeper, worker.decode_for_worker, prepare.decode_for_keeper, prepare.decode_for_prepare]
NONSENSE = [
    b"", b"x", b"[]", b"{}", b'{"op":"nothing"}', b"\xff", b'{"op":"failed","store":"\xff"}',
    b'{"x":' + b"[" * 60_000, b"[" * 60_000, b'{"op":"progress","store":1,"segment":1.5}', b'{"op":"prepared","x":1}',
]  # fmt: skip


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: f"{decode.__module__}.{decode.__name__}")
@pytest.mark.parametrize("packet", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense(decode: Callable[[bytes], object], packet: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(packet)


@given(st.binary(max_size=200))
def test_any_bytes(packet: bytes) -> None:
    for decode in DECODERS:
        with contextlib.suppress(msgspec.DecodeError):
            decode(packet)


numbers = st.integers(0, (1 << 31) - 1)
sizes = st.integers(0, (1 << 53) - 1)
texts = st.text(max_size=40)
to_worker = st.one_of(
    st.builds(worker.OpenStore, numbers),
    st.builds(worker.AddSource, numbers),
    st.builds(worker.CloseStore, numbers, st.booleans()),
    st.builds(worker.Fill, numbers, numbers, numbers),
    st.builds(worker.Touch, numbers, numbers),
    st.builds(worker.Prefetch, numbers, st.booleans()),
    st.builds(worker.Sync, numbers),
)
to_keeper = st.one_of(
    st.builds(worker.Progress, numbers, numbers, sizes, st.booleans(), st.sampled_from(FillReason), sizes),
    st.builds(worker.Failed, numbers, numbers, texts, texts, st.booleans()),
    st.builds(worker.Synced, numbers),
)


@given(to_worker)
def test_round_trip_to_the_worker(message: worker.ToWorker) -> None:
    assert worker.decode_for_worker(worker.encode(message)) == message


@given(to_keeper)
def test_round_trip_to_the_keeper(message: Failed | Progress | Synced) -> None:
    packet = worker.encode(message)
    assert worker.decode_for_keeper(packet) == message
    assert len(packet) < worker.MAX_MESSAGE


# --- packets with descriptors, on real sockets ------------------------------------------------------------


def same(fd: Fd, other: Fd) -> bool:
    return os.path.samestat(os.fstat(fd.fd), os.fstat(other.fd))


def test_descriptors_arrive_in_order_and_are_not_inherited() -> None:
    ours, theirs = channel.pair()
    fds = [Fd(os.memfd_create(str(n))) for n in range(10)]
    with ours, theirs:
        channel.send(ours, b"packet", fds)
        packet, received = channel.receive(theirs, 1 << 16)
        assert packet == b"packet"
        assert all(same(a, b) for a, b in zip(fds, received, strict=True))
        assert not any(os.get_inheritable(fd.fd) for fd in received)
    channel.close(fds + received)


@pytest.mark.parametrize(("size", "count"), [(100, 0), (10, 20)])
def test_what_is_cut_off_is_an_error_and_leaks_nothing(size: int, count: int) -> None:
    ours, theirs = channel.pair()
    fds = [Fd(os.memfd_create("x")) for _ in range(count)]
    with ours, theirs:
        channel.send(ours, b"x" * size, fds)
        before = len(descriptors())
        with pytest.raises(ConnectionError):
            channel.receive(theirs, 50)
        assert len(descriptors()) == before
    channel.close(fds)


def test_an_outbox_never_blocks_and_keeps_the_order() -> None:
    """The peer reads late: everything arrives, once, with its descriptors."""
    ours, theirs = channel.pair()
    ours.setblocking(False)
    outbox = channel.Outbox(ours)
    count, size = 3000, 500
    for number in range(count):
        fds = [Fd(os.memfd_create("x"))] if not number % 500 else []
        outbox.put(b"%06d" % number + b"x" * size, fds)
    seen: list[tuple[int, int]] = []

    def read() -> None:
        while len(seen) < count:
            packet, fds = channel.receive(theirs, 1 << 16)
            seen.append((int(packet[:6]), len(fds)))
            channel.close(fds)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while not outbox.flush():
        pass
    reader.join(20)
    assert seen == [(number, 0 if number % 500 else 1) for number in range(count)]
    ours.close()
    theirs.close()


def test_an_outbox_that_is_thrown_away_closes_what_it_holds() -> None:
    ours, theirs = channel.pair()
    ours.setblocking(False)
    outbox = channel.Outbox(ours)
    before = len(descriptors())
    while outbox.put(b"x" * 5000, [Fd(os.memfd_create("x"))]):
        pass
    outbox.put(b"x", [Fd(os.memfd_create("x"))])
    outbox.discard()
    assert len(descriptors()) == before
    ours.close()
    theirs.close()
