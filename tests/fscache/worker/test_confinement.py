"""A worker that gave everything up: what it is for it still can do, and nothing else."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.kit.child import UID, run, said

pytestmark = pytest.mark.root
CONFINED = f"""
import fcntl, mmap, socket, ssl, subprocess, termios
from nydus_erofs.fscache.kernel.confine import confine
from nydus_erofs.fscache.kernel.landlock import READ, Rule
from nydus_erofs.fscache.kernel.libc import integer, lib
from nydus_erofs.fscache.processes import WORKER
from nydus_erofs.fscache.worker.__main__ import readable
from nydus_erofs.fscache.worker.syscalls import PROFILE
"server".encode("idna")
assert not confine(WORKER, {UID}, [], [Rule(path, READ) for path in readable([], {{}})], PROFILE, 8)
"""
# Files alone: as root, whom nothing else would keep from them.
FILES_CONFINED = """
from nydus_erofs.fscache.kernel.landlock import FILL, READ, Rule, restrict
from nydus_erofs.fscache.worker.__main__ import readable
def opens(path, mode):
    open(path, mode).close()
def confine(store, certificates):
    rules = [Rule(store, FILL), *(Rule(path, READ) for path in readable(certificates, os.environ))]
    assert restrict(rules, connect=True)
there = sys.argv[1]
"""


def test_threads_yes_processes_no() -> None:
    code = """
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
attempt(os.fork)
attempt(subprocess.run, ["/bin/true"])
"""
    assert said(CONFINED + code) == ["thread", "EPERM", "EPERM"]


@pytest.mark.parametrize("call", [
    "os.execv('/bin/true', ['true'])", "os.kill(os.getppid(), 0)", "os.mknod('/tmp/x')", "os.setuid(0)",
    "os.chroot('/')", "lib.mount(b'', b'', b'', 0, b'')", "lib.syscall(integer(425), integer(1))",  # io_uring_setup
    "os.chown('/tmp', 0, 0)", "socket.socket().listen()", "os.setpriority(0, 0, 5)",
])  # fmt: skip
def test_calls_that_end_it(call: Any) -> None:
    assert run(CONFINED + call).returncode == -signal.SIGSYS


def test_arguments_that_fail() -> None:
    code = """
attempt(fcntl.ioctl, 2, termios.TIOCSTI, b"x")
attempt(socket.socket, socket.AF_PACKET)
attempt(mmap.mmap, -1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_WRITE | mmap.PROT_EXEC)
attempt(os.mkdir, "/tmp/x")
attempt(os.unlink, "/tmp/x")
print(lib.prctl(4, 1, 0, 0, 0))  # PR_SET_DUMPABLE
"""
    assert said(CONFINED + code) == ["ENOTTY", "EAFNOSUPPORT", "EACCES", "EROFS", "EROFS", "-1"]


def test_the_network() -> None:
    code = """
(address, *_) = socket.getaddrinfo("localhost", 1, socket.AF_INET, socket.SOCK_STREAM)
print(address[4][0])
attempt(socket.create_connection, ("127.0.0.1", 1))
attempt(socket.socket(socket.AF_UNIX).connect, "/nowhere")
attempt(ssl.create_default_context)
attempt(open, "/etc/hosts")
attempt(open, "/dev/urandom")
"""
    assert said(CONFINED + code) == ["127.0.0.1", "ECONNREFUSED", "ENOENT", "done", "done", "done"]


def test_segment_files(tmp_path: Path) -> None:
    (tmp_path / "store/key").mkdir(parents=True)
    (tmp_path / "store/key/00000").touch()
    (tmp_path / "file").touch()
    code = """
folder = os.open(there + "/store/key", os.O_RDONLY)
confine(there + "/store", [])
fd = os.open("00000", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
attempt(os.pwritev, fd, [b"bytes"], 0)
attempt(os.ftruncate, fd, 0)
attempt(opens, there + "/store/key/00001", "wb")
attempt(os.unlink, there + "/store/key/00000")
attempt(opens, there + "/file", "rb")
attempt(opens, "/etc/hosts", "r+b")
attempt(opens, "/proc/self/status", "rb")
attempt(os.listdir, "/tmp")
"""
    assert said(FILES_CONFINED + code, tmp_path) == ["done"] * 2 + ["EACCES"] * 6


def test_certificates_and_credentials_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ca/ca.pem", "aws/config", "token/token", "other/file"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "aws/config").write_text(f"[default]\nweb_identity_token_file = {tmp_path}/token/token\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws/config"))
    code = """
confine(there + '/none', [there + "/ca/ca.pem"])
for name in ("ca/ca.pem", "aws/config", "token/token", "other/file"):
    attempt(opens, f"{there}/{name}", "rb")
attempt(opens, there + "/ca/ca.pem", "r+b")
"""
    assert said(FILES_CONFINED + code, tmp_path) == ["done", "done", "done", "EACCES", "EACCES"]


def test_files_that_are_replaced_under_their_names(tmp_path: Path) -> None:
    """As tokens and bundles are when they are renewed."""
    for name in ("old", "new"):
        (tmp_path / name).write_text(name)
    code = """
asked, ask = os.pipe()
if not os.fork():
    os.read(asked, 1)
    os.rename(there + "/new", there + "/old")
    os._exit(0)
confine(there + '/none', [there + "/old"])
print(open(there + "/old").read())
os.write(ask, b"!")
os.wait()
print(open(there + "/old").read())
"""
    assert said(FILES_CONFINED + code, tmp_path) == ["old", "new"]


def test_a_file_at_the_root_opens_no_more_than_itself() -> None:
    code = "confine(there + '/none', ['/nowhere.pem'])\nattempt(os.listdir, '/')\nattempt(os.listdir, '/var')"
    assert said(FILES_CONFINED + code, "") == ["EACCES", "EACCES"]


def test_what_the_kernel_lacks_is_said() -> None:
    code = """
from nydus_erofs.fscache.kernel import landlock, seccomp
from nydus_erofs.fscache.kernel.confine import confine
from nydus_erofs.fscache.processes import WORKER
from nydus_erofs.fscache.worker.syscalls import PROFILE
landlock.version = lambda: 0
seccomp._ARCHITECTURES = {}
print(*confine(WORKER, %d, [], [], PROFILE, 8), sep="\\n")
"""
    done = run(code % UID)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert (first, second[:31]) == ("landlock: this kernel has none", "seccomp: there is no filter for")
