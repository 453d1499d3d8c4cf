"""The digest tree of a bootstrap against fs-verity's own tool, and against every kind of damage."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.erofs import merkle, verity
from nydus_erofs.erofs.errors import CorruptError, FormatError
from nydus_erofs.erofs.source import BufferSource

# What `fsverity digest` (fsverity-utils 1.5) prints for `data(size)`.
KNOWN = [
    (1, "4d3b26a3350968139fa3c9aed0296bb4fe8f8970ff3cc86582668368f8ecda40"),
    (4095, "e23103a95ef1f8c2925c854c314b37a0c086efb6e6a18f85e3d876f07d9c9f7f"),
    (4096, "3b2235a3609a1d431067c21dbfc8b233d20e901c718f165e2591b22bfbaf8480"),
    (4097, "86fb0922d30c40b8120ae70b3a9425e40136ba5f1cb6cf525a56adc44e69c4bd"),
    (524288, "a9c8d709db1707009b3c3a8f8860b3193b08a032be6039a1928a82fafcb80cc5"),
    (524289, "772a979bd559e2f464fb2c464e43970dedc93d68d9881f91d584f32b0e78e416"),
    (3000000, "66f9e50fb653dbd186fd5d4d23217fb4ef1a9f3543c7d20c9ec58a9faddf03b8"),
]


def data(size):
    return b"".join(hashlib.sha256(i.to_bytes(8, "little")).digest() for i in range(-(-size // 32)))[:size]


DATA = data(600_000)  # two levels
TREE = verity.build_tree(DATA)


@pytest.mark.parametrize(("size", "digest"), KNOWN)
def test_identity_is_the_fsverity_digest(size, digest):
    assert merkle.identity(data(size)) == f"sha256:{digest}"


@pytest.mark.parametrize("size", [size for size, _ in KNOWN])
def test_published_and_read_again(size):
    tree = verity.build_tree(data(size))
    packed = tree.pack()
    assert verity.parse_tree(packed) == tree
    assert len(packed) <= verity.MAX_TREE_FILE


@given(st.integers(0, len(DATA)), st.integers(0, len(DATA)))
def test_pieces_are_what_they_were(one, other):
    offset, end = sorted((one, other))
    source = verity.VerifiedSource(BufferSource(DATA), TREE)
    assert source.read_at(offset, end - offset) == DATA[offset:end]


@given(st.integers(0, len(DATA) - 1), st.integers(0, 7))
def test_a_flipped_bit_is_found_where_it_is_and_nowhere_else(at, bit):
    wrong = bytearray(DATA)
    wrong[at] ^= 1 << bit
    source = verity.VerifiedSource(BufferSource(wrong), TREE)
    block = at - at % merkle.BLOCK
    with pytest.raises(CorruptError, match=f"byte {block} "):
        source.read_at(at, 1)
    if block:
        assert source.read_at(0, block) == DATA[:block]


@given(st.integers(0, len(TREE.pack()) - 1), st.integers(0, 7))
def test_a_damaged_tree_is_refused(at, bit):
    """But for the header's padding, which says nothing."""
    packed = bytearray(TREE.pack())
    packed[at] ^= 1 << bit
    if 56 <= at < 64:
        return
    try:
        tree = verity.parse_tree(packed)
    except FormatError:
        return
    # A size that needs the same tree; its identity is another.
    assert tree.size != len(DATA)
    assert tree.identity != TREE.identity


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 4096, len(TREE.pack()) - 1])
def test_a_tree_cut_off(cut):
    with pytest.raises(FormatError):
        verity.parse_tree(TREE.pack()[:cut])


def test_a_tree_that_claims_to_be_enormous():
    packed = bytearray(TREE.pack())
    packed[16:24] = b"\xff" * 8
    with pytest.raises(FormatError):
        verity.parse_tree(packed)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, len(DATA) + 1), (len(DATA), 1), (0, -1)])
def test_outside(offset, length):
    with pytest.raises(FormatError):
        verity.VerifiedSource(BufferSource(DATA), TREE).read_at(offset, length)
