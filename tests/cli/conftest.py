"""What the tests of the command line share."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.kit.command import AsNobody

AS_NOBODY = """
import importlib, os, pkgutil, sys
import nydus_erofs
for module in pkgutil.walk_packages(nydus_erofs.__path__, "nydus_erofs."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sys.argv[0] = "nydus-erofs"
nydus_erofs.cli.main()
"""


@pytest.fixture
def as_nobody() -> AsNobody:
    """The command as an ordinary user. What it imports may be readable to root alone, hence imported before."""

    def as_nobody(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-c", AS_NOBODY, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return as_nobody
