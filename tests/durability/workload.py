"""What a service does for a while: everything that it writes to the state folder, in several orders."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.durability.images import Image
from tests.kit.command import PYTHON
from tests.kit.mounts import unmount_all
from tests.kit.reading import read
from tests.kit.service import Service
from tests.kit.waiting import wait_for

NAMED = Path(__file__).parents[1] / "kit" / "named_service.py"
_IDLE = 1.5  # seconds, in which filesystems write out what they know of files
_WRITE = 2  # SYNC_FILE_RANGE_WRITE


def era(number: int) -> str:
    """Name of one in which the workload runs."""
    return f"{number:032d}"


class Run:
    """One service on a state folder, from boot to boot.

    Args:
        service: that is not started yet.
        now: tells moments of the disk; those between steps are kept in ``moments``.
    """

    def __init__(self, service: Service, images: dict[str, Image], first_era: int, now: Callable[[], int]) -> None:
        self.service, self._images, self._era, self._now = service, images, first_era, now
        self.moments: list[int] = []
        self._mounted: dict[Path, str] = {}
        self._new_era()

    def _new_era(self) -> None:
        self.service.program = [*PYTHON, str(NAMED), era(self._era)]
        self._era += 1

    def _step(self) -> None:
        self.moments.append(self._now())

    def mount(self, name: str, *, prefetch: bool = False, target: Path | None = None) -> Path:
        image = self._images[name]
        target = self.service.mount_image(image.image, prefetch=prefetch, target=target, **image.fields)
        self._mounted[target] = name
        self._step()
        return target

    def umount(self, target: Path) -> None:
        self.service.umount(target)
        del self._mounted[target]
        self._step()

    def restart(self) -> None:
        """The service is killed, and comes back."""
        self.service.kill_all()
        self._new_era()
        if not self.service.engine.keeps_mounts:
            for target in self._mounted:
                unmount_all(target)
        self.service.start()
        if not self.service.engine.keeps_mounts:
            for target, name in list(self._mounted.items()):
                self.mount(name, target=target)

    def umount_alone(self, target: Path) -> None:
        """And whoever wrote to it dies before he can say that he is done."""
        verifier = self.service.verifier
        os.kill(verifier, signal.SIGSTOP)
        self.umount(target)
        os.kill(verifier, signal.SIGKILL)

    def read(self, target: Path, name: str, length: int = -1) -> None:
        assert "error" not in read(target / name, 0, length)
        self._step()

    def complete(self, target: Path) -> None:
        self.service.complete(target)
        self._step()

    def settled(self, which: str = "*") -> None:
        """Wait until all that was written in this era counts for good."""
        now = era(self._era - 1)

        def settled() -> bool:
            for note in self.service.state.glob(f"{which}/*/epoch"):
                with contextlib.suppress(FileNotFoundError):
                    if note.read_text() == now:
                        return False
            return True

        wait_for("it is settled", settled)
        self._step()

    def idle(self) -> None:
        """Filesystems write out what they know of files, and nothing else is on its way to the disk."""
        time.sleep(_IDLE)
        self._step()

    def reboot(self) -> None:
        """Stop as a machine that is shut down does, and come back in another boot."""
        self.service.end_well()
        self._mounted.clear()
        self._step()
        self._new_era()
        self.service.start()


def work(run: Run) -> None:
    """Images come, are shared, filled in part, filled wholly, settled; the worker dies, the service dies, the machine
    is shut down and comes back; stores are restored."""
    service = run.service
    service.start()
    first, other = run.mount("first"), run.mount("other")
    run.read(first, "large0")
    run.read(other, "large1", 4096)
    twin, afar = run.mount("twin", prefetch=True), run.mount("afar")
    run.complete(twin)
    run.read(afar, "large1")
    run.umount(first)
    run.umount(twin)
    service.kill_worker()
    run.read(other, "large2")
    run.umount(other)
    run.settled()
    first, kept, other = run.mount("first"), run.mount("kept"), run.mount("other")
    run.read(kept, "large1", 100000)
    run.read(kept, "small7")
    run.read(other, "large5")
    run.umount_alone(other)
    run.idle()
    run.restart()
    run.read(kept, "large2")
    run.read(first, "small1")
    run.reboot()
    other, kept, afar = run.mount("other"), run.mount("kept", prefetch=True), run.mount("afar")
    run.read(other, "large0")
    run.read(afar, "large0")
    run.complete(kept)
    run.read(other, "small3")
    run.reboot()
    for target in [run.mount(name, prefetch=True) for name in ("twin", "kept", "other", "first", "afar")]:
        run.complete(target)
    run.settled()
    # What is settled was written out for that, and not for something else that was settled just then.
    late = run.mount("late")
    run.settled("images")
    run.idle()
    run.read(late, "large1")
    run.idle()
    service.end_well()


@contextlib.contextmanager
def meddling(folder: Path, seed: int) -> Iterator[None]:
    """Meanwhile parts of files are written to the disk whenever it comes, as the kernel may do."""
    libc, rng, stop = ctypes.CDLL(None, use_errno=True), random.Random(seed), threading.Event()

    def pick() -> Path | None:
        files = [path for path in folder.rglob("*") if path.is_file() or path.is_dir()]
        return rng.choice(files) if files else None

    def meddle() -> None:
        ways: list[Callable[[int], object]] = [
            os.fdatasync, os.fsync, lambda fd: libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _WRITE)
        ]  # fmt: skip
        while not stop.wait(rng.random() * 0.05):
            with contextlib.suppress(OSError):
                if (path := pick()) is not None:
                    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                    try:
                        rng.choice(ways)(fd)
                    finally:
                        os.close(fd)

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
