"""Unmounting what is in use: who uses it is named, and nothing of anybody else's is touched."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.kit.command import NAME
from tests.kit.engines import FANOTIFY
from tests.kit.images import Built, build
from tests.kit.mounts import mounted
from tests.kit.reading import compare
from tests.kit.service import MakeService, RefusedError, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(FANOTIFY)


def busy(service: Service, target: Path) -> str:
    """What it says of a mount in use, which stays."""
    before = mounted(service.work)
    with pytest.raises(RefusedError) as caught:
        service.umount(target)
    assert caught.value.exit_code == 10
    assert caught.value.hint
    assert caught.value.error.isprintable()
    assert mounted(service.work) == before
    return str(caught.value.error)


@pytest.fixture
def stacked(service: Service, built: Built) -> Path:
    """An image with a foreign filesystem over it."""
    target = service.mount(built.bootstrap)
    subprocess.run(["mount", "-t", "tmpfs", "foreign", target], check=True, timeout=20)
    (target / "foreign").touch()
    return target


@pytest.mark.failure("something mounted over an image")
def test_something_mounted_over_it(service: Service, built: Built, stacked: Path) -> None:
    assert "mounted over" in busy(service, stacked)
    assert (stacked / "foreign").exists()
    subprocess.run(["umount", stacked], check=True, timeout=20)
    compare(built.tree, stacked)
    service.umount(stacked)
    assert not mounted(stacked)


def test_it_does_not_end_with_something_mounted_over_it(service: Service, built: Built, stacked: Path) -> None:
    assert service.request("stop")["busy"] == [str(stacked)]
    assert (stacked / "foreign").exists()
    subprocess.run(["umount", stacked], check=True, timeout=20)
    compare(built.tree, stacked)
    assert service.stop() == 0


def test_another_image_of_the_service_over_it(service: Service, built: Built, stacked: Path) -> None:
    """Only by others' doing, as the service refuses it; each goes by itself, the upper one first."""
    subprocess.run(["umount", stacked], check=True, timeout=20)
    other = service.mount(built.bootstrap)
    subprocess.run(["mount", "--bind", other, stacked], check=True, timeout=20)
    assert "mounted over" in busy(service, stacked)
    subprocess.run(["umount", stacked], check=True, timeout=20)
    service.umount(stacked)
    compare(built.tree, other)


@pytest.mark.failure("`umount` of a mount in use")
def test_who_uses_it_is_named(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap)
    ready = service.work / "ready"
    holder = service.reader("hold", target / "large/0", ready)
    wait_for("the file is open", ready.exists)
    assert f"in use by {NAME} (pid {holder.pid}) {target}/large/0" in busy(service, target)
    holder.kill()
    holder.communicate(timeout=20)
    service.umount(target)


def test_a_mount_below_it_is_named(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap)
    below = target / "small"
    subprocess.run(["mount", "-t", "tmpfs", "none", below], check=True, timeout=20)
    assert f"in use by a mount on {below}" in busy(service, target)
    subprocess.run(["umount", below], check=True, timeout=20)
    service.umount(target)


def test_a_file_whose_name_is_no_text(service: Service, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    name = "\udcff\n\x1b[2J"
    (tree / name).write_text("content")
    target = service.mount(build(tree, tmp_path / "image").bootstrap)
    ready = service.work / "ready"
    service.reader("hold", target / name, ready)
    wait_for("the file is open", ready.exists)
    assert rf"{target}/\udcff\n\x1b[2J" in busy(service, target)


def test_what_is_in_use_for_a_moment_does_not_keep_the_service(make_service: MakeService, built: Built) -> None:
    service = make_service(FANOTIFY)
    target = service.mount(built.bootstrap)
    with subprocess.Popen(["sleep", "0.2"], cwd=target):
        assert service.stop() == 0
    assert not mounted(service.work)
