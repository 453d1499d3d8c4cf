"""Whatever takes long, it is not the keeper's thread that waits: readers of other images do not notice."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.kit.engines import FANOTIFY
from tests.kit.guard import opens_hang
from tests.kit.images import Built
from tests.kit.processes import children
from tests.kit.service import MakeService, RefusedError, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(180)]

SLOW = Path(__file__).parents[2] / "kit" / "slow_service.py"
HELD = 5.0  # seconds
STALL = 0.05  # seconds: the longest that a reader of another image may wait for the keeper
TRIES = 3  # this machine has other work to do, too


class Answers(threading.Thread):
    """Asks the keeper again and again how it is; the longest time that it took to answer."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self._service, self._ended = service, threading.Event()
        self.longest = 0.0

    def run(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            self._service.status()
            self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(0.005)

    def stop(self) -> float:
        self._ended.set()
        self.join(20)
        return self.longest


def longest_stall(service: Service, other: Path, act: Callable[[], None]) -> float:
    """How long the keeper did not answer while ``act`` went on. Readers of ``other`` wait for the same thread."""
    answers = Answers(service)
    answers.start()
    try:
        act()
    finally:
        longest = answers.stop()
    assert service.status(other)["events_denied"] == 0
    return longest


def check(service: Service, other: Path, act: Callable[[int], None]) -> None:
    """The best of a few tries counts: what the keeper itself waits for it waits for each time."""
    stalls = []
    for number in range(TRIES):
        began = time.monotonic()
        stalls.append(longest_stall(service, other, partial(act, number)))
        assert time.monotonic() - began > HELD, "nothing took long: this test tests nothing"
        if stalls[-1] < STALL:
            return
    pytest.fail(f"the keeper did not answer for {[round(stall, 3) for stall in stalls]} s")


def copy(built: Built, folder: Path, number: int) -> Path:
    """Another image of the same blob: its bootstrap is a new file, so that it has to be prepared."""
    path = folder / f"copy{number}.meta"
    path.write_bytes(built.bootstrap.read_bytes())
    return path


@pytest.mark.parametrize(
    ("module", "function"),
    [("os", "fsync"), ("hashlib", "file_digest"), ("nydus_erofs.fscache.kernel.mount", "mount_erofs"),
     ("nydus_erofs.fscache.keeper.images.files", "open_blob"),
     ("nydus_erofs.fscache.keeper.images.files", "check_target"),
     ("nydus_erofs.fscache.keeper.images.origin", "resolve")],
)  # fmt: skip
def test_a_mount_that_takes_long(
    module: str, function: str, make_service: MakeService, built: Built, tmp_path: Path
) -> None:
    service = make_service(FANOTIFY, start=False)
    service.program = [sys.executable, "-I", str(SLOW), module, function]
    service.start()
    other = service.mount(built.bootstrap)

    def act(number: int) -> None:
        service.umount(service.mount(copy(built, tmp_path, number), built.blob.parent))

    check(service, other, act)


@pytest.fixture
def slow_programs(tmp_path: Path) -> Iterator[str]:
    """A PATH in which rm, sync and a credential helper of docker's take long."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("rm", "sync", "docker-credential-slow"):
        path = folder / name
        path.write_text(f'#!/bin/sh\nsleep {HELD}\n[ $0 = {folder}/rm ] && exec /bin/rm "$@"\nexit 0\n')
        path.chmod(0o755)
    yield f"{folder}:{os.environ['PATH']}"


def test_programs_that_take_long(make_service: MakeService, built: Built, tmp_path: Path, slow_programs: str) -> None:
    """Removing, and a helper that has docker's credentials."""
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text('{"credsStore": "slow"}')
    service = make_service(FANOTIFY, start=False)
    service.spawn(PATH=slow_programs, DOCKER_CONFIG=str(tmp_path / "docker"))
    wait_for("the service answers", service.answers)
    other = service.mount(built.bootstrap)

    def act(number: int) -> None:
        with pytest.raises(RefusedError):  # nobody is there; the helper was asked before
            service.mount_image("127.0.0.1:9/no/image:here")

    check(service, other, act)


def test_a_folder_whose_opens_hang(make_service: MakeService, built: Built, tmp_path: Path) -> None:
    """As on a file server that is away: here the opens wait for a permission that nobody gives."""
    service = make_service(FANOTIFY)
    other = service.mount(built.bootstrap)
    folder = tmp_path / "away"
    folder.mkdir()
    meta = copy(built, folder, 0)
    with opens_hang(folder, HELD):
        stall = longest_stall(service, other, lambda: service.umount(service.mount(meta, built.blob.parent)))
    assert stall < 1.0
    wait_for("no child is left", lambda: set(children(service.keeper.pid)) <= {service.worker, service.verifier})
