"""No reader waits for ever, whatever servers and workers do: bytes or EIO in time, and nobody else is held up."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.fscache.keeper.children.hearing import UNBORN
from tests.kit import waiting
from tests.kit.engines import Engine
from tests.kit.images import Built, build, build_apart
from tests.kit.reading import compare, read, result_of
from tests.kit.servers.files import FileServer
from tests.kit.service import MakeService, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

PATIENCE = round(waiting.PATIENCE / 15)  # seconds
AT_ONCE = waiting.PATIENCE / 3  # seconds: for a loaded machine; what is held up takes longer
SILENCE = 60  # seconds that a server may be silent
ODD = Path(__file__).parents[2] / "kit" / "odd_service.py"
FILES = 12


@pytest.fixture(scope="module")
def remote(cache_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An image of which each file is a segment, and whose blob is in a folder of its own."""
    return build_apart(tmp_path_factory.mktemp("remote"), FILES)


def right(image: Built, name: str) -> dict[str, object]:
    data = (image.tree / name).read_bytes()
    return {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}


Serve = Callable[[], FileServer]


@pytest.fixture
def serve_remote(remote: Built) -> Iterator[Serve]:
    """`serve_remote()`: one more server that has the blob of `remote`."""
    with contextlib.ExitStack() as closing:

        def serve() -> FileServer:
            server = closing.enter_context(contextlib.closing(FileServer(remote.blob.parent)))
            closing.callback(server.gate.set)
            return server

        yield serve


def mount(service: Service, image: Built, server: FileServer, **fields: Any) -> Path:
    """An image whose blob is on this server; each has a bootstrap of its own, so that no two share a cache."""
    folder = service.work / f"image{server.port}"
    folder.mkdir()
    config = folder / "backend.json"
    address = f"http://127.0.0.1:{server.port}"
    config.write_text(json.dumps({"type": "http-proxy", "addr": address, "timeout": SILENCE}))
    return service.mount_image(shutil.copy(image.bootstrap, folder), backend_file=str(config), **fields)


def waits_then_fails(service: Service, target: Path, name: str) -> None:
    began = time.monotonic()
    assert read(target / name) == {"error": "EIO"}
    assert PATIENCE - 1 <= time.monotonic() - began <= PATIENCE + 2 + AT_ONCE
    status = service.status(target)
    assert status["readers_waiting"] == 0
    # The cachefiles engine makes plans behind the mount's back, and a slow machine may be at it still.
    (said, *_) = service.events("segment not filled") or service.events("blob cannot be served")
    for error in (status["last_error"], said["error"]):
        assert error in (f"nothing came for {PATIENCE} s", f"no plan of it for {PATIENCE} s") or (
            error == f"nothing came for {PATIENCE} s: come again tomorrow"
        )


@pytest.mark.failure("nothing comes: server or worker do nothing, or end again and again")
@pytest.mark.parametrize("endless", [False, True], ids=["silent", "drips headers"])
def test_a_server_that_holds_its_readers(
    endless: bool, engine: Engine, make_service: MakeService, remote: Built, built: Built, serve_remote: Serve
) -> None:
    service, server = make_service(engine, patience=PATIENCE), serve_remote()
    server.endless = endless
    target, other = mount(service, remote, server), service.mount(built.bootstrap)
    read(target / "0")
    server.gate.clear()
    readers = [service.reader("read", target / f"{number}") for number in range(2, FILES)]
    assert read(other / "large/1") == right(built, "large/1")
    for process in readers:
        assert result_of(process, PATIENCE + AT_ONCE) == {"error": "EIO"}
    began = time.monotonic()
    for _ in range(50):
        assert read(target / "1") == {"error": "EIO"}
    assert time.monotonic() - began < 50 * 2, "not one after the other until its patience ends"
    assert read(other / "large/2") == right(built, "large/2")
    server.gate.set()
    wait_for("it is served again", lambda: "sha256" in read(target / "1"))
    compare(remote.tree, target)
    compare(built.tree, other)


@pytest.mark.failure("nothing comes: server or worker do nothing, or end again and again")
@pytest.mark.parametrize("kind", ["deaf", "silent", "postpones", "dies"])
def test_workers_that_are_not_what_they_should_be(
    kind: str, engine: Engine, make_service: MakeService, built: Built
) -> None:
    """Whatever they do, readers have EIO in time; once there is a sound one, bytes."""
    service = make_service(engine, start=False, patience=PATIENCE)
    kinds = service.work / "kind"
    kinds.write_text("sound")
    service.program = [sys.executable, "-I", str(ODD), str(kinds)]
    service.start()
    target = service.mount(built.bootstrap)
    kinds.write_text(kind)
    service.kill_worker()
    waits_then_fails(service, target, "large/3")
    kinds.write_text("sound")
    if kind == "postpones":  # nobody can tell that it lies
        service.kill_worker()
    wait_for("a sound one serves", lambda: "sha256" in read(target / "large/3"), patience=UNBORN + waiting.PATIENCE)
    compare(built.tree, target)


@pytest.mark.parametrize("prefetch", [False, True])
def test_an_image_that_workers_die_over(
    prefetch: bool, engine: Engine, make_service: MakeService, built: Built, remote: Built
) -> None:
    """Its readers have EIO in time; those of others, their bytes."""
    service = make_service(engine, start=False, patience=7 * PATIENCE)
    service.program = [sys.executable, "-I", str(ODD), f"dies {remote.blob.name}"]
    service.start()
    target = service.mount(remote.bootstrap, remote.blob.parent, prefetch=prefetch)
    readers = [service.reader("read", target / f"{number}") for number in range(4)]
    wait_for("workers die over it", lambda: service.status()["worker"]["restarts"] > 3)
    other = service.mount(built.bootstrap)
    compare(built.tree, other)
    assert service.status(other)["events_denied"] == 0
    for process in readers:
        assert result_of(process) == {"error": "EIO"}


@pytest.mark.failure("worker or verifier stopped, deaf")
def test_a_worker_that_is_stopped(service: Service, built: Built) -> None:
    """Somebody else takes over, and no reader has an error."""
    target = service.mount(built.bootstrap)
    read(target / "small/1")
    worker = service.worker
    os.kill(worker, signal.SIGSTOP)
    assert read(target / "large/3") == right(built, "large/3")
    assert service.worker != worker
    compare(built.tree, target)
    assert service.events("process replaced: it does not answer")
    assert service.status(target)["events_denied"] == 0


def test_servers_that_hang_take_no_threads_of_others(
    engine: Engine, make_service: MakeService, remote: Built, built: Built, serve_remote: Serve
) -> None:
    """More of them than the worker has shares, each with more readers than it has threads."""
    service = make_service(engine, threads=2, patience=300)
    hanging = [serve_remote() for _ in range(9)]
    targets = [mount(service, another(service, remote, number), server) for number, server in enumerate(hanging)]
    for server in hanging:
        server.gate.clear()
    for target in targets:
        for number in range(4):
            service.reader("read", target / f"{number}")
    wait_for("all wait", lambda: sum(m["readers_waiting"] for m in service.status()["mounts"]) >= 4 * len(targets))
    began = time.monotonic()
    local = service.mount(built.bootstrap)
    compare(built.tree, local)
    well = mount(service, another(service, remote, 99), serve_remote())
    assert read(well / "5") == right(remote, "5")
    assert time.monotonic() - began < SILENCE, "a server that hangs had to be waited for"
    for server in hanging:
        server.gate.set()
    for process in service.readers:
        assert "sha256" in result_of(process)


def another(service: Service, image: Built, number: int) -> Built:
    """The same files, in a blob that no other image has: another number of them, and so other segments."""
    tree = service.work / f"tree{number}"
    shutil.copytree(image.tree, tree)
    (tree / "number").write_text(f"{number}" * 5000)
    made = build(tree, service.work / f"built{number}")
    made.blob.rename(image.blob.parent / made.blob.name)
    return made
