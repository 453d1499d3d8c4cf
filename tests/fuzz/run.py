"""Targets, each in a child that may die: started, watched, and started again until its time is over."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .child import CURRENT, Job

ROOT = Path(__file__).parents[2]
_SILENCE = 120.0  # seconds after which a child that says nothing hangs; one that is well speaks every second
_MOST_LIVES = 20  # children for one target that die
_SHOWN = 8000  # characters of a child's last words

Tell = Callable[[str], None]


@dataclass
class Result:
    """What came of a target. ``coverage`` are edges (atheris), ``refused`` the inputs that were found wrong."""

    target: str
    engine: str
    seed: int
    executions: int = 0
    seconds: float = 0.0
    refused: int = 0
    corpus: int = 0
    coverage: int = 0
    crashes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Executions per second."""
        return self.executions / self.seconds if self.seconds else 0.0

    def summary(self) -> dict[str, Any]:
        return asdict(self) | {"executions_per_second": round(self.rate, 1)}

    def line(self) -> str:
        seen = f"{self.coverage} edges, " if self.coverage else ""
        crashes = f"{len(self.crashes)} crashes" if len(self.crashes) != 1 else "1 crash"
        return (
            f"{self.target:18} {self.executions:>9} inputs, {self.rate:>8.0f}/s, {seen}corpus {self.corpus},"
            f" {self.refused} refused, {crashes}"
        )


def best_engine() -> str:
    """The one that knows what is covered, where it is installed."""
    return "atheris" if importlib.util.find_spec("atheris") else "plain"


def run_all(jobs: list[Job], at_once: int, tell: Tell) -> list[Result]:
    """Run targets, so many at a time."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda job: run_one(job, tell), jobs))


def run_one(job: Job, tell: Tell) -> Result:
    """Run a target until its time is over, or its inputs are done; however often that kills a child."""
    result = Result(job.target, job.engine, job.seed)
    for life in range(_MOST_LIVES):
        left = replace(
            job,
            seed=job.seed + life,
            seconds=max(job.seconds - result.seconds, 0.5) if job.seconds else 0.0,
            inputs=max(job.inputs - result.executions, 1) if job.inputs else 0,
        )
        if _live(left, result, tell):
            break
    tell(result.line())
    return result


def _live(job: Job, result: Result, tell: Tell) -> bool:
    """One child's life; whether it did all it had to."""
    with tempfile.NamedTemporaryFile(prefix="ne.fuzz") as current, tempfile.TemporaryFile() as errors:
        current.truncate(CURRENT)
        ours, theirs = os.pipe()
        words = json.dumps(asdict(replace(job, current=current.name)))
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.child", str(theirs), words],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, pass_fds=[theirs],
        )  # fmt: skip
        os.close(theirs)
        try:
            counts, done = _listen(ours, job, result, tell)
        finally:
            os.close(ours)
            if child.poll() is None and not _ends(child):
                child.send_signal(signal.SIGKILL)
            child.wait()
        result.executions += counts.get("executions", 0)
        result.refused += counts.get("refused", 0)
        result.seconds += counts.get("seconds", 0.0)
        result.corpus = counts.get("corpus", result.corpus)
        errors.seek(0)
        text = errors.read().decode(errors="replace")
        result.coverage = max([result.coverage, *map(int, re.findall(r"\bcov: (\d+)", text))])
        if not done:
            data = Path(current.name).read_bytes()
            _keep(job, result, data[8 : 8 + int.from_bytes(data[:8], "little")], child.returncode, text, tell)
        return done or not counts.get("executions")


def _ends(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        return False
    return True


def _listen(pipe: int, job: Job, result: Result, tell: Tell) -> tuple[dict[str, Any], bool]:
    """What a child says until it ends or hangs: its last counts, and whether it is done."""
    counts: dict[str, Any] = {}
    rest, told = b"", time.monotonic()
    heard = told
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while time.monotonic() - heard < _SILENCE:
            if not selector.select(1.0):
                continue
            heard = time.monotonic()
            if not (piece := os.read(pipe, 1 << 16)):
                break
            *lines, rest = (rest + piece).split(b"\n")
            for said in map(json.loads, lines):
                if "crash" in said:
                    _note(result, said["crash"], tell)
                    continue
                counts = said
                if said.pop("done", False):
                    return counts, True
            if heard - told > 10:
                told = heard
                tell(f"{job.target:18} {counts.get('executions', 0):>9} inputs, corpus {counts.get('corpus', 0)} ...")
    return counts, False


def _note(result: Result, crash: dict[str, Any], tell: Tell) -> None:
    if crash["signature"] not in [known["signature"] for known in result.crashes]:
        result.crashes.append(crash)
        tell(f"{result.target}: CRASH {crash['signature']}\n  {crash['file']}\n{crash['text']}")


def _keep(job: Job, result: Result, data: bytes, code: int, text: str, tell: Tell) -> None:
    """What a child died of, which nothing in it could note."""
    path = Path(job.crashes, f"died-{hashlib.sha256(data).hexdigest()[:8]}")
    path.write_bytes(data)
    signature = f"its process ended with {code}" if code > 0 else f"its process was ended by signal {-code}"
    _note(result, {"signature": signature, "file": str(path), "bytes": len(data), "text": text[-_SHOWN:]}, tell)
