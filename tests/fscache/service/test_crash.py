"""Kills, full disks, power cuts, on every engine: right bytes or an error, never anything else.

NYDUS_EROFS_KILLS=N kills the worker N times (20).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from tests.kit.engines import Engine
from tests.kit.images import Built
from tests.kit.mounts import mounted, mounted_disk, unmount_all
from tests.kit.processes import alive
from tests.kit.reading import compare, read, result_of
from tests.kit.service import MakeService, RefusedError, Service
from tests.kit.waiting import wait_for

KILLS = int(os.environ.get("NYDUS_EROFS_KILLS", "20"))

pytestmark = [pytest.mark.root, pytest.mark.timeout(200 + 4 * KILLS)]
READERS = 8


def restarted(service: Service, victim: str, times: int) -> bool:
    return bool(service.status()[victim]["restarts"] == times)


def kill(service: Service, victim: str) -> None:
    """One of the service's processes; returns when there is another one."""
    pid = getattr(service, victim)
    os.kill(pid, signal.SIGKILL)
    wait_for("there is another one", lambda: getattr(service, victim) != pid)


def read_on(service: Service, built: Built, target: Path, stop: Path, *options: str) -> list[subprocess.Popen[str]]:
    """Readers of everything, compared byte for byte, until `stop` is there."""
    return [service.reader("loop", built.tree, target, stop, seed, *options) for seed in range(READERS)]


@pytest.mark.slow
@pytest.mark.failure("worker or verifier killed")
@pytest.mark.parametrize("victim", ["worker", "verifier"])
def test_killed_again_and_again(victim: str, engine: Engine, make_service: MakeService, built: Built) -> None:
    """At random moments while it fetches for eight readers: 0 wrong bytes, 0 errors, 0 hung."""
    rng, kills, fetching, reads = random.Random(KILLS), 0, 0, 0
    while kills < KILLS:
        # All is fetched after some kills: then once more from the start.
        service = make_service(engine, threads=2)
        target, stop = service.mount(built.bootstrap), service.work / "stop"
        readers = read_on(service, built, target, stop)
        before = kills
        while kills < KILLS and not (kills > before and service.status(target)["complete"]):
            had = service.fetched(target)
            deadline = time.monotonic() + 1
            while service.fetched(target) == had and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.random() * 0.02)
            fetching += not service.status(target)["complete"]
            kill(service, victim)
            kills += 1
        stop.touch()
        for process in readers:
            result = result_of(process)
            assert not result["wrong"], result
            assert not result["errors"], result
            reads += result["reads"]
        compare(built.tree, target)
        # The last one may still be on its way.
        wait_for("no other worker died", partial(restarted, service, victim, kills - before))
        assert service.status(target)["failures"] == 0
        assert service.stop() == 0
    assert reads
    assert fetching > KILLS // 3, f"only {fetching} of {kills} kills were in the middle of something"


@pytest.mark.failure("all of its processes killed")
def test_everything_killed_with_the_mount_alive(service: Service, built: Built) -> None:
    """Keeper and worker at once. Readers get EIO or wait, never a wrong byte; after the restart all is served."""
    if not service.engine.keeps_mounts:
        pytest.skip("on this engine a mount does not outlive its service")
    target, stop = service.mount(built.bootstrap), service.work / "stop"
    readers = read_on(service, built, target, stop, "0")
    for restart in range(3):
        wait_for("something is fetched", lambda: service.fetched(target) or service.status(target)["complete"])
        service.kill_all()
        time.sleep(0.1)
        service.start()
        assert len(service.events("serving again")) == restart + 1
    # What failed while nobody served works again.
    compare(built.tree, target)
    stop.touch()
    for process in readers:
        result = result_of(process)
        assert not result["wrong"], result
        assert result["errors"].keys() <= {"EIO"}, result
        assert result["reads"]
    service.umount(target)
    assert service.stop() == 0


@pytest.mark.failure("all of its processes killed")
def test_the_keeper_killed_alone(service: Service, built: Built) -> None:
    """Its worker ends by itself; nothing else is left behind that a new service could stumble over."""
    target = service.mount(built.bootstrap)
    read(target / "large/0")
    worker = service.worker
    service.keeper.kill()
    service.keeper.wait(20)
    wait_for("the worker ends", lambda: not alive(worker))
    if service.engine.keeps_mounts:
        # What is there is read without anybody; what is not there is an error.
        assert "error" not in read(target / "large/0", 0, 4096)
        assert read(target / "large/7") == {"error": "EIO"}
    else:
        unmount_all(target)
    service.start()
    if not service.engine.keeps_mounts:
        service.mount(built.bootstrap, target=target)
    compare(built.tree, target)


def test_unmounted_while_no_service_ran(service: Service, built: Built) -> None:
    """The next one cleans up behind the one that was killed."""
    target = service.mount(built.bootstrap)
    service.kill_all()
    unmount_all(target)
    service.start()
    wait_for("it is forgotten", lambda: not service.status()["mounts"])
    service.mount(built.bootstrap, target=target)
    compare(built.tree, target)
    assert service.stop() == 0
    assert not mounted(service.work)


@pytest.mark.failure("reader killed while it waits")
def test_a_reader_killed_while_it_waits(service: Service, built: Built) -> None:
    """Its event stays behind; others that want the same bytes get them, and the mount can be unmounted."""
    target = service.mount(built.bootstrap)
    os.kill(service.worker, 19)  # SIGSTOP: nothing is fetched
    killed = service.reader("read", target / "large/0")
    wait_for("it waits", lambda: service.status(target)["readers_waiting"])
    waiting = service.reader("read", target / "large/0")
    killed.kill()
    killed.communicate(timeout=20)
    os.kill(service.status()["worker"]["pid"], 18)  # SIGCONT
    assert "error" not in result_of(waiting)
    compare(built.tree, target)
    service.umount(target)


@pytest.mark.failure("reader killed while it waits")
def test_unmounted_after_a_reader_was_killed(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap)
    worker = service.worker
    os.kill(worker, 19)
    killed = service.reader("read", target / "large/0")
    wait_for("it waits", lambda: service.status(target)["readers_waiting"])
    killed.kill()
    killed.communicate(timeout=20)
    try:
        wait_for("nothing uses it", lambda: unmounted(service, target))
    finally:
        os.kill(worker, 18)
    assert service.stop() == 0


def unmounted(service: Service, target: Path) -> bool:
    try:
        service.umount(target)
    except RefusedError as error:
        assert "in use" in error.error
        return False
    return True


@pytest.mark.failure("disk full")
def test_disk_full(
    engine: Engine, make_service: MakeService, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """EIO while there is no room; once there is, everything is read. The service lives."""
    work = tmp_path_factory.mktemp("full")
    with mounted_disk(work, 64) as disk:
        ballast = disk / "ballast"
        service = make_service(engine, work=work, state=disk / "state")
        target = service.mount(built.bootstrap)
        free = shutil.disk_usage(disk).free
        with open(ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - (8 << 20))
        keeper = service.keeper.pid
        results = [read(target / f"large/{number}") for number in range(8)]
        assert {"error": "EIO"} in results
        assert any("error" not in result for result in results)
        assert any("no room" in record["error"] for record in service.events("segment not filled"))
        # What was fetched before stays readable.
        whole = next(number for number, result in enumerate(results) if "error" not in result)
        assert read(target / f"large/{whole}") == results[whole]
        ballast.unlink()
        compare(built.tree, target)
        assert service.status()["pid"] == keeper
        assert service.status()["worker"]["restarts"] == 0
        service.umount(target)
        assert service.stop() == 0


@pytest.mark.failure("disk full")
def test_prefetch_goes_on_when_there_is_room_again(
    engine: Engine, make_service: MakeService, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    work = tmp_path_factory.mktemp("full")
    with mounted_disk(work, 64) as disk:
        ballast = disk / "ballast"
        service = make_service(engine, work=work, state=disk / "state")
        free = shutil.disk_usage(disk).free
        with open(ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - (8 << 20))
        target = service.mount(built.bootstrap, prefetch=True)
        wait_for("the disk is full", lambda: service.status(target)["failures"])
        ballast.unlink()
        service.complete(target)
        compare(built.tree, target)
        assert service.stop() == 0


@pytest.mark.failure("state disk full")
def test_no_room_to_mount(
    engine: Engine, make_service: MakeService, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One clear line, nothing half-made; with room the same request works."""
    work = tmp_path_factory.mktemp("full")
    with mounted_disk(work, 16) as disk:
        service = make_service(engine, work=work, state=disk / "state")
        ballast = disk / "ballast"
        with open(ballast, "wb") as file, pytest.raises(OSError, match="space"):
            while True:
                file.write(bytes(4096))
                file.flush()
        target = service.target()
        with pytest.raises(RefusedError) as caught:
            service.mount(built.bootstrap, target=target)
        assert "No space left" in caught.value.error
        assert not list((service.state / "images").glob(".new*"))
        ballast.unlink()
        service.mount(built.bootstrap, target=target)
        read(target / "small/1")
        service.umount(target)
        assert service.stop() == 0
