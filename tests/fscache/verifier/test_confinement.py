"""A verifier that gave everything up: what it is for it still can do, and nothing else."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.kit.child import UID, run, said

pytestmark = pytest.mark.root
CONFINED = f"""
import socket, subprocess
from nydus_erofs.fscache.kernel import channel
from nydus_erofs.fscache.kernel.confine import confine
from nydus_erofs.fscache.kernel.landlock import FILL, Rule
from nydus_erofs.fscache.processes import VERIFIER
from nydus_erofs.fscache.verifier.syscalls import PROFILE
there = sys.argv[1]
folder = os.open(there + "/store/key", os.O_RDONLY)
os.chown(there + "/store/key/00000", {UID}, {UID})
assert not confine(VERIFIER, {UID}, [folder], [Rule(there + "/store", FILL)], PROFILE, 8)
"""


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "store/key").mkdir(parents=True)
    (tmp_path / "store/key/00000").touch()
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "store", tmp_path / "store/key"):
        folder.chmod(0o755)
    return tmp_path


def test_what_it_is_for(there: Path) -> None:
    code = """
fd = os.open("00000", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
attempt(os.pwritev, fd, [b"bytes"], 0)
attempt(os.ftruncate, fd, 0)
ours, theirs = channel.pair()
memory = os.memfd_create("chunks")
attempt(channel.send, ours, b"x")
print(channel.receive(theirs, 10)[0].decode())
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
"""
    assert said(CONFINED + code, there) == ["done"] * 3 + ["x", "thread"]


def test_what_it_may_not(there: Path) -> None:
    code = """
def opens(path, mode):
    open(path, mode).close()
attempt(opens, there + "/store/key/00001", "wb")
attempt(opens, there + "/file", "rb")
attempt(opens, "/etc/hosts", "rb")
attempt(os.listdir, there)
"""
    assert said(CONFINED + code, there) == ["EACCES"] * 4


@pytest.mark.parametrize("call", [
    "socket.socket()", "os.execv('/bin/true', ['true'])", "os.kill(os.getppid(), 0)", "os.unlink('/tmp/x')",
    "os.rename('/tmp/x', '/tmp/y')", "os.mkdir('/tmp/x')", "os.setuid(0)", "os.chmod('/tmp', 0)", "os.fork()",
])  # fmt: skip
def test_calls_that_end_it(call: Any, there: Path) -> None:
    done = run(CONFINED + call, there)
    assert done.returncode == -signal.SIGSYS or "PermissionError" in done.stderr, done.stderr
