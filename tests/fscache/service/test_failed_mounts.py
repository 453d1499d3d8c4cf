"""Mounts that fail at whatever moment leave nothing: no descriptor, no bind mount, no folder, no open store."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit.engines import FANOTIFY
from tests.kit.guard import opens_hang
from tests.kit.images import Built
from tests.kit.mounts import Mounted, mounted, mounted_disk
from tests.kit.processes import look_at
from tests.kit.reading import compare, read
from tests.kit.service import MakeService, RefusedError, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
TRIES = 4


class Held(NamedTuple):
    """What a service has."""

    descriptors: list[str]
    mounts: list[Mounted]
    folders: list[str]  # in its run folder
    targets: list[str]
    begun: list[str]  # stores that have something not on disk, and images under way


def held(service: Service) -> Held:
    begun = [*service.state.glob("store/*/epoch"), *service.state.glob("*/.new-*"), *service.state.glob("*/.gone-*")]
    return Held(
        descriptors=sorted(place.partition("[")[0] for place in look_at(service.keeper.pid).descriptors.values()),
        mounts=mounted(service.work),
        folders=sorted(os.listdir(service.run / "mounts")),
        targets=[one["target"] for one in service.status()["mounts"]],
        begun=sorted(map(str, begun)),
    )


def leaves_nothing(service: Service, mount: Callable[[], object], *words: str) -> RefusedError:
    """The error of a mount that fails again and again."""
    before = settled_down(service)
    for _ in range(TRIES):
        with pytest.raises(RefusedError) as caught:
            mount()
        for word in words:
            assert word in caught.value.error
        assert caught.value.error.isprintable()
    as_before(service, before)
    return caught.value


def settled_down(service: Service) -> Held:
    """What it has once nothing of what was done before is under way any more."""

    def same() -> Held | None:
        before = held(service)
        time.sleep(0.3)
        return before if held(service) == before else None

    return wait_for("nothing changes", same) or held(service)


def as_before(service: Service, before: Held) -> None:
    """What was under way comes to its end."""
    now = before

    def same() -> bool:
        nonlocal now
        now = held(service)
        return now == before

    with contextlib.suppress(AssertionError):
        wait_for("all is as before", same, 20)
    assert now == before


def copy(built: Built, folder: Path, name: str) -> Path:
    """Another image of the same blob: it has to be prepared."""
    path = folder / f"{name}.meta"
    path.write_bytes(built.bootstrap.read_bytes())
    return path


@pytest.fixture
def prepared(make_service: MakeService, built: Built) -> Iterator[Service]:
    """A service that has prepared the image, with nothing mounted; and that mounts it in the end."""
    service = make_service(FANOTIFY)
    settled(service, built)
    yield service
    compare(built.tree, service.mount(built.bootstrap))
    assert service.stop() == 0


def settled(service: Service, built: Built) -> None:
    service.umount(service.mount(built.bootstrap))
    wait_for("its store is settled", lambda: not list(service.state.glob("store/*/epoch")))


# --- no room, no target, no mount -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "bytes_left"), [(0, 8192), (1, 8192), (2, 8192), (20, 0)], ids=["inodes", "one", "two", "bytes"]
)
@pytest.mark.failure("run folder full")
def test_the_run_folder_is_full(
    left: int, bytes_left: int, make_service: MakeService, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    work = tmp_path_factory.mktemp("full")
    run, ballast = work / "run", work / "run" / "ballast"
    run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k,nr_inodes=64", "run", run], check=True, timeout=20)
    service = make_service(FANOTIFY, work=work)
    settled(service, built)
    ballast.mkdir()
    space = os.statvfs(run)
    for number in range(space.f_ffree - left):
        (ballast / f"{number}").touch()
    with open(ballast / "0", "wb") as file:
        file.write(bytes(space.f_bfree * space.f_frsize - bytes_left))
    target = service.target()
    error = leaves_nothing(service, partial(service.mount, built.bootstrap, target=target))
    assert error.error == f"the run folder {run} cannot be written to: No space left on device"
    assert "--run-dir" in error.hint
    for path in ballast.iterdir():
        path.unlink()
    compare(built.tree, service.mount(built.bootstrap, target=target))
    assert service.stop() == 0


def fill(folder: Path) -> None:
    """To the last block of the disk."""
    folder.mkdir()
    for number, size in enumerate(itertools.chain([1 << 20] * 1000, [4096] * 10_000)):
        try:
            (folder / f"{number}").write_bytes(bytes(size))
        except OSError:
            if size == 4096:
                return


@pytest.mark.failure("state disk full")
def test_the_state_folder_is_full(
    make_service: MakeService, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Something is said of where, and with room all is well."""
    work = tmp_path_factory.mktemp("full")
    with mounted_disk(work, 32) as disk:
        service = make_service(FANOTIFY, work=work, state=disk / "state")
        settled(service, built)
        fill(disk / "ballast")
        image, target = copy(built, tmp_path_factory.mktemp("image"), "new"), service.target()
        mount = partial(service.mount, image, built.blob.parent, target=target)
        leaves_nothing(service, mount, "No space left on device")
        shutil.rmtree(disk / "ballast")
        compare(built.tree, service.mount(image, built.blob.parent, target=target))
        assert service.stop() == 0


@pytest.mark.failure("state disk full")
def test_it_does_not_start_on_a_full_disk(
    make_service: MakeService, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It says so, and leaves nothing mounted; what is mounted from before is served once there is room."""
    work = tmp_path_factory.mktemp("full")
    with mounted_disk(work, 64) as disk:
        service = make_service(FANOTIFY, work=work, state=disk / "state")
        target = service.mount(built.bootstrap)
        right = read(target / "large/0")
        service.kill_all()
        before = mounted(work)
        fill(disk / "ballast")
        service.spawn()
        assert service.keeper.wait(60) == 8
        *_, said, hint = service.log_text().splitlines()
        assert "No space left on device" in said
        assert "make room" in hint
        assert mounted(work) == before
        assert read(target / "large/0") == right
        assert read(target / "large/7") == {"error": "EIO"}
        shutil.rmtree(disk / "ballast")
        service.start()
        compare(built.tree, target)
        assert service.stop() == 0


def test_the_mountpoint_vanishes(prepared: Service, built: Built, tmp_path: Path) -> None:
    """After it was looked at: the blob cannot be opened for a while."""
    image = copy(built, tmp_path, "alone")

    def mount() -> None:
        target = prepared.target()
        with opens_hang(built.blob.parent) as guard, concurrent.futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(prepared.mount, image, built.blob.parent, target=target)
            time.sleep(0.5)
            assert not asked.done()
            target.rmdir()
            guard.kill()
            asked.result()

    leaves_nothing(prepared, mount, "mounting on")


def test_the_kernel_refuses_it(prepared: Service, built: Built) -> None:
    (boot,) = prepared.state.glob("images/*/boot")
    right = boot.read_bytes()
    boot.write_bytes(bytes(len(right)))
    error = leaves_nothing(prepared, partial(prepared.mount, built.bootstrap), "erofs mount: ")
    assert error.exit_code == 8
    boot.write_bytes(right)


def test_its_blob_is_nowhere(prepared: Service, built: Built, tmp_path: Path) -> None:
    alone = copy(built, tmp_path, "alone")
    leaves_nothing(prepared, partial(prepared.mount, alone), built.blob.name)


# --- stopped in the middle ------------------------------------------------------------------------------


@pytest.mark.failure("SIGTERM while an image is being mounted")
def test_stopped_at_any_moment_of_a_mount(make_service: MakeService, built: Built, tmp_path: Path) -> None:
    """It ends with nothing mounted, whether the mount was done by then or not."""
    service, moments = make_service(FANOTIFY), 16
    began = time.monotonic()
    service.umount(service.mount(copy(built, tmp_path, "first"), built.blob.parent))
    takes, early = time.monotonic() - began, 0
    for moment in range(moments):
        image, target = copy(built, tmp_path, f"{moment}"), service.target()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(service.mount, image, built.blob.parent, target=target)
            time.sleep(takes * moment / (moments - 1))
            early += not asked.done()
            assert service.stop() == 0
            with contextlib.suppress(OSError, RefusedError):
                asked.result(60)
        assert not mounted(service.work)
        assert not list((service.run / "mounts").iterdir())
        service.start()
    assert early > moments // 4, "hardly a mount was stopped in the middle: this test tests nothing"
    compare(built.tree, service.mount(built.bootstrap))


# --- a disk that fails ----------------------------------------------------------------------------------


@pytest.mark.failure("state folder read-only")
def test_the_disk_fails_and_is_read_only(
    make_service: MakeService, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is cached is served, all else is an error in one line; the service lives, and ends when it is told to."""
    work = tmp_path_factory.mktemp("ro")
    with mounted_disk(work, 64) as disk:
        service = make_service(FANOTIFY, work=work, state=disk / "state")
        target, other = service.mount(built.bootstrap), service.mount(built.bootstrap)
        right = read(target / "large/0")
        assert "error" not in right
        # As the kernel does when it finds a mistake on the disk (errors=remount-ro).
        subprocess.run(["mount", "-o", "remount,abort", disk], check=False, timeout=20, capture_output=True)
        with pytest.raises(OSError, match="Read-only"):
            (disk / "new").touch()
        assert read(target / "large/0") == right
        assert read(target / "large/7") == {"error": "EIO"}
        service.umount(other)  # this would note that all of it is on disk
        new = copy(built, tmp_path_factory.mktemp("image"), "new")
        with pytest.raises(RefusedError, match="Read-only file system: /"):
            service.mount(new, built.blob.parent)
        assert read(target / "large/0") == right
        service.umount(target)
        with contextlib.suppress(RefusedError):
            service.umount(service.mount(built.bootstrap))
        assert service.status()["mounts"] == []
        assert service.stop() == 0
