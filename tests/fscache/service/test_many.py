"""More images in one service than the host has fanotify groups (128, unless somebody raised it)."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from tests.kit.images import Built, build
from tests.kit.mounts import mounted
from tests.kit.reading import reader, result_of
from tests.kit.service import Service

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

IMAGES, MOUNTS = 4, 132


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


def all_right(name: str, images: list[Built], targets: list[Path]) -> None:
    """A file of each, read by one child."""
    found = result_of(reader("each", name, *targets))["results"]
    for number, result in enumerate(found):
        data = (images[number % IMAGES].tree / name).read_bytes()
        assert result == {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}, targets[number]
    assert len(found) == len(targets)


def groups(pid: int) -> int:
    """Fanotify groups of a process."""
    folder = Path(f"/proc/{pid}/fd")
    return sum(os.readlink(folder / fd) == "anon_inode:[fanotify]" for fd in os.listdir(folder))


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
