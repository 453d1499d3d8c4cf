"""Messages between keeper, worker and prepare: neither of the two others is trusted, whatever they send."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.fscache.kernel import channel
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto import prepare, verifier, worker
from nydus_erofs.fscache.proto.worker import FillReason
from tests.kit.processes import descriptors

DECODERS = [
    worker.decode_for_keeper, worker.decode_for_worker, prepare.decode_for_keeper, prepare.decode_for_prepare,
    verifier.decode_for_keeper, verifier.decode_for_verifier, verifier.decode_offer, verifier.decode_verdict,
]  # fmt: skip
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
reasons = st.sampled_from(FillReason)
to_worker = st.one_of(
    st.builds(worker.Connect),
    st.builds(worker.OpenStore, numbers, st.just("0f"), st.booleans()),
    st.builds(worker.OpenBootstrap, numbers, st.just("0f"), sizes, sizes),
    st.builds(worker.AddSource, numbers),
    st.builds(worker.CloseStore, numbers),
    st.builds(worker.Fill, numbers, numbers, numbers),
    st.builds(worker.Touch, numbers, numbers),
    st.builds(worker.Prefetch, numbers, st.booleans()),
)
from_worker = st.one_of(
    st.builds(worker.Fetched, numbers, sizes),
    st.builds(worker.Failed, numbers, numbers, texts, texts, st.booleans()),
)
to_verifier = st.one_of(
    st.builds(verifier.OpenFolder, numbers),
    st.builds(verifier.OpenObject, numbers, sizes, sizes),
    st.builds(verifier.CloseStore, numbers),
    st.builds(verifier.Connect),
)
from_verifier = st.one_of(
    st.builds(verifier.Present, numbers, st.just("0f")),
    st.builds(verifier.Progress, numbers, numbers, sizes, st.booleans(), reasons),
    st.builds(verifier.Closed, numbers),
)


@given(st.data())
def test_round_trips(data: st.DataObject) -> None:
    for messages, encode, decode in (
        (to_worker, worker.encode, worker.decode_for_worker),
        (from_worker, worker.encode, worker.decode_for_keeper),
        (to_verifier, verifier.encode, verifier.decode_for_verifier),
        (from_verifier, verifier.encode, verifier.decode_for_keeper),
        (st.builds(verifier.Piece, numbers, numbers, numbers, st.integers(0, 1000), reasons), verifier.encode,
         verifier.decode_offer),
        (st.builds(verifier.Proof, numbers, st.integers(1, 1 << 20)), verifier.encode, verifier.decode_offer),
        (st.builds(verifier.Verdict, numbers, sizes, texts, st.booleans()), verifier.encode, verifier.decode_verdict),
    ):  # fmt: skip
        message: Any = data.draw(messages)
        packet = encode(message)
        assert decode(packet) == message
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
