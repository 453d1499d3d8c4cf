"""Records what a service does to its disk, then cuts the power at any moment, and judges what is left."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.durability import workload
from tests.durability.images import Image, made
from tests.durability.judge import SEGMENT, Verdict, judge
from tests.kit.disk import Crash, RecordedDisk, Recording, crashes, loop_mounted, make_filesystem
from tests.kit.engines import Engine
from tests.kit.service import Service

MEGABYTES = {"ext4": 128, "xfs": 320, "btrfs": 256}


class Disk(NamedTuple):
    """A filesystem, how it is mounted, and whether somebody writes parts of files out all the while."""

    kind: str
    options: str
    meddled: bool


DISKS = {
    "ext4": Disk("ext4", "commit=1", meddled=False),
    # The size of a file may be on disk before its bytes are.
    "ext4-writeback": Disk("ext4", "commit=1,data=writeback,nodelalloc", meddled=False),
    "ext4-meddled": Disk("ext4", "commit=1,data=writeback,nodelalloc", meddled=True),
    "xfs": Disk("xfs", "", meddled=True),
    "btrfs": Disk("btrfs", "commit=1", meddled=True),
}


class Point(NamedTuple):
    """One crash, and what came of it."""

    disk: Disk
    crash: Crash
    verdict: Verdict

    def __str__(self) -> str:
        how = "good" if self.verdict.good else f"BAD {self.verdict}"
        return f"{self.disk} {self.crash} {self.verdict.seconds:.1f} s: {how}"


class Replay:
    """Power cuts on one disk.

    Args:
        work: a folder on a filesystem that can hold disks.
    """

    def __init__(self, work: Path, engine: Engine, disk: Disk, images: dict[str, Image], seed: int) -> None:
        self._work, self._engine, self._disk, self._images, self._seed = work, engine, disk, images, seed
        self._place, self._state = work / "mnt", work / "mnt" / "state"

    def record(self, base: Path, era: int) -> tuple[Recording, list[int]]:
        """What the workload does to a disk; its moments between steps."""
        folder = self._work / f"record{era}"
        folder.mkdir()
        image = folder / "image"
        shutil.copyfile(base, image)
        disk = RecordedDisk(folder, image)
        with disk.mounted(self._place, self._disk.kind, self._disk.options):
            service = Service(folder, self._engine, segment_size=SEGMENT)
            service.state = self._state
            run = workload.Run(service, self._images, era, disk.now)
            try:
                with workload.meddling(self._place, self._seed) if self._disk.meddled else contextlib.nullcontext():
                    workload.work(run)
            finally:
                service.close()
        return Recording(base, disk.log, self._disk.kind), run.moments

    def judge(self, recording: Recording, crash: Crash, *, alone: bool) -> Verdict:
        folder, image = self._work / "after", self._work / "after.img"
        folder.mkdir()
        recording.make(crash, image)
        try:
            with loop_mounted(image, self._place, self._disk.kind, self._disk.options):
                return judge(folder, self._state, self._engine, self._images, alone=alone)
        finally:
            shutil.rmtree(folder)

    def points(self, count: int, *, again: bool) -> Iterator[Point]:
        """Crashes of a service that begins with nothing; and of one that begins ``again``, with what one of these has
        left."""
        base = self._work / "base"
        make_filesystem(base, self._disk.kind, MEGABYTES[self._disk.kind])
        rng = random.Random(self._seed)
        for number, share in enumerate((count - count // 2, count // 2) if again else (count,)):
            recording, moments = self.record(base, 100 * number)
            todo = crashes(recording, moments, share, self._seed + number)
            for at, crash in enumerate(todo):
                yield Point(self._disk, crash, self.judge(recording, crash, alone=bool(at % 2)))
            # The next one begins with what a crash in the middle has left.
            base = self._work / "next"
            middle = rng.randrange(len(recording.entries) // 3, len(recording.entries))
            recording.make(Crash(middle, 0.5, 0.2, self._seed), base)
            recording.close()


def replay(
    work: Path, engine: Engine, disks: Sequence[Disk], points: int, seed: int, *, again: bool
) -> Iterator[Point]:
    """So many crashes, spread over these disks."""
    with made(work / "images") as images:
        for number, disk in enumerate(disks):
            folder = work / f"disk{number}"
            folder.mkdir()
            share = points // len(disks) + (number < points % len(disks))
            yield from Replay(folder, engine, disk, images, seed + 1000 * number).points(share, again=again)
            shutil.rmtree(folder)
