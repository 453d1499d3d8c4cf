"""A few power cuts of the many that ``python -m tests.durability`` replays."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.durability.replay import DISKS, replay
from tests.kit.disk import Crash, RecordedDisk, Recording, loop_mounted, make_filesystem
from tests.kit.engines import FANOTIFY

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

POINTS = int(os.environ.get("NYDUS_EROFS_POWER_CUTS", "30"))


@pytest.mark.slow
def test_power_cuts(cache_disk: Path, tmp_path: Path) -> None:
    """Each byte of each image is right afterwards, or is fetched again: none is wrong, no image is lost."""
    points = list(replay(tmp_path, FANOTIFY, [DISKS["ext4-writeback"]], POINTS, seed=1, again=False))
    assert len(points) == POINTS
    assert not [str(point) for point in points if not point.verdict.good]
    assert sum(point.verdict.unserved for point in points), "everything was there always: this test tests little"


def test_what_a_disk_holds_after_a_crash(cache_disk: Path, tmp_path: Path) -> None:
    """All that was flushed; of what came later all, nothing, or some."""
    base, after, place = tmp_path / "base", tmp_path / "after", tmp_path / "mnt"
    make_filesystem(base, "ext4", 16)
    after.write_bytes(base.read_bytes())
    disk = RecordedDisk(tmp_path, after)
    data = random.Random(1).randbytes(1 << 20)
    with disk.mounted(place, "ext4"):
        for name in ("one", "two"):
            with open(place / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if name == "one":
                between = disk.now()
    recording = Recording(base, disk.log, "ext4")
    middle, end = recording.until(between), len(recording.entries)
    assert 0 < middle < end
    assert middle - 1 in recording.flushes

    def holds(crash: Crash) -> dict[str, bool]:
        recording.make(crash, after)
        with loop_mounted(after, place, "ext4"):
            found = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
        return {name: found.get(name) == data for name in ("one", "two")}

    assert holds(Crash(middle, 0, 0, 0)) == {"one": True, "two": False}
    assert holds(Crash(end, 1, 0, 0)) == {"one": True, "two": True}
    second = [number for number in range(middle, end) if recording.entries[number].data[:64] == data[:64]]
    assert holds(Crash(second[-1] + 1, 1, 0, 0)) == {"one": True, "two": False}
    assert holds(Crash(0, 1, 0, 0)) == {"one": False, "two": False}
    kept = {after.read_bytes() for seed in range(3) if holds(Crash(end - 1, 0.5, 1, seed))["one"]}
    assert len(kept) == 3
    recording.close()


def test_a_disk_that_fails(tmp_path: Path, cache_disk: Path) -> None:
    """Writes of these bytes fail until it is sound again, and no others."""
    image, place = tmp_path / "image", tmp_path / "mnt"
    make_filesystem(image, "ext4", 16)
    disk = RecordedDisk(tmp_path, image)

    def write(name: str, data: bytes) -> None:
        with open(place / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    with disk.mounted(place, "ext4"):
        disk.failing(b"a needle")
        write("one", bytes(9000))
        with pytest.raises(OSError, match="Input/output error"):
            write("two", bytes(5000) + b"a needle" + bytes(5000))
        disk.sound()
        write("two", bytes(5000) + b"a needle" + bytes(5000))
