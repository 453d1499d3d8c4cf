"""A killed service comes back while the folder of one image's blob hangs: that image waits, no other one does."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit.engines import FANOTIFY
from tests.kit.guard import opens_hang
from tests.kit.images import Built, build
from tests.kit.reading import compare, read, result_of
from tests.kit.service import MakeService, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


class Two(NamedTuple):
    """A killed service with two images mounted, the first one's blob in a folder that will hang."""

    service: Service
    slow: Path
    slow_tree: Path
    away: Path
    other: Path


@pytest.fixture
def two(make_service: MakeService, built: Built, tmp_path: Path) -> Two:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(bytes(range(256)) * 8192)
    made = build(tree, tmp_path / "image")
    away = tmp_path / "away"
    away.mkdir()
    shutil.move(made.blob, away)
    service = make_service(FANOTIFY)
    slow = service.mount(made.bootstrap, away)
    other = service.mount(built.bootstrap)
    service.kill_all()
    return Two(service, slow, tree, away, other)


@pytest.mark.failure("file server of a blob's folder away")
def test_its_readers_wait_and_others_do_not(two: Two, built: Built) -> None:
    service = two.service
    with opens_hang(two.away) as guard:
        began = time.monotonic()
        service.start()
        waiting = service.reader("read", two.slow / "file")
        wait_for("it waits", lambda: service.status(two.slow)["readers_waiting"])
        assert "error" not in read(two.other / "large/7")
        assert time.monotonic() - began < 30, "the other image waited, too"
        assert waiting.poll() is None
        guard.kill()
        assert result_of(waiting)["length"] == (two.slow_tree / "file").stat().st_size
    compare(two.slow_tree, two.slow)
    compare(built.tree, two.other)
    assert service.status(two.slow)["failures"] == 0


def test_new_images_can_be_mounted_meanwhile(two: Two, built: Built, tmp_path: Path) -> None:
    new = tmp_path / "new.meta"
    shutil.copy(built.bootstrap, new)
    with opens_hang(two.away):
        two.service.start()
        compare(built.tree, two.service.mount(new, built.blob.parent))


def test_a_service_can_stop_meanwhile(two: Two) -> None:
    with opens_hang(two.away):
        two.service.start()
        assert two.service.stop() == 0
