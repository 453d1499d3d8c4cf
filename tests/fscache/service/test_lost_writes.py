"""A disk that takes writes and fails some: what it has lost is never served for what it was."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.command import PYTHON
from tests.kit.disk import RecordedDisk, make_filesystem
from tests.kit.engines import FANOTIFY
from tests.kit.images import Built
from tests.kit.reading import compare, reader, result_of
from tests.kit.service import MakeService, RefusedError, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

LOST = "the disk has lost what was written"
NAMED = Path(__file__).parents[2] / "kit" / "named_service.py"


def drop_caches() -> None:
    """What the kernel has in memory and has written, or tried to."""
    Path("/proc/sys/vm/drop_caches").write_text("1")


class Failing:
    """A service whose state folder is on a disk of its own."""

    def __init__(self, service: Service, disk: RecordedDisk, place: Path) -> None:
        self.service, self.disk, self.place = service, disk, place

    def lose(self, built: Built) -> None:
        """From now on what is in the middle of a file is not written."""
        data = (built.tree / "large/3").read_bytes()
        self.disk.failing(data[100 << 10 : (100 << 10) + 64])

    def flush(self) -> None:
        """The kernel writes what it has, and tells this one alone when that fails."""
        fd = os.open(self.place, os.O_RDONLY)
        subprocess.run(["sync", "-f", self.place], check=False, timeout=60)
        os.close(fd)

    def forget(self) -> None:
        """Nothing of the disk is in memory any more, as after a reboot: what it has lost shows."""
        subprocess.run(["mount", "-o", "remount,ro", self.place], check=True, timeout=60)
        drop_caches()
        subprocess.run(["mount", "-o", "remount,rw", self.place], check=True, timeout=60)

    def umount(self, target: Path) -> None:
        """As soon as nobody has the kernel forget what it has in memory of it."""

        def done() -> bool:
            with contextlib.suppress(RefusedError):
                self.service.umount(target)
                return True
            return False

        wait_for("it is unmounted", done, pause=0.2)

    def settled(self) -> bool:
        return not list(self.service.state.glob("store/*/epoch"))


@pytest.fixture
def failing(make_service: MakeService, cache_disk: Path, tmp_path: Path) -> Iterator[Failing]:
    image, place = tmp_path / "image", tmp_path / "disk-mount"
    make_filesystem(image, "ext4", 128)
    disk = RecordedDisk(tmp_path, image)
    with disk.mounted(place, "ext4"):
        service = make_service(FANOTIFY, work=tmp_path, state=place / "state")
        yield Failing(service, disk, place)
        service.close()


@pytest.mark.failure("disk fails to write")
@pytest.mark.parametrize("kernel", [False, True])
def test_what_was_lost_is_fetched_again(kernel: bool, failing: Failing, built: Built) -> None:
    """A later sync succeeds, of which nobody may believe that it wrote what an earlier one did not.

    Args:
        kernel: writes it at a time of its own, and somebody else is told of the failure.
    """
    service = failing.service
    failing.lose(built)
    target = service.mount(built.bootstrap, prefetch=True)
    if kernel:
        wait_for("much is fetched", lambda: service.fetched(target) > 10 << 20)
        failing.flush()
    service.complete(target)
    wait_for("it is noticed", lambda: service.events(LOST))
    failing.disk.sound()
    failing.flush()
    failing.umount(target)
    assert service.stop() == 0
    failing.forget()
    service.start()
    service.mount(built.bootstrap, target=target)
    compare(built.tree, target)
    service.complete(target)
    wait_for("it is on the disk", failing.settled)
    assert len(service.events(LOST)) == 1


def test_what_is_mounted_begins_again(failing: Failing, built: Built) -> None:
    """Nobody is let to what may be lost; it is fetched once more, and the mount stays."""
    service = failing.service
    failing.lose(built)
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    wait_for("it is noticed", lambda: service.events(LOST))
    failing.disk.sound()
    drop_caches()
    compare_in_the_end(built, target)
    service.complete(target)
    wait_for("it is on the disk", failing.settled)
    drop_caches()
    compare(built.tree, target)
    failing.umount(target)
    assert service.stop() == 0


def test_it_is_noticed_before_anything_is_settled(failing: Failing, built: Built) -> None:
    """While it is written to."""
    service = failing.service
    assert service.stop() == 0
    service.program = [*PYTHON, str(NAMED), "a" * 32]
    service.start()
    failing.lose(built)
    target = service.mount(built.bootstrap)
    (target / "large/3").read_bytes()
    wait_for("it is noticed", lambda: service.events(LOST))
    failing.disk.sound()
    compare_in_the_end(built, target)


def compare_in_the_end(built: Built, target: Path) -> None:
    """Until then there may be errors, and nothing is wrong."""

    def same() -> bool:
        result = result_of(reader("whole", built.tree, target))
        assert not result["wrong"], result
        return not result["errors"]

    wait_for("all is served", same, pause=0.5)
    compare(built.tree, target)


def test_lost_while_no_service_ran(failing: Failing, built: Built) -> None:
    """And somebody else was told of it: the next service cannot know, and believes nothing that it did not see."""
    service = failing.service
    failing.lose(built)
    target = service.mount(built.bootstrap)
    for number in range(5):
        (target / f"large/{number}").read_bytes()
    service.kill_all()
    subprocess.run(["umount", target], check=True, timeout=60)
    failing.flush()
    failing.disk.sound()
    failing.forget()
    service.start()
    wait_for("it is forgotten", lambda: not service.status()["mounts"])
    service.mount(built.bootstrap, target=target)
    compare(built.tree, target)


def test_other_stores_are_settled_afterwards(failing: Failing, built: Built, tmp_path: Path) -> None:
    """What is begun later has nothing to do with it."""
    service = failing.service
    failing.lose(built)
    target = service.mount(built.bootstrap, prefetch=True)
    service.complete(target)
    wait_for("it is noticed", lambda: service.events(LOST))
    failing.disk.sound()
    failing.umount(target)
    # The same store, restored: it begins anew.
    service.mount(built.bootstrap, target=target, prefetch=True)
    service.complete(target)
    wait_for("it is on the disk", failing.settled)
    compare(built.tree, target)
    failing.umount(target)
    assert service.stop() == 0
