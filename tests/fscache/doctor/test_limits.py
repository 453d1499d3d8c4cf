"""What bounds how many images a host can serve: each limit with its value, and with the fix when it is near."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nydus_erofs.fscache.doctor import fanotify, limits
from nydus_erofs.fscache.doctor.checks import Check

NAMES = {
    "fanotify groups": "max_user_groups",
    "fanotify marks": "max_user_marks",
    "descriptors": "RLIMIT_NOFILE",
    "open files": "file-max",
    "segments": "65535",
    "mounts": "mount-max",
    "cache's filesystem": "",
}


def found(folder: Path) -> dict[str, Check]:
    return {check.name: check for check in limits.limits(str(folder))}


def test_here(tmp_path: Path) -> None:
    """All are named, with what a person looks for; nothing of them stops an engine."""
    checks = found(tmp_path)
    assert checks.keys() == NAMES.keys()
    for name, check in checks.items():
        assert check.ok
        assert NAMES[name] in check.detail
        assert check.state == ("note" if check.fix else "ok")


class Group:
    """Of ``left`` that there are; making one more fails with ``number``."""

    left, number = 0, errno.EMFILE

    def __init__(self) -> None:
        if not Group.left:
            raise OSError(Group.number, os.strerror(Group.number))
        Group.left -= 1

    def close(self) -> None:
        Group.left += 1


@pytest.mark.parametrize(("left", "said", "state"), [(3, "3 are free", "note"), (50, "8 or more are free", "ok")])
def test_groups(left: int, said: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "Group", Group)
    monkeypatch.setattr(Group, "left", left)
    check = found(tmp_path)["fanotify groups"]
    assert said in check.detail
    assert check.state == state
    assert ("sysctl fs.fanotify.max_user_groups=" in check.fix) == (state == "note")
    assert Group.left == left, "they are closed again"


def test_groups_that_cannot_be_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "Group", Group)
    monkeypatch.setattr(Group, "number", errno.EPERM)
    check = found(tmp_path)["fanotify groups"]
    assert "free" not in check.detail
    assert check.state == "ok"


def test_the_engine_says_when_there_is_no_group_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanotify, "Group", Group)
    (check,) = fanotify.fanotify_engine(str(tmp_path))
    assert check.state == "FAIL"
    assert "fs.fanotify.max_user_groups" in check.fix


def test_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "raise_file_limit", lambda: 1024)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check = found(tmp_path)["descriptors"]
    assert ": 170 images" in check.detail
    assert "LimitNOFILE" in check.fix


def test_few_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value: Callable[[str], int | None] = limits._value
    monkeypatch.setattr(limits, "_value", lambda name: 500 if name == "mount-max" else value(name))
    assert "sysctl fs.mount-max=" in found(tmp_path)["mounts"].fix


def test_limits_that_a_kernel_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_value", lambda _: None)
    assert "fanotify groups" not in found(tmp_path)


@pytest.fixture
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "on"
    for name in ("on", "lower", "upper", "work"):
        (tmp_path / name).mkdir()
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    options = ["-o", layers] if request.param == "overlay" else []
    subprocess.run(["mount", "-t", request.param, *options, request.param, target], check=True, timeout=20)
    yield target
    subprocess.run(["umount", "-l", target], check=True, timeout=20)


@pytest.mark.root
@pytest.mark.parametrize("mounted", ["overlay", "tmpfs"], indirect=True)
def test_a_filesystem_that_will_not_do(mounted: Path, request: pytest.FixtureRequest) -> None:
    """It is named, with what to do: also where this kernel still takes it."""
    check = found(mounted)["cache's filesystem"]
    assert check.detail.startswith(request.node.callspec.params["mounted"])
    assert check.state == "note"
    assert "ext4" in check.fix
