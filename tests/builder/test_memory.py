"""Memory is bounded by what is in flight, not by what is in the source."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def pss(pid: int) -> int:
    """Bytes of memory, pages shared by n processes counted as an nth."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


@pytest.mark.parametrize("chunk_size", ["0x100000", "0x1000000"])
def test_incompressible_files(chunk_size: str, tmp_path: Path) -> None:
    (tree := tmp_path / "tree").mkdir()
    (out := tmp_path / "out").mkdir()
    noise = os.urandom(1 << 20)
    for number in range(4):
        with (tree / f"{number}").open("wb") as file:
            for block in range(100):
                file.write(bytes([number, block]) + noise[2:])
    process = subprocess.Popen(
        [sys.executable, "-m", "nydus_erofs", "build", tree, "-o", out, "--workers", "2", "--chunk-size", chunk_size],
        stdout=subprocess.DEVNULL,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(pss, family(process.pid))))
        time.sleep(0.02)
    assert process.returncode == 0
    assert 10 << 20 < peak < 200 << 20
