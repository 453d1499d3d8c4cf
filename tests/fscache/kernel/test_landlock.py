"""Landlock: what a process gave up it does not get back, whoever it is."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nydus_erofs.fscache.kernel import landlock
from nydus_erofs.fscache.kernel.libc import ffi
from tests.kit.child import said

CONFINED = """
import socket
from nydus_erofs.fscache.kernel.landlock import FILL, MAKE, READ, Rule, restrict
from nydus_erofs.fscache.kernel.libc import lib
def enforce(*rules, connect=False):
    lib.prctl(38, 1, 0, 0, 0)  # no new privileges
    assert restrict([Rule(*rule) for rule in rules], connect=connect)
def opens(path, mode):
    open(path, mode).close()
there = sys.argv[1] if sys.argv[1:] else ""
"""


@pytest.fixture
def there(tmp_path: Path) -> Any:
    """A folder with a folder with a file."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file").write_text("text")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").write_text("text")
    return tmp_path


def test_nothing(there: Any) -> None:
    code = """
before = os.open(there + "/in/file", os.O_RDWR)
enforce()
attempt(opens, there + "/in/file", "rb")
attempt(opens, there + "/in/file", "r+b")
attempt(opens, there + "/in/new", "wb")
attempt(os.mkdir, there + "/in/new")
attempt(os.listdir, there)
attempt(os.unlink, there + "/in/file")
attempt(os.execv, "/bin/true", ["true"])
attempt(os.stat, there + "/in/file")
attempt(os.pwrite, before, b"TEXT", 0)
"""
    assert said(CONFINED + code, there) == ["EACCES"] * 7 + ["done"] * 2
    assert (there / "in/file").read_text() == "TEXT"


def test_reading_one_folder(there: Any) -> None:
    code = """
enforce((there + "/in", READ), (there + "/nowhere", READ))
attempt(opens, there + "/in/file", "rb")
attempt(os.listdir, there + "/in")
attempt(opens, there + "/in/file", "r+b")
attempt(os.truncate, there + "/in/file", 0)
attempt(opens, there + "/in/../out/file", "rb")
"""
    words = said(CONFINED + code, there)
    assert words == ["done", "done", "EACCES", "EACCES" if landlock.version() >= 3 else "done", "EACCES"]


def test_reading_one_file(there: Any) -> None:
    code = """
enforce((there + "/in/file", READ))
attempt(opens, there + "/in/file", "rb")
attempt(opens, there + "/out/file", "rb")
"""
    assert said(CONFINED + code, there) == ["done", "EACCES"]


def test_writing_what_is_there(there: Any) -> None:
    code = """
folder = os.open(there, os.O_RDONLY)
enforce((there + "/in", FILL))
fd = os.open("in/file", os.O_RDWR, dir_fd=folder)
attempt(os.ftruncate, fd, 0)
attempt(os.pwrite, fd, b"TEXT", 0)
attempt(opens, there + "/in/new", "wb")
attempt(os.unlink, there + "/in/file")
attempt(os.rename, there + "/in/file", there + "/in/other")
attempt(os.listdir, there + "/in")
"""
    assert said(CONFINED + code, there) == ["done"] * 2 + ["EACCES"] * 4


def test_creating_below_a_descriptor(there: Any) -> None:
    code = """
enforce((os.open(there + "/in", os.O_RDONLY), MAKE))
os.chdir(there + "/in")
attempt(os.mkdir, "new")
attempt(opens, "new/file", "wb")
attempt(os.symlink, "file", "new/link")
attempt(os.mkfifo, "new/fifo")
attempt(opens, "../out/file", "wb")
"""
    assert said(CONFINED + code, there) == ["done", "done", "EACCES", "EACCES", "EACCES"]


def test_threads_that_start_later(there: Any) -> None:
    code = """
enforce()
threading.Thread(target=attempt, args=(opens, there + "/in/file", "rb")).start()
"""
    assert said(CONFINED + code, there) == ["EACCES"]


@pytest.mark.skipif(landlock.version() < 6, reason="Landlock scopes signals since Linux 6.12")
def test_signals_for_others() -> None:
    code = """
reads, writes = os.pipe()
child = os.fork()
if not child:
    os.close(writes)
    os.read(reads, 1)
    os._exit(0)
enforce()
attempt(os.kill, os.getpid(), 0)
attempt(os.kill, child, 9)
attempt(os.kill, os.getppid(), 0)
"""
    # Its child was started before it gave up anything.
    assert said(CONFINED + code) == ["done", "EPERM", "EPERM"]


@pytest.mark.skipif(landlock.version() < 4, reason="Landlock restricts TCP since Linux 6.7")
@pytest.mark.parametrize(("connect", "words"), [(True, ["EACCES", "ECONNREFUSED"]), (False, ["EACCES", "EACCES"])])
def test_tcp(connect: Any, words: Any) -> None:
    code = f"""
enforce(connect={connect})
attempt(socket.socket().bind, ("127.0.0.1", 0))
attempt(socket.socket().connect, ("127.0.0.1", 1))
"""
    assert said(CONFINED + code) == words


def test_a_kernel_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)
    assert landlock.restrict([landlock.Rule("/", landlock.READ)], connect=False) == 0
    assert os.listdir("/")


def test_rights_of_older_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ruleset names no more than the kernel knows: any more would be EINVAL there."""
    for version, known in enumerate((13, 14, 15, 15, 16, 16), 1):
        asked: list[Any] = []
        monkeypatch.setattr(landlock, "version", lambda version=version: version)
        calls = SimpleNamespace(syscall=lambda *arguments, asked=asked: asked.append(arguments) or os.dup(0))
        monkeypatch.setattr(landlock, "lib", calls)
        landlock.restrict([], connect=False)
        handled = landlock._RULESET.unpack(bytes(ffi.buffer(asked[0][1])))
        assert handled == ((1 << known) - 1, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
