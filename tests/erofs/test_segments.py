"""Segments, and what processes without decoders may import."""

from __future__ import annotations

import subprocess
import sys
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.erofs.ondisk import BLOCK_SIZE
from nydus_erofs.erofs.segments import MAX_DEVICES, cut, segment_size_for


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=60), st.integers(12, 30))
def test_cut(blocks: list[int], bits: int) -> None:
    """Segments are as long as they may be: one more chunk would be too much."""
    borders = [sum(blocks[:index]) * BLOCK_SIZE for index in range(len(blocks) + 1)]
    first = 0
    for segment in cut(array("Q", borders[:-1]), borders[-1], 1 << bits):
        behind = first + segment.chunks
        assert (segment.first, segment.start) == (first, borders[first])
        assert segment.start + segment.size == borders[behind]
        assert segment.chunks == 1 or segment.size <= 1 << bits
        assert behind == len(blocks) or borders[behind + 1] - segment.start > 1 << bits
        first = behind
    assert first == len(blocks)


@given(st.integers(0, 1 << 48), st.integers(12, 24))
def test_segment_size_for(total: int, bits: int) -> None:
    size = segment_size_for(total, 1 << bits)
    assert total // size <= MAX_DEVICES // 2
    assert size == 1 << bits or total // (size // 2) > MAX_DEVICES // 2


@pytest.mark.parametrize("name", ["errors", "ids", "rafs", "record", "segments", "source"])
def test_light_to_import(name: str) -> None:
    """A process that holds privileges loads these, and no decoder with them."""
    heavy = "{'lz4', 'zstandard', 'blake3', 'nydus_erofs.erofs.codec', 'nydus_erofs.erofs.digest'}"
    code = f"import sys, nydus_erofs.erofs.{name}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
