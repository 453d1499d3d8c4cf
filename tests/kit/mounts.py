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


_LINE = re.compile(rb"(?:\S+ ){4}(\S+) .*? - (\S+) (\S*) ")
_OCTAL = re.compile(rb"\\(\d{3})")


def _byte(octal: re.Match[bytes]) -> bytes:
    return bytes([int(octal[1], 8)])


def mounted(below: Path | None = None) -> list[Mounted]:
    """What is mounted, oldest first; all, or what lies on and below a folder."""
    out = []
    # A file system can write anything into its line, and those of others are none of our business.
    for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n"):
        if found := _LINE.match(line):
            here = Mounted(*(os.fsdecode(_OCTAL.sub(_byte, field)) for field in found.groups()))
            if below is None or here.target == str(below) or here.target.startswith(f"{below}/"):
                out.append(here)
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
