"""Reads and comparisons of mounts, in children with a time limit: a read that nobody answers can only be killed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.kit.command import PYTHON
from tests.kit.waiting import PATIENCE

READER = Path(__file__).with_name("reader.py")
COMPARE = Path(__file__).parents[2] / "scripts" / "compare_trees.py"


def reader(*arguments: object) -> subprocess.Popen[str]:
    """A child that reads, as ``reader.py`` says."""
    return subprocess.Popen(
        [*PYTHON, str(READER), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result_of(process: subprocess.Popen[str], patience: float = PATIENCE) -> dict[str, Any]:
    """What a reader found. AssertionError when it hangs, or died of anything."""
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate(timeout=20)
        raise AssertionError(f"a reader hangs: {process.args!r}") from None
    assert out, f"a reader ended with {process.returncode}: {err}"
    return dict(json.loads(out.splitlines()[-1]))


def read(*arguments: object) -> dict[str, Any]:
    """Read a file, or LENGTH bytes at OFFSET: its length and SHA-256, or the error's name."""
    return result_of(reader("read", *arguments))


def compare_expected(expected: Path, target: Path) -> None:
    """The mounted tree is the one that the images of tests/data were built from."""
    result = result_of(reader("expected", expected, target))
    assert not result["wrong"], result
    assert result["entries"] > 1000


def compare(tree: Path, target: Path) -> None:
    """Two trees are the same in every name, attribute and byte."""
    command = [*PYTHON, str(COMPARE), "--time-limit", str(PATIENCE), str(tree), str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE + 20, check=False)
    except subprocess.TimeoutExpired:
        raise AssertionError("comparing hangs") from None
    assert done.returncode == 0, done.stdout + done.stderr
