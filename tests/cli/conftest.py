"""What the tests of the command line share."""

import subprocess
import sys

import pytest

AS_NOBODY = """
import os, sys
from nydus_erofs.cli import ask, doctor, exits, main, mount, options, quick, serve, status, umount, verbs
from nydus_erofs.fscache import config, keeper, log, notify
from nydus_erofs.fscache.kernel import selftest
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sys.argv[0] = "nydus-erofs"
main()
"""


@pytest.fixture
def as_nobody():
    """The command as an ordinary user. What it imports may be readable to root alone, hence imported before."""

    def as_nobody(*arguments):
        command = [sys.executable, "-I", "-c", AS_NOBODY, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return as_nobody
