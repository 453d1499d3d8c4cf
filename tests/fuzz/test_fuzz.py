"""Each target for a moment, every kept crash, and the harness itself: that it finds what is planted.

NYDUS_EROFS_FUZZ_SECONDS tries each target for so long, NYDUS_EROFS_FUZZ_SEED with another seed.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import objects, samples, served, target
from tests.fuzz.child import FDS, Job
from tests.fuzz.run import ROOT, Result, best_engine, run_one
from tests.kit.waiting import PATIENCE

SECONDS = float(os.environ.get("NYDUS_EROFS_FUZZ_SECONDS", "1"))
SEED = int(os.environ.get("NYDUS_EROFS_FUZZ_SEED", "1"))
TARGETS = target.load()
CRASHES = sorted((Path(__file__).parent / "crashes").glob("*/*"))
_SHOWN = 3000  # bytes of an input


def run(folder: Path, name: str, seconds: float = 0.0, inputs: int = 0, **job: Any) -> Result:
    for kind in ("corpus", "crashes"):
        (folder / kind).mkdir()
    settled: dict[str, Any] = {"targets": "tests.fuzz.targets", "engine": "plain", "seed": SEED, "current": ""} | job
    settled |= {"corpus": str(folder / "corpus"), "crashes": str(folder / "crashes")}
    return run_one(Job(target=name, seconds=seconds, inputs=inputs, **settled), lambda line: None)


def told(result: Result) -> str:
    """All that is needed to see a crash again."""
    lines = [f"python -m tests.fuzz {result.target} --engine {result.engine} --seed {result.seed}"]
    for crash in result.crashes:
        data = Path(crash["file"]).read_bytes()
        lines += [crash["text"], crash["signature"], f"base64: {base64.b64encode(data[:_SHOWN]).decode()}"]
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.timeout(300 + 2 * SECONDS)
def test_a_moment(name: str, tmp_path: Path) -> None:
    result = run(tmp_path, name, SECONDS)
    assert not result.crashes, told(result)
    assert result.executions >= len(list(TARGETS[name].seeds()))


@pytest.mark.parametrize("path", CRASHES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_kept_crash(path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", path.parent.name, "--input", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_images_that_are_broken_are_sound_before() -> None:
    for image in samples.samples():
        assert served.judge(image) == ("served", [])
        assert objects.compare(image)[1] == 0


def test_a_frozen_image_is_the_same() -> None:
    changed = bytes([1]) + samples.CHANGE.pack(samples.PARTS.index("superblocks"), samples.WAYS.index("flip"), 5, 3)
    image, frozen = samples.read_input(changed), samples.read_input(samples.freeze(changed))
    assert (image.boot, image.blobs) == (frozen.boot, frozen.blobs)
    assert image.boot != samples.samples()[1].boot


# --- the harness ----------------------------------------------------------------------------------------------

FAULTS = {
    "wrong": "AssertionError", "slow": "TooSlowError", "greedy": "MemoryError", "deep": "RecursionError",
    "killed": "signal 9", "asleep": "signal 9", "loses-descriptors": "OSError",
}  # fmt: skip
ENGINES = sorted({"plain", best_engine()})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.run._SILENCE", 10.0 if name == "asleep" else PATIENCE)
    monkeypatch.setattr("tests.fuzz.run._MOST_LIVES", 2)
    inputs = 2 * FDS if name == "loses-descriptors" else 40
    result = run(tmp_path, name, inputs=inputs, targets="tests.fuzz.planted", engine=engine)
    (crash,) = result.crashes
    assert FAULTS[name] in crash["signature"]
    data = Path(crash["file"]).read_bytes()
    assert b"!" in data or name == "loses-descriptors"
    if name == "wrong":
        assert data == b"!", "it was made smaller"


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_sound_has_no_crashes(engine: str, tmp_path: Path) -> None:
    result = run(tmp_path, "sound", inputs=500, targets="tests.fuzz.planted", engine=engine)
    assert not result.crashes
    assert result.executions == 500
    assert 0 < result.refused < 500


def test_the_same_seed_tries_the_same(tmp_path: Path) -> None:
    found = []
    for folder in (tmp_path / "1", tmp_path / "2"):
        folder.mkdir()
        result = run(folder, "plan", inputs=3000)
        names = sorted(path.name for path in (folder / "corpus").iterdir())
        found.append((result.executions, result.refused, result.corpus, names))
    assert found[0] == found[1]


def test_the_command(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "tests.fuzz", "wrong", "sound", "--targets", "tests.fuzz.planted", "--inputs", "200",
        "--jobs", "2", "--engine", "plain", "--corpus", str(tmp_path), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    summary = json.loads(done.stdout)
    assert (summary["inputs"], summary["crashes"]) == (400, 1)
    assert {one["target"]: len(one["crashes"]) for one in summary["targets"]} == {"wrong": 1, "sound": 0}
    assert "CRASH AssertionError" in done.stderr
    (crash,) = (tmp_path / "wrong" / "crashes").iterdir()
    again = [*command[:4], "--targets", "tests.fuzz.planted", "--input", str(crash)]
    done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "AssertionError" in done.stdout
