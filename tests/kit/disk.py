"""A disk of one's own that writes down what happens to it (``disk_server.py``), and what it may hold after a crash.

What a disk has after a power cut: all that was written before a flush that it has answered, and of what came later
any part, down to single sectors.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.kit.command import PYTHON
from tests.kit.disk_server import ENTRY, FLUSH
from tests.kit.mounts import unmount_all
from tests.kit.waiting import PATIENCE, wait_for

SERVER = Path(__file__).with_name("disk_server.py")
# Bytes that are written whole or not at all; xfs and btrfs do not mount any more when blocks of theirs are torn.
_SECTOR = {"ext4": 512, "xfs": 4096, "btrfs": 4096}
_MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K", "-s", "size=4096"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-K"],
}


def make_filesystem(image: Path, kind: str, megabytes: int) -> None:
    """A new filesystem in a sparse file."""
    with open(image, "wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run([*_MAKE[kind], str(image)], check=True, timeout=PATIENCE, capture_output=True)


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


@contextlib.contextmanager
def loop_mounted(file: Path, target: Path, kind: str, options: str = "") -> Iterator[None]:
    """A filesystem in a file, mounted through a loop device that goes with it."""
    target.mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # without kmod the driver is there already
        subprocess.run(["modprobe", "-q", "loop"], check=False, timeout=PATIENCE)
    device = run("losetup", "--find", "--show", file)
    try:
        run("mount", "-t", kind, *(["-o", options] if options else []), device, target)
    finally:
        run("losetup", "-d", device)  # once nothing uses it
    try:
        yield
    finally:
        unmount_all(target)
        wait_for("the loop device is free", lambda: not run("losetup", "-j", file))


@dataclass
class RecordedDisk:
    """A mounted filesystem whose disk is recorded from the state of ``image``, which it changes."""

    work: Path
    image: Path
    log: Path = field(init=False)
    fail: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log, self.fail = self.work / "disk.log", self.work / "disk.fail"

    @contextlib.contextmanager
    def mounted(self, target: Path, kind: str, options: str = "") -> Iterator[None]:
        place = self.work / "disk"
        place.touch()
        command = [*PYTHON, str(SERVER), str(self.image), str(self.log), str(self.fail), str(place)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            assert place.stat().st_size == self.image.stat().st_size  # which a loop device does not ask for
            with loop_mounted(place, target, kind, options):
                yield
        finally:
            unmount_all(place)
            try:
                server.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.communicate(timeout=20)

    def now(self) -> int:
        """A moment: bytes of the log."""
        return self.log.stat().st_size

    def failing(self, content: bytes) -> None:
        """From now on writes that hold these bytes fail; of none, all do."""
        new = self.fail.with_suffix(".new")
        new.write_bytes(content)
        new.rename(self.fail)

    def sound(self) -> None:
        self.fail.unlink()


class Entry(NamedTuple):
    """What happened to a disk. A flush has no bytes."""

    flush: bool
    offset: int
    data: memoryview
    moment: int  # bytes of the log behind it


class Crash(NamedTuple):
    """A power cut: when, and what of the writes since the last flush the disk has kept."""

    after: int  # entries
    kept: float  # share of writes
    torn: float  # share of writes of which only some sectors are kept
    seed: int


class Recording:
    """A log, and the disk as it was before, with a filesystem of this kind."""

    def __init__(self, base: Path, log: Path, kind: str) -> None:
        self.base, self._sector = base, _SECTOR[kind]
        self._next, self._durable = 0, base.with_suffix(".durable")
        with open(log, "rb") as file:
            self._view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        self.entries: list[Entry] = []
        at = 0
        while at < len(self._view):
            what, length, offset = ENTRY.unpack_from(self._view, at)
            at += ENTRY.size
            self.entries.append(Entry(what == FLUSH, offset, self._view[at : at + length], at + length))
            at += length

    def until(self, moment: int) -> int:
        """How many entries there were at a moment."""
        return sum(entry.moment <= moment for entry in self.entries)

    @property
    def flushes(self) -> list[int]:
        """Numbers of entries that are flushes."""
        return [number for number, entry in enumerate(self.entries) if entry.flush]

    def make(self, crash: Crash, image: Path) -> None:
        """Give a file what the disk holds after a crash. Quick if crashes come in their order."""
        done = max((number for number in self.flushes if number < crash.after), default=0)
        if done < self._next or not self._next:
            shutil.copyfile(self.base, self._durable)
            self._next = 0
        with open(self._durable, "r+b", buffering=0) as disk:
            for entry in self.entries[self._next : done]:
                os.pwrite(disk.fileno(), entry.data, entry.offset)
        self._next = done
        run("cp", "--sparse=always", "--reflink=auto", self._durable, image)
        rng, sector = random.Random(crash.seed), self._sector
        with open(image, "r+b", buffering=0) as disk:
            for entry in self.entries[done : crash.after]:
                if rng.random() >= crash.kept:
                    continue
                torn = rng.random() < crash.torn
                for start in range(0, len(entry.data), sector if torn else len(entry.data) or 1):
                    if torn and rng.random() < 0.5:
                        continue
                    end = start + sector if torn else len(entry.data)
                    os.pwrite(disk.fileno(), entry.data[start:end], entry.offset + start)

    def close(self) -> None:
        self._durable.unlink(missing_ok=True)


def crashes(recording: Recording, moments: Sequence[int], points: int, seed: int) -> list[Crash]:
    """Power cuts, in order: at these moments, at flushes and between them; with all that was written, with nothing of
    it, with parts."""
    rng = random.Random(seed)
    at_moments: list[int] = []
    out = []
    for number in range(points):
        if number % 3:
            at_moments = at_moments or rng.sample([recording.until(moment) for moment in moments], len(moments))
            after = at_moments.pop()
        elif number % 2:  # just before a flush is over, when most is undecided, or just after it
            after = rng.choice(recording.flushes) + rng.randrange(2)
        else:
            after = rng.randrange(len(recording.entries) + 1)
        kept = rng.choice([0, 0.1, 0.5, 0.9, 1])
        out.append(Crash(after, kept, rng.choice([0, 0, 0.5]), rng.randrange(1 << 32)))
    return sorted(out)
