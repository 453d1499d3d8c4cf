"""``nydus-erofs``, run to its end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.kit.waiting import PATIENCE

PYTHON = [sys.executable, "-I"]
NAME = Path(sys.executable).name[:15]  # as the kernel has it, of a process that runs it
CLI = [*PYTHON, "-m", "nydus_erofs"]

AsNobody = Callable[..., subprocess.CompletedProcess[str]]  # ``nydus-erofs`` as an ordinary user


def cli(
    *arguments: object,
    check: bool = False,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``nydus-erofs``; its output is text, and never a traceback."""
    done = subprocess.run(
        [*CLI, *map(str, arguments)],
        capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=cwd, env=env, stdin=stdin,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    if check:
        assert done.returncode == 0, done.stderr
    return done
