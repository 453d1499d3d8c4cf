"""What a worker may offer: right chunks in their order. Whatever else it says changes nothing that readers see."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nydus_erofs.erofs import verity
from nydus_erofs.erofs.segments import Segment
from nydus_erofs.erofs.source import BufferSource
from nydus_erofs.fscache.proto.verifier import MOST_CHUNKS, PIECE, Offer, Piece, Proof, Verdict
from nydus_erofs.fscache.proto.worker import FillReason
from nydus_erofs.fscache.state.plan import AnyPlan, PlanFlags, RawPlan
from nydus_erofs.fscache.verifier.store import Bytes, Store
from tests.kit.stores import MadeStore, MakeStore, OpenImage, OpenImages

SEGMENT = 0
STRANGER = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def right(image: OpenImage, make_store: MakeStore, segment: int = SEGMENT) -> bytes:
    """What the segment should hold."""
    made = make_store(image)
    made.fill(segment)
    return made.path(segment).read_bytes()


def offer(made: MadeStore, first: int, count: int, data: bytes, segment: int = SEGMENT) -> Verdict:
    private = memoryview(bytearray(data))
    return made.checked.judge(Piece(1, segment, first, count, FillReason.DEMAND), lambda size: private[:size])


def bodies(made: MadeStore, whole: bytes, segment: int = SEGMENT) -> list[bytes]:
    """The bytes of each chunk, without padding; none where the image has no use for them."""
    begin = made.store.plan.segments[segment].start
    return [
        b"" if chunk.flags & PlanFlags.UNUSED
        else whole[chunk.uncompressed_offset - begin :][: chunk.uncompressed_size]
        for chunk in made.store.plan.chunks(segment)
    ]  # fmt: skip


def test_right_chunks_are_written_with_their_padding(open_image: OpenImages, make_store: MakeStore) -> None:
    image = open_image()
    whole, made = right(image, make_store), make_store(image)
    parts = bodies(made, whole)
    verdict = offer(made, 0, len(parts), b"".join(parts))
    assert (verdict.good, verdict.have, verdict.error) == (len(parts), len(whole), "")
    assert made.path(SEGMENT).read_bytes() == whole


def test_a_question_tells_how_far_it_is(open_image: OpenImages, make_store: MakeStore) -> None:
    image = open_image()
    whole, made = right(image, make_store), make_store(image)
    assert offer(made, 0, 0, b"") == Verdict(0, 0)
    parts = bodies(made, whole)
    have = offer(made, 0, 2, b"".join(parts[:2])).have
    assert offer(made, 0, 0, b"") == Verdict(0, have)
    made.path(SEGMENT).write_bytes(whole + b"by somebody's hand")
    assert offer(made, 0, 0, b"") == Verdict(0, len(whole))
    assert made.path(SEGMENT).read_bytes() == whole


def test_a_wrong_chunk_ends_it(open_image: OpenImages, make_store: MakeStore) -> None:
    image = open_image()
    whole, made = right(image, make_store), make_store(image)
    parts = bodies(made, whole)
    bad = bytearray(parts[2])
    bad[0] ^= 1
    verdict = offer(made, 0, 4, b"".join([*parts[:2], bad, parts[3]]))
    assert (verdict.good, verdict.error) == (2, "")
    have = made.path(SEGMENT).read_bytes()
    assert len(have) == verdict.have
    assert whole.startswith(have)
    assert offer(made, 2, 2, b"".join(parts[2:4])).good == 2


@pytest.mark.parametrize(
    ("first", "count", "why"),
    [(1, 1, "behind"), (0, 1 << 20, "no such"), (1 << 30, 0, "no such"), (1 << 30, 1, "no such")],
)
def test_what_does_not_follow(
    first: int, count: int, why: str, open_image: OpenImages, make_store: MakeStore
) -> None:
    image = open_image()
    whole, made = right(image, make_store), make_store(image)
    parts = bodies(made, whole)
    assert why in offer(made, first, count, b"".join(parts[first : first + count])).error
    assert made.path(SEGMENT).stat().st_size == 0


def test_no_more_than_a_worker_needs_is_copied(open_image: OpenImages, make_store: MakeStore) -> None:
    """Whoever asks for more would have the verifier take memory for it."""
    made = make_store(open_image("plain", 64 << 20))
    asked: list[int] = []

    def copy(size: int) -> memoryview:
        asked.append(size)
        return memoryview(bytes(size))

    chunks = list(made.store.plan.chunks(SEGMENT))
    assert sum(chunk.uncompressed_size for chunk in chunks) > 2 * PIECE
    for count in range(1, min(MOST_CHUNKS, len(chunks)) + 1):
        made.checked.judge(Piece(1, SEGMENT, 0, count, FillReason.DEMAND), copy)
    assert max(asked) < PIECE + max(chunk.uncompressed_size for chunk in chunks)
    assert made.path(SEGMENT).stat().st_size == 0


@pytest.mark.parametrize("name", ["plain", "batch", "none-sha256"])
@STRANGER
@given(data=st.data())
def test_whatever_is_offered_readers_see_right_bytes(
    name: str, data: st.DataObject, open_image: OpenImages, make_store: MakeStore
) -> None:
    """Right and wrong chunks, in any order, of any segment, cut off anywhere."""
    image = open_image(name)
    made = make_store(image)
    segments = list(range(min(3, len(made.store.plan.segments))))
    wholes = {segment: right(image, make_store, segment) for segment in segments}
    for _ in range(data.draw(st.integers(1, 12))):
        segment = data.draw(st.sampled_from(segments))
        parts = bodies(made, wholes[segment], segment)
        first = data.draw(st.integers(0, len(parts)))
        count = data.draw(st.integers(0, len(parts) - first))
        raw = bytearray(b"".join(parts[first : first + count]))
        if raw and data.draw(st.booleans()):
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.sampled_from([1, 0x80, 0xFF]))
        if data.draw(st.booleans()):
            raw[data.draw(st.integers(0, len(raw))) :] = b""
        before = made.path(segment).read_bytes()
        verdict = offer(made, first, count, bytes(raw), segment)
        have = made.path(segment).read_bytes()
        assert wholes[segment].startswith(have)
        assert len(have) >= len(before)
        if not verdict.error:
            assert verdict.have == len(have)
            assert 0 <= verdict.good <= count


def test_a_file_that_is_gone_is_an_error(open_image: OpenImages, make_store: MakeStore) -> None:
    image = open_image()
    whole, made = right(image, make_store), make_store(image)
    parts = bodies(made, whole)
    made.path(SEGMENT).unlink()
    assert offer(made, 0, 1, parts[0]).error == os.strerror(2)
    made.path(SEGMENT).symlink_to("/etc/hosts")
    assert "many levels" in offer(made, 0, 1, parts[0]).error


# --- bootstraps ---------------------------------------------------------------------------------------------

BOOT = os.urandom((300 << 10) + 5)  # its last block is not whole
PIECES = 128 << 10  # bytes of a segment
TREE = verity.build_tree(BOOT)


class Kept:
    """A sink in memory."""

    def __init__(self) -> None:
        self.held: dict[int, bytes] = {}

    def filled(self, plan: AnyPlan) -> bytearray:
        return bytearray(len(plan.segments))

    def have(self, number: int, plan: AnyPlan) -> int:
        return plan.segments[number].size if number in self.held else 0

    def write(self, number: int, segment: Segment, content: Sequence[Bytes]) -> None:
        ((start, data, _),) = content
        assert start == 0
        self.held[number] = bytes(data)

    def sync(self) -> None: ...


def bootstrap(identity: str = "", file: bytes | None = None) -> tuple[Store, Kept]:
    plan, kept = RawPlan("bootstrap", len(BOOT), PIECES), Kept()
    return Store(plan, kept, BufferSource(file) if file is not None else None, identity), kept


def say(store: Store, offer: Offer, data: bytes) -> Verdict:
    return store.judge(offer, lambda size: memoryview(data)[:size])


def piece(segment: int) -> Piece:
    return Piece(1, segment, 0, 1, FillReason.DEMAND)


def cut(segment: int, of: bytes = BOOT) -> bytes:
    return of[segment * PIECES : (segment + 1) * PIECES]


def test_a_published_bootstrap_is_what_its_identity_says() -> None:
    store, kept = bootstrap(TREE.identity)
    assert say(store, piece(0), cut(0)).error == "a piece before its proof"
    proof = TREE.pack()
    assert not say(store, Proof(1, len(proof)), proof).error
    evil = bytes(byte ^ (at % 5000 == 4097) for at, byte in enumerate(BOOT))
    for segment in range(3):
        assert say(store, piece(segment), cut(segment, evil)).good == 0
        assert not kept.held.get(segment)
        assert say(store, piece(segment), cut(segment)).good == 1
    assert b"".join(kept.held[segment] for segment in range(3)) == BOOT


@pytest.mark.parametrize("proof", [
    verity.build_tree(BOOT[:-1]).pack(), verity.build_tree(bytes(len(BOOT))).pack(), TREE.pack()[:-1], b"x",
    bytes(5000),
], ids=range(5))  # fmt: skip
def test_the_proof_of_something_else(proof: bytes) -> None:
    store, kept = bootstrap(TREE.identity)
    assert say(store, Proof(1, len(proof)), proof).error
    assert say(store, piece(0), cut(0)).error == "a piece before its proof"
    assert not kept.held


def test_nobody_needs_a_proof_for_an_image_that_has_a_plan(open_image: OpenImages, make_store: MakeStore) -> None:
    made, proof = make_store(open_image()), TREE.pack()
    assert made.checked.judge(Proof(1, len(proof)), lambda size: memoryview(proof)[:size]).error


def test_of_a_bootstrap_in_a_file_its_own_bytes_count() -> None:
    """Whatever a worker says that they are."""
    store, kept = bootstrap(file=BOOT)
    for segment in range(3):
        assert say(store, piece(segment), bytes(PIECES)).good == 1
    assert b"".join(kept.held[segment] for segment in range(3)) == BOOT
    store, kept = bootstrap(file=BOOT[:100])
    assert "outside" in say(store, piece(0), cut(0)).error
    assert not kept.held
