"""What is mounted, a disk of one's own, and unmounting whatever happens."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.kit.waiting import PATIENCE


class Mounted(NamedTuple):
    """A line of mountinfo."""

    target: str
    kind: str  # of filesystem
    source: str


def mounted(below: Path | None = None) -> list[Mounted]:
    """What is mounted, oldest first; all, or what lies on and below a folder."""
    out = []
    # As bytes: names may hold whatever else ends a line of text.
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).rstrip("\n").split("\n"):
        left, _, right = line.partition(" - ")
        target, (kind, source) = left.split(" ")[4], right.split(" ")[:2]
        target, source = (re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), text) for text in (target, source))
        if below is None or target == str(below) or target.startswith(f"{below}/"):
            out.append(Mounted(target, kind, source))
    return out


def filesystem_of(path: Path) -> str:
    """Type of the filesystem a folder is on."""
    real = os.path.realpath(path)
    found = [(len(t), kind) for t, kind, _ in mounted() if t == "/" or real == t or real.startswith(f"{t}/")]
    return max(found)[1]


def unmount_all(below: Path) -> None:
    for target, _, _ in reversed(mounted(below)):
        subprocess.run(["umount", "-l", target], check=False, timeout=20, capture_output=True)


@contextlib.contextmanager
def mounted_disk(work: Path, megabytes: int) -> Iterator[Path]:
    """A small ext4 of its own."""
    image, target = work / "disk.img", work / "disk"
    target.mkdir()
    with open(image, "wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=True, timeout=PATIENCE)
    with contextlib.suppress(FileNotFoundError):  # without kmod the driver is there already, or nothing can load it
        subprocess.run(["modprobe", "-q", "loop"], check=False, timeout=PATIENCE)
    subprocess.run(["mount", "-o", "loop", image, target], check=True, timeout=PATIENCE)
    try:
        yield target
    finally:
        unmount_all(target)
