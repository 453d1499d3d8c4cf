"""Many images in one service: more than the host has fanotify groups (128, unless somebody raised it), and some whose
server does not answer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import time
from pathlib import Path

import pytest

from tests.kit.images import Built, build, build_apart
from tests.kit.mounts import mounted
from tests.kit.processes import look_at, pss
from tests.kit.reading import read, reader, result_of
from tests.kit.servers.files import FileServer
from tests.kit.service import Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

IMAGES, MOUNTS = 10, 140


@pytest.fixture(scope="module")
def images(cache_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Built]:
    """Small ones, each of a blob of its own."""
    folder, made = tmp_path_factory.mktemp("many"), []
    for number in range(IMAGES):
        tree = folder / f"tree{number}"
        tree.mkdir()
        for name in "ab":
            (tree / name).write_bytes(random.Random(f"{number}{name}").randbytes(5000))
        made.append(build(tree, folder / f"image{number}"))
    return made


def right(image: Built, name: str) -> dict[str, object]:
    data = (image.tree / name).read_bytes()
    return {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def all_right(name: str, images: list[Built], targets: list[Path]) -> None:
    """A file of each, read by one child."""
    found = result_of(reader("each", name, *targets))["results"]
    for number, result in enumerate(found):
        assert result == right(images[number % IMAGES], name), targets[number]
    assert len(found) == len(targets)


def groups(pid: int) -> int:
    """Fanotify groups of a process."""
    return list(look_at(pid).descriptors.values()).count("anon_inode:[fanotify]")


def test_more_images_than_groups(service: Service, images: list[Built]) -> None:
    """All are served, by one group, and served again by a new keeper after the old one was killed."""
    if not service.engine.keeps_mounts:
        pytest.skip("this engine needs no groups, and a mount does not outlive its service")
    targets = [service.mount(images[number % IMAGES].bootstrap) for number in range(MOUNTS)]
    assert service.keeper is not None
    assert groups(service.keeper.pid) == 1
    all_right("a", images, targets)
    service.keeper.kill()
    service.keeper.wait(20)
    service.start()
    assert len(service.status()["mounts"]) == MOUNTS
    assert groups(service.keeper.pid) == 1
    all_right("b", images, targets)
    for target in targets[:3]:
        service.umount(target)
    all_right("b", images[3:] + images[:3], targets[3:])
    assert service.mount(images[0].bootstrap, target=targets[0])
    assert service.stop() == 0
    assert not mounted(service.work)


WAITING = 12  # readers, each of another segment: more than the worker has threads for one server
SILENCE = 30  # seconds


@pytest.fixture(scope="module")
def remote(cache_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An image of which each file is a segment, and whose blob is in a folder of its own."""
    return build_apart(tmp_path_factory.mktemp("remote"), WAITING)


def test_a_server_that_says_nothing_holds_up_nobody_else(
    service: Service, images: list[Built], remote: Built
) -> None:
    with contextlib.closing(FileServer(remote.blob.parent)) as server:
        config = service.work / "backend.json"
        address = f"http://127.0.0.1:{server.port}"
        config.write_text(json.dumps({"type": "http-proxy", "addr": address, "timeout": SILENCE}))
        target = service.mount_image(str(remote.bootstrap), backend_file=str(config))
        local = service.mount(images[0].bootstrap)
        server.gate.clear()
        waiting = [service.reader("read", target / f"{number}") for number in range(WAITING)]
        wait_for("all wait", lambda: service.status(target)["readers_waiting"] >= WAITING)
        began = time.monotonic()
        assert read(local / "b") == right(images[0], "b")
        assert time.monotonic() - began < SILENCE / 2
        server.gate.set()
        for number, process in enumerate(waiting):
            assert result_of(process) == right(remote, f"{number}")


SERVERS, OF_EACH, MOST = 20, 10, 250 << 20


@pytest.mark.timeout(300)
def test_what_many_servers_cost(service: Service, images: list[Built]) -> None:
    """200 mounted images from 20 servers: bytes of all processes, with some of each image read."""
    targets = []
    with contextlib.ExitStack() as servers:
        for number in range(SERVERS):
            image = images[number % IMAGES]
            server = servers.enter_context(contextlib.closing(FileServer(image.blob.parent)))
            config = service.work / f"{number}.json"
            config.write_text(json.dumps({"type": "http-proxy", "addr": f"http://127.0.0.1:{server.port}"}))
            for copy in range(OF_EACH):
                bootstrap = service.work / f"{number}.{copy}.meta"
                bootstrap.write_bytes(image.bootstrap.read_bytes())
                targets.append(service.mount_image(str(bootstrap), backend_file=str(config)))
        of_each = [images[number // OF_EACH % IMAGES] for number in range(len(targets))]
        for name in "ab":
            found = result_of(reader("each", name, *targets))["results"]
            assert found == [right(image, name) for image in of_each]
        assert service.keeper is not None
        processes = (service.keeper.pid, service.worker, service.verifier)
        assert sum(map(pss, processes)) < MOST
        assert service.stop() == 0
