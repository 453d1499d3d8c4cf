"""Prepare, after it gave everything up: it writes in its folder, and that is all."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.kit.child import UID, run, said

pytestmark = pytest.mark.root
CONFINED = f"""
import mmap, resource, socket
from nydus_erofs.fscache.kernel.confine import confine
from nydus_erofs.fscache.kernel.landlock import MAKE, Rule
from nydus_erofs.fscache.prepare.syscalls import PROFILE
from nydus_erofs.fscache.processes import PREPARE
def opens(path, mode):
    open(path, mode).close()
os.chdir(sys.argv[1])
folder = os.open(".", os.O_RDONLY)
assert not confine(PREPARE, {UID}, [folder], [Rule(folder, MAKE)], PROFILE, 4 << 20)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """Prepare's own, beside a file that its user could write."""
    (tmp_path / "work/stores").mkdir(parents=True)
    (tmp_path / "beside").touch()
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, UID, UID)
    return tmp_path / "work"


def test_files(folder: Any) -> None:
    code = """
attempt(os.makedirs, "stores/key")
attempt(opens, "stores/key/plan", "wb")
attempt(opens, "../beside", "wb")
attempt(opens, "/etc/passwd", "rb")
attempt(opens, "/dev/null", "wb")
attempt(mmap.mmap, -1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_EXEC)
print(len(os.urandom(9)), len(bytearray(64 << 20)))
"""
    words = ["done"] * 2 + ["EACCES"] * 4 + ["9", str(64 << 20)]
    assert said(CONFINED + code, folder) == words


@pytest.mark.parametrize("call", [
    "socket.socket()", "os.fork()", "threading.Thread(target=print).start()", "os.execv('/bin/true', ['true'])",
    "os.unlink('stores')", "os.symlink('a', 'b')", "os.link('a', 'b')", "os.kill(os.getppid(), 0)", "os.setuid(0)",
    "os.chmod('stores', 0o777)", "os.rename('stores', 'other')",
])  # fmt: skip
def test_calls_that_end_it(call: Any, folder: Any) -> None:
    assert run(CONFINED + call, folder).returncode == -signal.SIGSYS


def test_a_bug_is_told(folder: Any) -> None:
    """A traceback needs calls of its own."""
    done = run(CONFINED + "1 / 0", folder)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "ZeroDivisionError: division by zero")
