"""``cache verify``: what is in the cache is looked at again, and what is wrong is fetched again under its readers."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.kit.command import cli
from tests.kit.engines import FANOTIFY
from tests.kit.images import Built, build_apart
from tests.kit.reading import compare, read, result_of
from tests.kit.service import MakeService, RefusedError, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

WRONG = 3


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(FANOTIFY)


def verify(service: Service, *arguments: object) -> CompletedProcess[str]:
    return cli("cache", "verify", *arguments, "--run-dir", service.run)


def report(service: Service, *arguments: object) -> dict[str, object]:
    done = verify(service, "--json", *arguments)
    assert done.stdout, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def damage(path: Path, at: int | None = None) -> None:
    """Another byte on the disk, and in the kernel's memory of the file."""
    at = path.stat().st_size // 2 if at is None else at
    with open(path, "r+b", buffering=0) as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x55]))
        os.fsync(file.fileno())


def used(service: Service) -> list[Path]:
    """Segment files of which no byte is padding that nobody reads."""
    return sorted(path for path in service.cache() if path.stat().st_size == 1 << 20)


def test_nothing_is_wrong(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    done = verify(service, target)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "1 store verified" in done.stdout
    assert "0 wrong, 0 repaired" in done.stdout
    answer = report(service, "--all")
    assert answer["bytes"] == service.held()
    assert not answer["running"]
    assert service.fetched(target) == service.status(target)["bytes_total"], "something was fetched for it"


@pytest.mark.failure("scrub finds damage")
def test_a_live_mount_is_repaired(service: Service, built: Built) -> None:
    """Also what the kernel has read of it already."""
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    damaged = used(service)[1:8:3]
    for path in damaged:
        damage(path)
    with pytest.raises(AssertionError):
        compare(built.tree, target)
    done = verify(service, target)
    assert done.returncode == WRONG, done
    assert "3 places in the cache are wrong" in done.stderr
    assert "--repair" in done.stderr
    assert done.stdout.count("from byte 524288 on: wrong") == 3, done.stdout
    assert service.events("segment is damaged")
    done = verify(service, "--repair", target)
    assert done.returncode == 0, done
    assert "3 wrong, 3 repaired" in done.stdout
    compare(built.tree, target)
    assert service.status(target)["failures"] == 0
    assert report(service, "--all")["damaged"] == 0
    assert service.stop() == 0
    service.start()
    compare(built.tree, service.mount(built.bootstrap, target=target))
    assert service.fetched(target) == 0


def test_readers_read_on(service: Service, built: Built) -> None:
    """At most those who read just as a segment is cut get an error; nothing is wrong once it was repaired."""
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    stop, repaired = service.work / "stop", service.work / "repaired"
    readers = [service.reader("loop", built.tree, target, stop, number) for number in range(2)]
    for path in used(service)[:6]:
        damage(path)
    answer = report(service, "--repair", "--all")
    assert (answer["damaged"], answer["repaired"]) == (6, 6)
    later = [service.reader("loop", built.tree, target, repaired, number) for number in range(2)]
    assert report(service, "--repair", "--all")["damaged"] == 0
    stop.touch()
    repaired.touch()
    for process in readers:
        assert set(result_of(process)["errors"]) <= {"EIO"}
    for process in later:
        result = result_of(process)
        assert result["reads"]
        assert not (result["wrong"] or result["errors"]), result
    compare(built.tree, target)


def test_what_cannot_be_fetched_is_an_error(make_service: MakeService, tmp_path: Path) -> None:
    """And is right again when it can be."""
    image = build_apart(tmp_path, 4)
    service = make_service(FANOTIFY, patience=2)
    target = service.mount(image.bootstrap, image.blob.parent, prefetch=True)
    service.complete(target)
    first = sorted(service.cache())[0]
    assert "error" not in read(target / "0")
    damage(first, 5000)
    whole = image.blob.read_bytes()
    image.blob.write_bytes(bytes(len(whole)))
    done = verify(service, "--repair", "--all")
    assert done.returncode == WRONG, done
    assert "is corrupt" in done.stdout
    assert read(target / "0") == {"error": "EIO"}
    assert "error" not in read(target / "1")
    image.blob.write_bytes(whole)
    compare(image.tree, target)


def test_what_is_not_mounted(service: Service, built: Built) -> None:
    """Is fetched again when it is read."""
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    service.umount(target)
    damage(used(service)[3])
    for name in ("--all", built.bootstrap):
        answer = report(service, name)
        assert (answer["damaged"], answer["repaired"]) == (1, 0)
    answer = report(service, "--all", "--repair")
    assert (answer["damaged"], answer["repaired"]) == (1, 1)
    service.mount(built.bootstrap, target=target)
    compare(built.tree, target)
    assert 0 < service.fetched(target) <= 1 << 20


@pytest.mark.parametrize("mounted", [False, True])
def test_a_damaged_plan(mounted: bool, service: Service, built: Built) -> None:
    """Nothing can be said of a store by it. One that nobody uses is made anew with the next mount."""
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    if not mounted:
        service.umount(target)
    (plan,) = (service.state / "store").glob("*/plan")
    damage(plan)
    done = verify(service, "--all", "--repair")
    assert "its plan is damaged" in done.stdout
    assert done.returncode == (WRONG if mounted else 0)
    if mounted:
        service.umount(target)
        assert verify(service, "--all", "--repair").returncode == 0
    compare(built.tree, service.mount(built.bootstrap, target=target))


@pytest.mark.parametrize("mounted", [False, True])
def test_a_damaged_bootstrap(mounted: bool, service: Service, built: Built) -> None:
    """Names and places of files, of which no chunk's digest knows. It is made anew with the next mount."""
    target = service.mount(built.bootstrap)
    if not mounted:
        service.umount(target)
    assert "1 bootstrap" in verify(service, "--all").stdout
    (boot,) = (service.state / "images").glob("*/boot")
    damage(boot)
    for name in ("--all", target if mounted else built.bootstrap):
        done = verify(service, name)
        assert done.returncode == WRONG, done
        assert "its bootstrap is damaged" in done.stdout
    assert service.events("bootstrap is damaged")
    done = verify(service, "--all", "--repair")
    assert done.returncode == (WRONG if mounted else 0), done
    if mounted:
        service.umount(target)
        assert verify(service, "--all", "--repair").returncode == 0
    compare(built.tree, service.mount(built.bootstrap, target=target))
    assert verify(service, "--all").returncode == 0


def test_a_verifier_that_ends_meanwhile(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    damage(used(service)[-1])
    service.request("scrub", rate=4 << 20, repair=True)
    wait_for("it has begun", lambda: service.request("scrubbing")["bytes"])
    with pytest.raises(RefusedError, match="being verified"):
        service.request("scrub")
    service.kill_verifier()
    wait_for("it is done", lambda: not service.request("scrubbing")["running"])
    answer = service.request("scrubbing")
    assert answer["bytes"] == service.held()
    assert (answer["damaged"], answer["repaired"]) == (1, 1)
    compare(built.tree, target)


def test_it_takes_its_time_and_can_be_stopped(service: Service, built: Built) -> None:
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    service.request("scrub", rate=1 << 20)
    began = time.monotonic()
    wait_for("it has begun", lambda: service.request("scrubbing")["bytes"] >= 2 << 20)
    assert time.monotonic() - began > 1
    service.request("scrubbing", stop=True)
    wait_for("it ends", lambda: not service.request("scrubbing")["running"])
    assert report(service, target)["bytes"] == service.held(), "another one is not disturbed by it"
    assert service.stop() == 0


def test_what_makes_no_sense(service: Service, built: Built) -> None:
    for arguments in ([], ["--all", "/x"], ["--all", "--rate", "0"]):
        done = verify(service, *arguments)
        assert done.returncode == 2, done
    done = verify(service, built.bootstrap)
    assert "nothing is kept of" in done.stderr
    assert done.returncode != 0
    assert cli("cache").returncode == 2
