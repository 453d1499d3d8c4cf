"""Independent programs that judge ours, and servers of other projects.

They come from ``scripts/oracles``; an environment variable (FSCK_EROFS, DUMP_EROFS, MKFS_EROFS, NYDUS_IMAGE, NYDUSD,
VERSITYGW, REGISTRY) names another one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest


def _cache() -> Path:
    """Where `scripts/oracles` keeps what it fetched: the same rule as in scripts/lib.sh."""
    if own := os.environ.get("NYDUS_EROFS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nydus-erofs"


class Oracles:
    """Paths of independent programs.  Asking for one that is missing skips the test that asked."""

    def _find(self, variable: str, kept: str, minimum: tuple[int, int] | None = None) -> Path:
        """The program VARIABLE names, else the one kept in the cache, else one on PATH that is new enough.

        A program named explicitly is believed.  One on PATH must be of the version `minimum` at least: the
        erofs-utils of Debian 12 (1.5) reject valid images.  Nydus programs do not know their version.
        """
        if named := os.environ.get(variable):
            if os.access(named, os.X_OK):
                return Path(named)
            pytest.fail(f"{variable}={named} is not an executable file")
        if os.access(path := _cache() / kept, os.X_OK):
            return path
        name = path.name
        if not (found := shutil.which(name)):
            missing = path.parent.parent / "why-missing"  # left there by a scripts/oracles that failed
            why = f" ({missing.read_text().strip()})" if missing.exists() else ""
            pytest.skip(f"no {name} here{why}: run scripts/oracles, or set {variable}")
        if minimum is None:
            return Path(found)
        shown = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=20, check=False)
        match = re.search(r"(\d+)\.(\d+)", shown.stdout + shown.stderr)
        if not match or (int(match[1]), int(match[2])) < minimum:
            wanted = ".".join(map(str, minimum))
            have = match[0] if match else "of unknown version"
            pytest.skip(f"{found} is {have}, {wanted} is needed: run scripts/oracles, or set {variable}")
        return Path(found)

    @property
    def fsck_erofs(self) -> Path:
        return self._find("FSCK_EROFS", "erofs-utils/bin/fsck.erofs", (1, 9))

    @property
    def dump_erofs(self) -> Path:
        return self._find("DUMP_EROFS", "erofs-utils/bin/dump.erofs", (1, 9))

    @property
    def mkfs_erofs(self) -> Path:
        return self._find("MKFS_EROFS", "erofs-utils/bin/mkfs.erofs", (1, 9))

    @property
    def nydus_image(self) -> Path:
        return self._find("NYDUS_IMAGE", "nydus-2.2.0/bin/nydus-image")

    @property
    def nydusd(self) -> Path:
        return self._find("NYDUSD", "nydus-2.2.0/bin/nydusd")

    @property
    def versitygw(self) -> Path:
        return self._find("VERSITYGW", "servers/bin/versitygw")

    @property
    def registry(self) -> Path:
        return self._find("REGISTRY", "servers/bin/registry")
