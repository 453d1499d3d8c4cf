"""The host is out of something, or its disk fails: requests are refused in one line, readers get right bytes or an
error, and the service lives, says it once, and goes on when the trouble is over."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.kit.command import PYTHON
from tests.kit.engines import FANOTIFY
from tests.kit.images import Built
from tests.kit.mounts import mounted, mounted_disk
from tests.kit.processes import look_at
from tests.kit.reading import compare, read, result_of
from tests.kit.service import MakeService, RefusedError, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

_SHUTDOWN, _AT_ONCE = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
ENOUGH = 1 << 12  # descriptors
FAILING = Path(__file__).parents[2] / "kit" / "failing_service.py"


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(FANOTIFY)


def copy(built: Built, folder: Path, name: str) -> Path:
    """Another image of the same blob: it has to be prepared."""
    path = folder / f"{name}.meta"
    path.write_bytes(built.bootstrap.read_bytes())
    return path


def said(service: Service, event: str, *, patience: float = 20) -> dict[str, object]:
    """A line of the log, which comes once, however often it happened."""
    wait_for(event, lambda: service.events(event), patience)
    errors = [record["error"] for record in service.events(event)]
    assert len(errors) == len(set(errors)), errors
    return service.events(event)[-1]


# --- descriptors ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_descriptors(service: Service) -> Iterator[None]:
    """It can open nothing."""
    pid = service.keeper.pid

    def none_left() -> bool:
        """What it was about to close is closed."""
        taken = look_at(pid).descriptors
        lowest = next(number for number in range(len(taken) + 1) if number not in taken)
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, ENOUGH))
        time.sleep(0.3)
        return lowest == limit

    try:
        wait_for("no descriptor is left", none_left)
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (ENOUGH, ENOUGH))


@pytest.mark.failure("no descriptors, processes or memory left")
def test_no_descriptors(service: Service, built: Built) -> None:
    """Clients wait, readers of what is not cached get EIO, no worker can be started: until there are some."""
    target = service.mount(built.bootstrap)
    right = read(target / "large/0")
    pid, worker = service.keeper.pid, service.worker
    with no_descriptors(service):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(service.socket))
            client.sendall(b'{"verb":"status"}\n')
            assert "Too many open files" in str(said(service, "a client cannot be served")["error"])
            assert read(target / "large/7") == {"error": "EIO"}
            assert "doctor" in str(said(service, "a reader is not served")["hint"])
            subprocess.run(["mount", "-t", "tmpfs", "none", service.target()], check=True, timeout=20)
            said(service, "the mount table cannot be looked at")
            os.kill(worker, 9)
            said(service, "no process can be started")
            assert read(target / "large/0") == right
            assert service.keeper.poll() is None
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (ENOUGH, ENOUGH))
        wait_for("it answers", service.answers)
    assert service.worker != worker
    compare(built.tree, target)
    service.umount(target)
    assert service.stop() == 0


@pytest.mark.failure("no descriptors, processes or memory left")
def test_no_descriptors_for_a_request(service: Service, built: Built, tmp_path: Path) -> None:
    """Whatever it is short of, the mount is refused in one line, and nothing of it stays."""
    target, image = service.mount(built.bootstrap), copy(built, tmp_path, "other")
    before = mounted(service.work)
    service.status()  # what it opens once, it has
    pid = service.keeper.pid
    taken = look_at(pid).descriptors
    refused = 0
    for spare in range(2, 40):
        place = service.target()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(taken) + spare, ENOUGH))
        try:
            service.mount(image, built.blob.parent, target=place)
            break
        except RefusedError as error:
            refused += 1
            assert error.error.isprintable()
            assert error.exit_code != 0
            assert error.hint, error.error
        except ConnectionError:
            pass  # there was none for the client
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (ENOUGH, ENOUGH))
        wait_for("it answers", service.answers)
        assert [mount["target"] for mount in service.status()["mounts"]] == [str(target)]
        assert mounted(service.work) == before
        wait_for("nothing is left", lambda: not list((service.state / "images").glob(".new*")))
    assert refused > 2, "hardly any mount was short of descriptors: this test tests nothing"
    # Its store may have been without a descriptor a moment longer than the mount, and is tried again after a while.
    wait_for("it can be read", lambda: "error" not in read(place / "large/0"))
    compare(built.tree, place)
    compare(built.tree, target)
    assert service.keeper.pid == pid
    assert service.stop() == 0


@pytest.mark.failure("no fanotify group free")
def test_all_groups_are_taken(make_service: MakeService, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The service does not start, and says what to raise. Really taking them would be felt by the whole host."""
    service = make_service(FANOTIFY, start=False, work=tmp_path_factory.mktemp("groups"))
    flag = failing(service, errno.EMFILE, "nydus_erofs.fscache.kernel.fanotify", "Group.__init__")
    flag.touch()
    service.spawn()
    assert service.keeper.wait(60) == 8
    lines = service.log_text().splitlines()
    assert len(lines) == 2
    assert "Too many open files" in lines[0]
    assert "fs.fanotify.max_user_groups" in lines[1]
    assert not mounted(service.work)
    assert service.state.is_dir() and not list(service.state.glob(".selftest*"))


def failing(service: Service, number: int, module: str, name: str) -> Path:
    """Have a function of it fail while the file given back is there."""
    flag = service.work / "flag"
    service.program = [*PYTHON, str(FAILING), str(flag), str(number), module, name]
    return flag


def test_the_kernels_own_descriptor_fails(make_service: MakeService, built: Built) -> None:
    """That is the end, which is said in one line: readers get EIO then, instead of waiting for nobody."""
    service = make_service(FANOTIFY, start=False)
    flag = failing(service, errno.EBADF, "nydus_erofs.fscache.kernel.fanotify", "Group.read")
    service.start()
    target = service.mount(built.bootstrap)
    right = read(target / "large/0")
    flag.touch()
    assert read(target / "large/7") == {"error": "EIO"}
    assert service.keeper.wait(60) == 70
    assert service.events("the service cannot go on")
    assert read(target / "large/0") == right
    flag.unlink()
    service.start()
    compare(built.tree, target)
    assert service.stop() == 0


@pytest.mark.failure("no descriptors, processes or memory left")
@pytest.mark.parametrize("name", ["fork", "posix_spawn"])
def test_no_processes(name: str, make_service: MakeService, built: Built, tmp_path: Path) -> None:
    """Root is bound by no limit of a user, but by that of a control group."""
    service = make_service(FANOTIFY, start=False)
    flag = failing(service, errno.EAGAIN, "os", name)
    service.start()
    target, image = service.mount(built.bootstrap), copy(built, tmp_path, "other")
    flag.touch()
    for _ in range(3):
        with pytest.raises(RefusedError, match="Resource temporarily unavailable") as caught:
            service.mount(image, built.blob.parent)
        assert "TasksMax" in caught.value.hint
    service.kill_worker()
    if name == "posix_spawn":
        said(service, "no process can be started")
    assert len(service.status()["mounts"]) == 1
    assert not list((service.state / "images").glob(".new*")) or name == "fork"
    flag.unlink()
    compare(built.tree, target)
    compare(built.tree, service.mount(image, built.blob.parent))
    assert service.stop() == 0


# --- a disk that takes nothing --------------------------------------------------------------------------


@pytest.fixture
def frozen() -> Iterator[list[Path]]:
    """Folders to be made immutable, and what lies in them unremovable: they are as before in the end."""
    folders: list[Path] = []
    yield folders
    _freeze(folders, on=False)


def _freeze(folders: Sequence[Path], *, on: bool = True) -> None:
    for folder in folders:
        subprocess.run(["chattr", "+i" if on else "-i", folder], check=False, timeout=20)


@pytest.mark.failure("state folder read-only")
def test_a_complete_store_cannot_be_settled(service: Service, built: Built, frozen: list[Path]) -> None:
    """That costs a verification after a crash of the machine, and nothing else."""
    target = service.mount(built.bootstrap)
    (store,) = (service.state / "store").iterdir()
    frozen.append(store)
    _freeze(frozen)
    service.umount(service.mount(built.bootstrap, prefetch=True))
    other = service.mount(built.bootstrap, prefetch=True)
    service.complete(other)
    assert str(store) in str(said(service, "a folder cannot be settled")["error"])
    assert (store / "epoch").exists()
    compare(built.tree, target)
    service.umount(other)
    service.umount(target)
    assert service.stop() == 0


@pytest.mark.failure("state folder read-only")
@pytest.mark.parametrize("frozen_folders", [["store"], ["images"], ["store", "images", "bootstraps"]])
def test_nothing_new_can_be_mounted(
    frozen_folders: list[str], service: Service, built: Built, nydus_images: Path, frozen: list[Path]
) -> None:
    """Refused in one line that names the place; what is mounted is served, and nothing is half made."""
    target = service.mount(built.bootstrap)
    frozen += [path for pattern in frozen_folders for path in service.state.glob(pattern)]
    before = sorted(service.state.rglob("*"))
    _freeze(frozen)
    for name in ("plain", "lz4"):
        with pytest.raises(RefusedError, match=f": {service.state}") as caught:
            service.mount(nydus_images / name / "boot", nydus_images / name / "blobs")
        assert "Operation not permitted" in caught.value.error
        assert caught.value.exit_code == 8
    compare(built.tree, target)
    service.umount(target)
    assert not _new(service, before)
    _freeze(frozen, on=False)
    compare(built.tree, service.mount(built.bootstrap))
    assert service.stop() == 0


def _new(service: Service, before: Sequence[Path]) -> list[Path]:
    return [path for path in service.state.rglob("*") if path not in before and path.name != "epoch"]


@pytest.mark.failure("state folder read-only")
def test_what_cannot_be_noted_is_not_written(service: Service, built: Built, frozen: list[Path]) -> None:
    """A settled store, after a restart: were anything fetched, nobody would verify it after a power cut."""
    target = service.mount(built.bootstrap)
    right = read(target / "large/0")
    service.kill_all()
    (store,) = (service.state / "store").iterdir()
    (store / "epoch").unlink()
    frozen.append(store)
    _freeze(frozen)
    held = service.held()
    service.start()
    assert read(target / "large/0") == right
    assert read(target / "large/7") == {"error": "EIO"}
    waits = service.reader("loop", built.tree, target, service.work / "stop", 1)
    assert "Operation not permitted" in str(said(service, "nothing can be fetched")["error"])
    assert service.held() == held
    with pytest.raises(RefusedError, match="Operation not permitted"):
        service.mount(built.bootstrap)
    service.kill_worker()  # the next one must not be told either
    assert read(target / "large/7") == {"error": "EIO"}
    assert service.held() == held
    _freeze(frozen, on=False)
    wait_for("it is noted", (store / "epoch").exists)
    wait_for("it is fetched", lambda: "error" not in read(target / "large/7"))
    (service.work / "stop").touch()
    result = result_of(waits)
    assert not result["wrong"]
    assert result["errors"].keys() <= {"EIO"}
    compare(built.tree, target)
    assert service.stop() == 0


@pytest.mark.failure("state disk gone")
def test_the_disk_is_gone(make_service: MakeService, built: Built, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every call on it fails, that of opening the file which an event is about among them."""
    work = tmp_path_factory.mktemp("gone")
    with mounted_disk(work, 64) as disk:
        service = make_service(FANOTIFY, work=work, state=disk / "state")
        target = service.mount(built.bootstrap)
        assert "error" not in read(target / "large/0")
        folder = os.open(disk, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _AT_ONCE))
        finally:
            os.close(folder)
        for number in range(4, 8):
            assert read(target / f"large/{number}") == {"error": "EIO"}
        service.kill_worker()
        with pytest.raises(RefusedError) as caught:
            service.mount(built.bootstrap)
        assert caught.value.error.isprintable()
        assert read(target / "large/3") == {"error": "EIO"}
        assert service.answers()
        service.umount(target)
        assert service.stop() == 0


# --- no room --------------------------------------------------------------------------------------------


@pytest.mark.failure("log disk full")
def test_the_disk_of_the_log_is_full(
    make_service: MakeService, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Lines are lost, no more; later ones are whole."""
    work = tmp_path_factory.mktemp("log")
    logs = work / "logs"
    logs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k,nr_inodes=16", "logs", logs], check=True, timeout=20)
    service = make_service(FANOTIFY, start=False, work=work)
    service.log = logs / "log"
    service.start()
    ballast = logs / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(logs).free))
    target = service.target()
    for _ in range(40):
        service.umount(service.mount(built.bootstrap, target=target))
    assert shutil.disk_usage(logs).free == 0
    ballast.unlink()
    compare(built.tree, service.mount(built.bootstrap, target=target))
    assert service.stop() == 0
    whole = [line for line in service.log_text().splitlines() if line.endswith("}")]
    assert {"mounted", "unmounted", "stopped"} <= {json.loads(line)["event"] for line in whole[-4:]}


@pytest.mark.failure("disk full")
def test_a_full_disk_is_told_as_such_where_the_kernel_passes_it_on(
    make_service: MakeService, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """To whoever reads a segment itself through the marked mount; through EROFS it is EIO, and SIGBUS with mmap."""
    work = tmp_path_factory.mktemp("full")
    with mounted_disk(work, 64) as disk:
        service = make_service(FANOTIFY, work=work, state=disk / "state")
        target = service.mount(built.bootstrap)
        with open(disk / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - (64 << 10))
        assert read(target / "large/7") == {"error": "EIO"}
        assert result_of(service.reader("touch", target / "large/7"))["signal"] == "SIGBUS"
        (through,) = (service.run / "mounts").glob("*/through")
        segment = min(through.glob("*/[0-9]*"), key=lambda path: path.stat().st_size)
        assert read(segment) == {"error": "ENOSPC"}
        (disk / "ballast").unlink()
        compare(built.tree, target)
        assert service.stop() == 0
