"""What only tests need to know of each engine: where its cache is, and what it promises."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Protocol

from tests.kit.command import CLI


class Engine(Protocol):
    """One way to serve."""

    name: str
    keeps_mounts: bool  # a mount outlives keeper and worker, and is served again

    def metadata_fetched(self, bootstrap: Path) -> int:
        """Bytes that may be fetched before any file is read."""

    def cache(self, state: Path) -> list[Path]:
        """The files below a state folder that hold fetched bytes."""

    def held(self, path: Path) -> int:
        """Bytes of data in one of these files, in whole blocks of the disk."""


class Fanotify:
    """Segments in a folder for each store."""

    name = "fanotify"
    keeps_mounts = True

    def metadata_fetched(self, bootstrap: Path) -> int:
        return 0

    def cache(self, state: Path) -> list[Path]:
        return sorted((state / "store").glob("*/[0-9]*"))

    def held(self, path: Path) -> int:
        return path.stat().st_blocks * 512


class Cachefiles:
    """The kernel's own cache, which holds bootstraps too."""

    name = "cachefiles"
    keeps_mounts = False

    def metadata_fetched(self, bootstrap: Path) -> int:
        return -(-bootstrap.stat().st_size // (128 << 10)) * (128 << 10)

    def cache(self, state: Path) -> list[Path]:
        return sorted(path for path in (state / "cachefiles").rglob("*") if path.is_file())

    def held(self, path: Path) -> int:
        # The kernel notes what a file is in extended attributes, which may take a block of their own.
        return max(0, path.stat().st_blocks * 512 - 4096)


FANOTIFY, CACHEFILES = Fanotify(), Cachefiles()
ENGINES: dict[str, Engine] = {engine.name: engine for engine in (FANOTIFY, CACHEFILES)}


@cache
def hindrances() -> dict[str, str]:
    """Each engine, and in a line why it does not serve here; "" if it does.

    NYDUS_EROFS_ENGINES=NAME[,NAME] says which do instead of trying.
    """
    if named := os.environ.get("NYDUS_EROFS_ENGINES"):
        return {name: "" if name in named.split(",") else f"NYDUS_EROFS_ENGINES={named}" for name in ENGINES}
    if os.geteuid() != 0:
        return dict.fromkeys(ENGINES, "needs root")
    command = [*CLI, "doctor", "--json", "--state-dir", os.environ.get("TMPDIR", "/var/tmp")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)["engines"]
    return {name: "; ".join(c["detail"] for c in found[name]["checks"] if not c["ok"]) for name in ENGINES}
