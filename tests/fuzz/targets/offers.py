"""What a worker offers to the verifier: any offers in any order, with any bytes. Only right ones are written."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import zlib
from collections.abc import Iterator

import msgspec

from nydus_erofs.erofs.rafs import Compression, DigestAlgo
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.proto import verifier as proto
from nydus_erofs.fscache.proto.worker import FillReason
from nydus_erofs.fscache.state.plan import CHUNK, MAGIC, SEGMENT, Plan, PlanFlags, PlanHeader
from nydus_erofs.fscache.verifier.store import Store
from tests.fuzz import mutate
from tests.fuzz.served import Memory
from tests.fuzz.target import target

BLOCK, EACH, SEGMENTS = 4096, 6, 3
UNUSED = 4  # of each segment's chunks: the image does not use it
SPACE = EACH * BLOCK


@functools.cache
def right() -> bytes:
    """What the segments hold in the end, one behind the other. Chunks end within their last block."""
    data = bytearray(random.Random(7).randbytes(SEGMENTS * SPACE))
    for number in range(SEGMENTS * EACH):
        size = 0 if number % EACH == UNUSED else _size(number)
        data[number * BLOCK + size : (number + 1) * BLOCK] = bytes(BLOCK - size)
    return bytes(data)


def _size(number: int) -> int:
    return BLOCK - 100 * (number % 3)


@functools.cache
def plan() -> Plan:
    header = PlanHeader(MAGIC, b"ab" * 32, Compression.NONE, DigestAlgo.SHA256, SEGMENTS, SEGMENTS * EACH, BLOCK)
    out = [header.pack(), *(SEGMENT.pack(n * SPACE, SPACE, n * EACH, EACH) for n in range(SEGMENTS))]
    for number in range(SEGMENTS * EACH):
        at, size = number * BLOCK, _size(number)
        unused = number % EACH == UNUSED
        digest = bytes(32) if unused else hashlib.sha256(right()[at : at + size]).digest()
        out.append(CHUNK.pack(digest, at, at, size, size, PlanFlags.UNUSED * unused, size, 0))
    fd = os.memfd_create("plan")
    os.write(fd, b"".join(out))
    return Plan(Fd(fd))


def _bytes(line: bytes, size: int) -> memoryview:
    """What lies in the memory of the connection: the right bytes of these chunks, or, now and then, others."""
    rng = random.Random(zlib.crc32(line))
    try:
        offer = proto.decode_offer(line)
    except msgspec.DecodeError:
        offer = None
    data = b""
    if isinstance(offer, proto.Piece):
        for number in range(offer.first, offer.first + offer.count):
            at = offer.segment * SPACE + number * BLOCK
            if number % EACH != UNUSED:
                data += right()[at : at + _size(offer.segment * EACH + number)]
    out = bytearray(data[:size] + bytes(max(0, size - len(data))))
    if out and rng.random() < 0.3:
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return memoryview(out)


def _seeds() -> Iterator[bytes]:
    whole = [proto.encode(proto.Piece(1, n, 0, EACH, FillReason.DEMAND)) for n in range(SEGMENTS)]
    steps = [proto.encode(proto.Piece(1, 0, n, 1, FillReason.AHEAD)) for n in range(EACH)]
    yield b"\n".join(whole)
    yield b"\n".join([*steps, proto.encode(proto.Piece(1, 0, 0, 0, FillReason.PREFETCH)), *whole])
    yield b"\n".join([proto.encode(proto.Proof(1, 4096)), *steps[::-1], *whole[::-1], *steps])


@target(_seeds, mutate.lines(mutate.document, [proto.encode(proto.Proof(1, 1))]), refusals=())
def offers(data: bytes) -> object:
    sink = Memory()
    store, said = Store(plan(), sink), set()
    for line in data.split(b"\n")[:50]:
        try:
            offer = proto.decode_offer(line[: proto.MAX_MESSAGE])
        except msgspec.DecodeError:
            said.add("nonsense")  # and the connection ends
            continue
        verdict = store.judge(offer, functools.partial(_bytes, line))
        proto.decode_verdict(proto.encode(verdict))
        said.add(verdict.error)
        for number in range(SEGMENTS):
            held = sink.segments.get(number, bytearray())
            assert right()[number * SPACE :].startswith(held), (number, line)
            assert len(held) <= SPACE
        if isinstance(offer, proto.Piece) and not verdict.error:
            assert verdict.have == len(sink.segments[offer.segment])
            assert verdict.good <= offer.count
    return tuple(sorted(said))
