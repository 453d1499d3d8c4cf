"""Places in the metadata area: nothing overlaps, tails stay in their block, and little is wasted."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.builder.layout import Allocator

BLOCK, SLOT = 4096, 32

requests = st.lists(
    st.one_of(
        st.tuples(st.just("inode"), st.integers(64, 9000)),
        st.tuples(st.just("within_block"), st.integers(64, BLOCK)),
        st.tuples(st.just("blocks"), st.integers(1, 4).map(lambda n: n * BLOCK)),
    ),
    max_size=60,
)


@given(requests)
def test_places(wanted: list[tuple[str, int]]) -> None:
    allocator = Allocator()
    taken = []
    for kind, size in wanted:
        place = getattr(allocator, kind)(size)
        assert place >= BLOCK
        assert place % (BLOCK if kind == "blocks" else SLOT) == 0
        if kind == "within_block":
            assert place // BLOCK == (place + size - 1) // BLOCK
        taken.append((place, place + size))
    taken.sort()
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(taken))
    assert allocator.end >= max((end for _, end in taken), default=0)


def test_the_first_place_is_the_roots() -> None:
    assert Allocator().inode(64) == Allocator().within_block(4000) == BLOCK


def test_gaps_are_filled() -> None:
    allocator = Allocator()
    for _ in range(100):
        allocator.within_block(3000)  # leaves 1088 bytes of each block
    end = allocator.end
    for _ in range(99 * 11):
        allocator.inode(96)
    assert allocator.end == end
