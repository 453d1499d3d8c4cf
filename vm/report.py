"""What a battery tells the matrix: one JSON object per line in the file NYDUS_EROFS_VM_REPORT."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

PATH = "NYDUS_EROFS_VM_REPORT"
ENGINE = "NYDUS_EROFS_VM_ENGINE"
"""The engine of the kernel that runs; checks of the other one are left out."""


@dataclass(frozen=True, slots=True)
class Result:
    """``engine`` is ``any``, ``cachefiles`` or ``fanotify``; ``detail`` is for people, stable between runs."""

    engine: str
    check: str
    passed: bool
    detail: str = ""


def read(path: Path) -> list[Result]:
    """The results so far; none if the battery never got to write any."""
    if not path.exists():
        return []
    return [Result(**json.loads(line)) for line in path.read_text().splitlines()]


def write(result: Result) -> None:
    """One line more, if anybody wants to know."""
    if path := os.environ.get(PATH):
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")


def run(checks: dict[tuple[str, str], Callable[[], str]]) -> int:
    """Run the checks (engine, what is verified) -> function, report each, return the exit code.

    A check returns what it saw; any exception is a failure, and the next check runs all the same.
    """
    failed = 0
    for (engine, check), function in checks.items():
        if engine not in {"any", os.environ.get(ENGINE, "any")}:
            continue
        try:
            result = Result(engine, check, True, function())
        except Exception as error:  # whatever it is, it is this check's result
            result = Result(engine, check, False, f"{type(error).__name__}: {error}")
            failed += 1
        print(f"{'pass' if result.passed else 'FAIL'}  {result.check}: {result.detail}")
        write(result)
    return 1 if failed else 0
