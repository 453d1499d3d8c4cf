"""Any call that the keeper makes of the host may fail, at any time: it lives, and all is well when that is over.

NYDUS_EROFS_SEEDS=N takes N seeds instead of a few.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.command import PYTHON
from tests.kit.engines import FANOTIFY
from tests.kit.images import Built
from tests.kit.processes import children
from tests.kit.reading import compare, read, result_of
from tests.kit.service import MakeService, RefusedError, Service
from tests.kit.waiting import wait_for

SEEDS = int(os.environ.get("NYDUS_EROFS_SEEDS", "4"))

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]
UNLUCKY = Path(__file__).parents[2] / "kit" / "unlucky_service.py"
LONG = 8.0  # seconds


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.failure("no descriptors, processes or memory left")
def test_any_call_fails(seed: int, make_service: MakeService, built: Built, tmp_path: Path) -> None:
    rng = random.Random(seed)
    service = make_service(FANOTIFY, start=False)
    flag = service.work / "unlucky"
    service.program = [*PYTHON, str(UNLUCKY), str(flag), str(seed)]
    service.start()
    pid, target = service.status()["pid"], service.mount(built.bootstrap)
    stop = service.work / "stop"
    readers = [service.reader("loop", built.tree, target, stop, number) for number in range(2)]
    flag.touch()
    trouble(service, built, tmp_path, rng)
    flag.unlink()
    calls = Path(f"{flag}.calls").read_text().splitlines()
    assert len(calls) > 15, "hardly anything failed: this test tests nothing"
    wait_for("it answers", service.answers)
    assert service.status()["pid"] == pid
    wait_for("a worker", lambda: service.status()["worker"]["pid"])
    wait_for("what was mounted meanwhile goes", lambda: alone(service, target))
    wait_for("everything is read", lambda: "error" not in read(target / "large/7"))
    stop.touch()
    for process in readers:
        result = result_of(process)
        assert not result["wrong"], result
        assert result["errors"].keys() <= {"EIO"}, result
    compare(built.tree, target)
    wait_for("no child is left", lambda: set(children(pid)) <= {service.worker, service.verifier})
    again = tmp_path / "again.meta"
    again.write_bytes(built.bootstrap.read_bytes())
    compare(built.tree, service.mount(again, built.blob.parent))
    wait_for("nothing is left of what failed", lambda: not list((service.state / "images").glob(".new-*")))
    assert service.stop() == 0


def trouble(service: Service, built: Built, folder: Path, rng: random.Random) -> None:
    """Whatever people and accidents do to a service, for a while."""
    images = 0

    def mount() -> None:
        nonlocal images
        images += 1
        image = folder / f"{images}.meta"
        image.write_bytes(built.bootstrap.read_bytes())
        service.mount(image, built.blob.parent, prefetch=rng.random() < 0.3)

    def umount() -> None:
        mounts = service.status()["mounts"][1:]
        if mounts:
            service.umount(rng.choice(mounts)["target"])

    def kill() -> None:
        for child in children(service.keeper.pid):
            with contextlib.suppress(OSError):
                if b"fscache.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(child, 9)

    def hang_up() -> None:
        os.kill(service.keeper.pid, 1)

    acts: list[Callable[[], object]] = [mount, mount, umount, umount, kill, hang_up, service.status]
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        with contextlib.suppress(RefusedError, OSError):
            rng.choice(acts)()
        assert service.keeper.poll() is None, service.log_text()[-4000:]
        time.sleep(0.02)


def alone(service: Service, target: Path) -> bool:
    """Whether nothing else is mounted any more."""
    others = [mount["target"] for mount in service.status()["mounts"] if mount["target"] != str(target)]
    for other in others:
        with contextlib.suppress(RefusedError):
            service.umount(other)
    return not others
