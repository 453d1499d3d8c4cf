"""doctor: what this host can do, for people and for programs, and what to change."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.kit.command import cli
from tests.kit.mounts import mounted, mounted_disk
from tests.kit.reading import compare_expected
from tests.kit.service import MakeService

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


def doctor(state: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run it; nothing stays mounted on the disk it looks at."""
    disk = next(path for path in (state, *state.parents) if path.exists())
    before = mounted(disk)
    done = cli("doctor", "--state-dir", state, *options)
    assert mounted(disk) == before
    return done


def test_here(cache_disk: Path) -> None:
    """On the machine that runs these tests one engine works at least, and nothing of the trial stays."""
    folder = cache_disk / "doctor"
    folder.mkdir()
    done = doctor(folder)
    assert done.returncode == 0, done.stdout
    assert os.uname().release in done.stdout
    assert str(folder) in done.stdout
    assert "engine: works" in done.stdout
    assert list(folder.iterdir()) == []


def test_json(cache_disk: Path) -> None:
    done = doctor(cache_disk, "--json")
    report = json.loads(done.stdout)
    assert done.stderr == ""
    assert report["kernel"] == os.uname().release
    assert any(engine["works"] for engine in report["engines"].values())
    for engine in report["engines"].values():
        assert engine["works"] == all(check["ok"] for check in engine["checks"])
        for check in engine["checks"]:
            assert check["name"]
            assert check["ok"] or check["fix"] or check["detail"]


def test_a_state_folder_that_is_not_there_yet(cache_disk: Path) -> None:
    """What counts is the disk it would be on; nothing is made."""
    done = doctor(cache_disk / "not" / "yet", "--json")
    assert json.loads(done.stdout)["cache"] == str(cache_disk)
    assert not (cache_disk / "not").exists()


def test_tmpfs(tmp_path: Path) -> None:
    """The fix is told, and the exit code is not 0."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True, timeout=20)
    try:
        done = doctor(tmp_path / "x")
        assert done.returncode == 8
        assert "fanotify engine: does not work" in done.stdout
        assert "FAIL" in done.stdout
        assert "fix: " in done.stdout
        assert "ext4" in done.stdout
        report = json.loads(doctor(tmp_path / "x", "--json").stdout)
        assert report["engines"]["fanotify"]["works"] is False
        (failed,) = (check for check in report["engines"]["fanotify"]["checks"] if not check["ok"])
        assert "ext4" in failed["fix"]
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True, timeout=20)


def test_a_read_only_disk(tmp_path: Path) -> None:
    with mounted_disk(tmp_path, 8) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True, timeout=20)
        done = doctor(disk)
        assert done.returncode != 0
        assert "Read-only file system" in done.stderr + done.stdout


def test_while_a_service_runs(make_service: MakeService, nydus_images: Path) -> None:
    """On the same folder, with an image mounted: neither disturbs the other."""
    service = make_service()
    target = service.mount(nydus_images / "plain" / "boot", nydus_images / "plain" / "blobs")
    assert doctor(service.state).returncode == 0
    compare_expected(nydus_images / "expected.json", target)
    service.umount(target)
    assert service.stop() == 0
