"""The scripts a newcomer runs first: they work, say what they did, and leave nothing behind."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPTS / script), *map(str, arguments)]
    wanted = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=wanted)


def below(folder: Path) -> list[str]:
    """Mount points below a folder."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [target for line in lines if (target := line.split()[4]).startswith(f"{folder}/")]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """130 files, 2.3 MB."""
    done = run("bench/make_tree.py", tmp_path / "tree", "--scale", 0.001)
    assert done.returncode == 0, done.stderr
    return tmp_path / "tree"


@pytest.mark.parametrize("script", ["setup", "oracles", "test", "quickstart", "compare_trees.py"])
def test_help_says_how_to_use_it(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0
    assert re.match(r"usage: ", done.stdout, re.IGNORECASE)
    assert "set -euo" not in done.stdout


@pytest.mark.parametrize("script", ["setup", "oracles", "test", "quickstart"])
def test_unknown_option_is_one_line(script: str) -> None:
    done = run(script, "--nonsense")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{script}: error: unknown ")
    assert done.stderr.count("\n") == 1


BENCHES = sorted(path.name for path in (SCRIPTS / "bench").glob("*.py"))


def outside(bench: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a benchmark with a Python that has nothing of the project."""
    python = getattr(sys, "_base_executable", sys.executable)
    command = [python, str(SCRIPTS / "bench" / bench), "--help"]
    wanted = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=wanted)


@pytest.mark.parametrize("bench", BENCHES)
def test_benches_find_their_environment(bench: str) -> None:
    done = outside(bench)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if os.access(SCRIPTS / "bench" / bench, os.X_OK):
        assert done.stdout.startswith(f"usage: {bench} ")


def test_benches_without_an_environment() -> None:
    """What setup says is all that is said."""
    done = outside("build_bench.py", PYTHON="/nonexistent")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("setup: error: PYTHON=/nonexistent is not a Python")
    assert done.stderr.count("\n") == 1


def test_oracles_passes_on_what_the_environment_names(tmp_path: Path) -> None:
    program = tmp_path / "my fsck"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    done = run("oracles", "--print", "erofs", FSCK_EROFS=str(program))
    assert done.returncode == 0
    exports = dict(shlex.split(line)[1].split("=", 1) for line in done.stdout.splitlines())
    assert exports["FSCK_EROFS"] == str(program)


def test_build_bench_compares(tree: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, str(SCRIPTS / "bench" / "build_bench.py"), str(tree), "--rounds", "1"]
    done = subprocess.run([*command, "--json", str(report)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    ours = json.loads(report.read_text())["nydus-erofs"]
    assert 400_000 < ours["blob"] < 1_200_000
    assert ours["bootstrap"] % 4096 == 0 < ours["peak"]
    assert done.stdout.startswith("| builder ")


@pytest.mark.root
def test_quickstart_twice(tree: Path, tmp_path: Path) -> None:
    """It does the main job on real files, and the second run is like the first."""
    for _ in range(2):
        done = run("quickstart", tree, TMPDIR=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert "mounted in " in done.stderr
        assert "fetched so far: 0 of " in done.stderr
        verdict = done.stderr.splitlines()[-1]
        assert verdict.startswith(f"quickstart: verified: {tree} built in ")
        assert "equal: 135 files, 69 directories, 1 symlinks, 0 others, 2,300,000 bytes" in verdict
        assert below(tmp_path) == []
        assert list(tmp_path.glob("ne-quickstart.*")) == []


@pytest.mark.root
def test_quickstart_stopped(tree: Path, tmp_path: Path) -> None:
    """Stopped just after mounting, where there is most to undo."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [str(SCRIPTS / "quickstart"), str(tree)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not any(target.endswith("/mnt") for target in below(tmp_path)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said.decode()
    assert below(tmp_path) == []
    assert list(tmp_path.glob("ne-quickstart.*")) == []


@pytest.mark.root
@pytest.mark.parametrize("what", ["missing", "two"])
def test_quickstart_refuses_in_one_line(tmp_path: Path, what: str) -> None:
    arguments = [tmp_path / "none"] if what == "missing" else [tmp_path, tmp_path]
    done = run("quickstart", *arguments)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("quickstart: error: ")
