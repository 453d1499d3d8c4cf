"""The same input gives the same bytes: whatever the number of workers, and the order in which files were made."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import Any

import pytest


def plant(root: Path, seed: int) -> None:
    """The same tree for every seed, made in another order. Many chunks occur twice, near each other and far."""
    files = {
        f"{d}/{f}": random.Random((d * 37 + f) % 300).randbytes(2000) * ((d + f) % 30 + 1)
        for d in range(20)
        for f in range(30)
    }
    files |= {f"large{n}": random.Random(n % 2).randbytes(3 << 20) * 4 for n in range(3)}
    order = list(files)
    random.Random(seed).shuffle(order)
    root.mkdir()
    for name in order:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files[name])
        os.link(path, path.with_name(path.name + " again")) if len(files[name]) % 7 == 0 else None
    for path in root.rglob("*"):
        os.utime(path, ns=(1, 1_700_000_000_000_000_001))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    paths = [folder / str(seed) for seed in range(2)]
    for seed, path in enumerate(paths):
        plant(path, seed)
    return paths


@pytest.mark.parametrize("chunk_size", [0x1000, 0x100000])
def test_workers_and_order_do_not_matter(
    sources: list[Path], chunk_size: int, build_image: Any, tmp_path: Path
) -> None:
    made = {
        (result.bootstrap.read_bytes(), result.blob.read_bytes())
        for source in sources
        for workers in (1, 2, 3)
        for result in [
            build_image(source, tmp_path / f"{source.name}-{workers}", workers=workers, chunk_size=chunk_size)
        ]
    }
    assert len(made) == 1


def test_chunks_are_stored_once(sources: list[Path], build_image: Any, tmp_path: Path) -> None:
    result = build_image(sources[0], tmp_path / "out", workers=3)
    # 300 different small ones; of the large files 3 chunks each in two kinds, at four places
    small = {(d * 37 + f) % 300 * 100 + (d + f) % 30 for d in range(20) for f in range(30)}
    assert result.distinct_chunks == len(small) + 2 * 3
    assert result.blob_id == hashlib.sha256(result.blob.read_bytes()).hexdigest()
