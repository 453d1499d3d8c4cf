"""Who uses what lies below a folder (proc(5)): working directories, open files, running programs, other mounts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .mount import mounts

_MOST = 4  # that are named


def holders(target: str) -> list[str]:
    """Who uses something below ``target``, each as ``name (pid N) path``; mounts below it as ``a mount on path``.

    Who uses it by another way (a bind mount, another mount namespace) is not found.
    """
    found = [f"a mount on {entry.target}" for entry in mounts() if entry.target.startswith(f"{target}/")]
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        if len(found) > _MOST:
            break
        path = next((path for path in _paths(pid) if path == target or path.startswith(f"{target}/")), None)
        if path is not None:
            found.append(f"{_name(pid)} (pid {pid}) {path}")
    return [*found[:_MOST], *(["and others"] if len(found) > _MOST else [])]


def _paths(pid: str) -> Iterator[str]:
    """All that a process has to do with; nothing for one that is gone."""
    with contextlib.suppress(OSError):
        links = ["cwd", "root", "exe", *(f"fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))]
        for link in links:
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/{pid}/{link}")
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                yield "/" + line.rstrip("\n").partition(" /")[2]


def _name(pid: str) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return "?"
