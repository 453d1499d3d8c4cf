"""doctor: what this host can do, for people and for programs, and what to change."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from nydus_erofs.cli.doctor import command
from tests.kit.command import AsNobody, cli
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
    assert "sandbox: " in done.stdout
    assert list(folder.iterdir()) == []


def test_json(cache_disk: Path) -> None:
    done = doctor(cache_disk, "--json")
    report = json.loads(done.stdout)
    assert done.stderr == ""
    assert report["kernel"] == os.uname().release
    assert any(engine["works"] for engine in report["engines"].values())
    assert report["sandbox"]["checks"]
    for engine in report["engines"].values():
        assert engine["works"] == all(check["ok"] for check in engine["checks"])
        for check in engine["checks"]:
            assert check["name"]
            assert check["detail"]
            assert check["ok"] or check["fix"]


def test_limits(cache_disk: Path) -> None:
    """They are named for people and for programs, and do not decide whether an engine works."""
    limits = {check["name"]: check for check in json.loads(doctor(cache_disk, "--json").stdout)["limits"]}
    assert limits["cache's filesystem"]["state"] == "ok"
    assert all(check["ok"] for check in limits.values())
    shown = doctor(cache_disk).stdout.partition("\nlimits\n")[2]
    for name, check in limits.items():
        assert f"{check['state']:4}  {name}: " in shown


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
        (note,) = (check for check in report["limits"] if check["name"] == "cache's filesystem")
        assert (note["state"], "tmpfs" in note["detail"], "ext4" in note["fix"]) == ("note", True, True)
        assert "  note  cache's filesystem: tmpfs" in done.stdout
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


# --- not root -----------------------------------------------------------------------------------------------


@pytest.fixture
def state() -> Iterator[Path]:
    """A service's state folder: anybody may see that it is there, root alone what is in it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        state = Path(folder) / "state"
        state.mkdir(mode=0o700)
        yield state


def test_as_anybody(state: Path, as_nobody: AsNobody) -> None:
    """It says what it sees, and what it cannot."""
    done = as_nobody("doctor", "--state-dir", state)
    assert done.stderr == ""
    assert done.stdout.startswith(f"kernel {os.uname().release}, cache on {state}\n")
    assert "engine: works" not in done.stdout
    if "engine: may work" in done.stdout:
        assert done.returncode == 9
        assert "not tried: mounting and reading a tiny image needs root" in done.stdout
        assert done.stdout.endswith("run it as root to know\n")
    else:
        assert done.returncode == 8
        assert done.stdout.endswith("no engine works here\n")
    assert list(state.iterdir()) == []


def test_as_anybody_for_programs(state: Path, as_nobody: AsNobody) -> None:
    done = as_nobody("doctor", "--state-dir", state / "below", "--json")
    engines = json.loads(done.stdout)["engines"]
    assert list(engines) == ["fanotify", "cachefiles"]
    for engine in engines.values():
        assert engine["tried"] is False
        assert engine["works"] in (None, False)
        assert (engine["works"] is False) == any(not check["ok"] for check in engine["checks"])
    assert done.returncode == (9 if any(engine["works"] is None for engine in engines.values()) else 8)


@pytest.mark.parametrize(
    ("text", "works"),
    [
        ("", [False, False]),
        ("CONFIG_EROFS_FS_BACKED_BY_FILE=y\nCONFIG_FANOTIFY_ACCESS_PERMISSIONS=y\n", [None, False]),
        ("CONFIG_EROFS_FS_ONDEMAND=y\n# CONFIG_CACHEFILES_ONDEMAND is not set\n", [False, False]),
        ("CONFIG_EROFS_FS_ONDEMAND=y\nCONFIG_CACHEFILES_ONDEMAND=y\n", [False, None]),
        (None, [None, None]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_kernels_configuration(
    text: str | None, works: list[bool | None], packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("config.gz" if packed else "config")
    if text is not None:
        path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    monkeypatch.setattr("nydus_erofs.cli.doctor._CONFIGURATIONS", ("/nonexistent", str(path)))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(command, ["--state-dir", str(tmp_path), "--json"])
    engines = json.loads(done.stdout)["engines"]
    assert [engine["works"] for engine in engines.values()] == works
    assert done.exit_code == (9 if None in works else 8)
