"""Processes: whether they live, and what they cost."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def pss(pid: int) -> int:
    """Bytes of memory that count for a process: its own, and its share of what others have mapped too."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


class Seen(NamedTuple):
    """What /proc tells of a process."""

    status: dict[str, str]
    parent: int
    session: int
    terminal: int  # device number; 0 for none
    limits: dict[str, tuple[str, str]]  # "open files" -> soft, hard
    namespaces: dict[str, str]
    environment: dict[str, str]
    descriptors: dict[int, str]


def look_at(pid: int) -> Seen:
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    stat = (proc / "stat").read_text().rpartition(") ")[2].split()
    limits = re.findall(r"^Max (.*?) {2,}(\S+) +(\S+)", (proc / "limits").read_text(), re.MULTILINE)
    pairs = (item.decode().partition("=") for item in (proc / "environ").read_bytes().split(b"\0") if item)
    return Seen(
        status={name: " ".join(value.split()) for name, value in status.items()},
        parent=int(stat[1]),
        session=int(stat[3]),
        terminal=int(stat[4]),
        limits={name: (soft, hard) for name, soft, hard in limits},
        namespaces={path.name: os.readlink(path) for path in (proc / "ns").iterdir()},
        environment={name: value for name, _, value in pairs},
        descriptors=_descriptors(proc / "fd"),
    )


def _descriptors(folder: Path) -> dict[int, str]:
    found = {}
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was the one for looking, or is closed by now
            found[int(path.name)] = os.readlink(path)
    return found
