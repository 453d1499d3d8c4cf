"""Processes: whether they live, and what they cost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


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


def descriptors() -> list[str]:
    """Open descriptors, without those that an earlier test left to the garbage collector, whenever that comes."""
    gc.collect()
    return os.listdir("/proc/self/fd")


def run_to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run it in a loop until the children are gone that it has started: none runs on, none is a zombie."""
    before = children(os.getpid())

    async def main() -> T:
        try:
            return await asyncio.wait_for(work, 30)
        finally:
            deadline = time.monotonic() + 20
            while (left := children(os.getpid())) != before and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            assert left == before

    return asyncio.run(main())


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
    oom_score: int  # oom_score_adj


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
        oom_score=int((proc / "oom_score_adj").read_text()),
    )


def _descriptors(folder: Path) -> dict[int, str]:
    found = {}
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was the one for looking, or is closed by now
            found[int(path.name)] = os.readlink(path)
    return found
