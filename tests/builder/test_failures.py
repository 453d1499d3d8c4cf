"""What goes wrong ends in one line and an exit code, and leaves nothing behind."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "nydus_erofs", "build"]
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A few small files, and one that takes a while."""
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(20):
        (root / f"{number}").write_bytes(os.urandom(500) * 10)
    return root


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def build(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, **options
    )


def assert_refused(done: subprocess.CompletedProcess[str], code: int, message: str, out: Path) -> None:
    """One line on standard error, with a hint perhaps; nothing on standard output, and nothing in `out`."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert re.search(message, lines[0]), done.stderr
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  hint: ")), done.stderr
    assert done.stdout == ""
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--chunk-size", "0x1234"], 2, "--chunk-size 0x1234 is not a power of two from 0x1000 to 0x1000000"),
        (["--chunk-size", "0x2000000"], 2, "--chunk-size"),
        (["--chunk-size", "0"], 2, "--chunk-size"),
        (["--fs-version", "5"], 4, "--fs-version 5"),
        (["--batch-size", "0x100000"], 4, "--batch-size"),
        (["--type", "tar-rafs"], 4, "--type tar-rafs"),
        (["--workers", "0"], 2, "--workers 0"),
        (["--compression-level", "23"], 2, "--compression-level 23"),
        (["--compressor", "lz4_block", "--compression-level", "3"], 2, "--compression-level is for zstd"),
        (["--name", "a/b"], 2, "--name 'a/b'"),
        (["--exclude", "/"], 2, "--exclude '/'"),
    ],
)
def test_options(arguments: list[str], code: int, message: str, tree: Path, out: Path) -> None:
    assert_refused(build(tree, "-o", out, *arguments), code, message, out)


@pytest.mark.parametrize("arguments", [["--compressor", "brotli"], ["--digester", "md5"], ["--whiteout-spec", "x"],
                                       ["--chunk-size", "large"], ["--workers", "many"], ["--nonsense"]])  # fmt: skip
def test_values_that_no_option_has(arguments: list[str], tree: Path, out: Path) -> None:
    assert_refused(build(tree, "-o", out, *arguments), 2, arguments[0], out)


def test_no_place_for_the_output(tree: Path, out: Path) -> None:
    assert_refused(build(tree), 2, "no place for the blob", out)
    assert_refused(build(tree, "--blob", out / "blob"), 2, "no place for the bootstrap", out)
    (out.parent / "file").touch()
    assert_refused(build(tree, "-o", out.parent / "file" / "new"), 11, "cannot create .*new: Not a directory", out)
    assert_refused(build(tree, "-o", out.parent / "file"), 11, "cannot write to .*file: Not a directory", out)


@pytest.mark.parametrize("name", ["new", "new/dir", "new/dir/below"])
def test_output_directories_are_made(name: str, tree: Path, out: Path) -> None:
    """Those made for nothing are gone again."""
    (tree / "pipe").symlink_to("x")
    assert_refused(build(tree / "pipe", "-o", out / name), 2, "No such file", out)
    os.truncate(tree / "0", 2 << 40)
    assert_refused(build(tree, "-o", name, "--chunk-size", "0x1000", cwd=out), 4, "metadata needs more", out)
    os.truncate(tree / "0", 1)
    assert build(tree, "-o", name, cwd=out).returncode == 0
    assert len(list((out / name).iterdir())) == 3


def test_an_output_that_is_no_file(tree: Path, out: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert_refused(build(tree, "-o", out, "--blob", tmp_path / "fifo"), 2, "fifo exists and is not a file", out)


def test_one_path_for_two_outputs(tree: Path, out: Path) -> None:
    assert_refused(build(tree, "-o", out, "-B", out / "x", "-b", out / "x"), 2, "two outputs have the same path", out)


def test_sources_that_are_none(tree: Path, out: Path) -> None:
    assert_refused(build(tree / "0", "-o", out), 2, "/0 is not a directory", out)
    assert_refused(build(tree / "nothing", "-o", out), 2, "nothing: No such file or directory", out)
    assert_refused(build("/dev/null", "-o", out), 2, "/dev/null is not a directory", out)


def build_without_privilege(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As root still, but one whom permissions bind."""
    lost = "-dac_override,-dac_read_search"
    return subprocess.run(
        ["setpriv", f"--bounding-set={lost}", f"--inh-caps={lost}", *COMMAND, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.root
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_that_cannot_be_read(workers: str, tree: Path, out: Path) -> None:
    (tree / "secret").write_text("x")
    (tree / "secret").chmod(0)
    done = build_without_privilege(tree, "-o", out, "--workers", workers)
    assert_refused(done, 5, "/secret cannot be read: Permission denied", out)
    assert build_without_privilege(tree, "-o", out, "--exclude", "secret").returncode == 0


@pytest.mark.root
def test_a_directory_that_cannot_be_read(tree: Path, out: Path) -> None:
    (tree / "folder").mkdir(mode=0)
    assert_refused(build_without_privilege(tree, "-o", out), 5, "/folder cannot be read: Permission denied", out)


@pytest.mark.root
def test_an_output_directory_that_cannot_be_written(tree: Path, out: Path) -> None:
    out.chmod(0o555)
    assert_refused(build_without_privilege(tree, "-o", out), 11, "cannot write to .*/out: Permission denied", out)


# --- meanwhile --------------------------------------------------------------------------------------------


@pytest.fixture
def large_tree(tmp_path: Path) -> Path:
    """Some seconds of work: the last file in order is listed at once and read last."""
    root = tmp_path / "large"
    root.mkdir()
    noise = os.urandom(1 << 20)
    for number in range(2):
        with (root / f"{number}").open("wb") as file:
            for block in range(64):
                file.write(bytes([number, block]) + noise[2:])
    (root / "z").write_text("last")
    return root


class Running:
    """A build in the background that reads slowly enough to be disturbed."""

    def __init__(self, source: Path, out: Path, *arguments: str) -> None:
        self.out = out
        self.process = subprocess.Popen(
            [*COMMAND, source, "-o", out, "--log-level", "warn", "--compression-level", "15", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_until_started(self) -> None:
        """Until the blob under construction has bytes: everything is listed by then."""
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in self.out.glob(".*.tmp")):
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()
            time.sleep(0.01)

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def end(self) -> subprocess.CompletedProcess[str]:
        stdout, stderr = self.process.communicate(timeout=60)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, stdout, stderr)


@pytest.fixture
def running(large_tree: Path, out: Path) -> Iterator[Callable[..., Running]]:
    started = []

    def start(*arguments: str) -> Running:
        started.append(Running(large_tree, out, *arguments))
        started[-1].wait_until_started()
        return started[-1]

    yield start
    for run in started:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_that_changes(workers: str, running: Any, large_tree: Path, out: Path) -> None:
    run = running("--workers", workers)
    (large_tree / "z").write_text("other")
    assert_refused(run.end(), 5, "/z changed while the image was built", out)


def test_a_file_that_only_looks_the_same(running: Any, large_tree: Path, out: Path) -> None:
    """Same size, same mtime: the change time tells."""
    run = running("--workers", "2")
    before = (large_tree / "z").stat()
    (large_tree / "z").write_text("LAST")
    os.utime(large_tree / "z", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_refused(run.end(), 5, "/z changed while the image was built", out)


def test_a_file_that_vanishes(running: Any, large_tree: Path, out: Path) -> None:
    run = running("--workers", "2")
    (large_tree / "z").unlink()
    assert_refused(run.end(), 5, "/z vanished while the image was built", out)


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFLNK])
def test_a_file_that_becomes_something_else(kind: int, running: Any, large_tree: Path, out: Path) -> None:
    run = running("--workers", "2")
    (large_tree / "z").unlink()
    if kind == stat.S_IFLNK:
        (large_tree / "z").symlink_to("0")
    else:
        os.mknod(large_tree / "z", kind | 0o600)
    assert_refused(run.end(), 5, "/z changed while the image was built", out)


def test_a_worker_that_is_killed(running: Any, out: Path) -> None:
    run = running("--workers", "2")
    os.kill(run.workers()[1], signal.SIGKILL)
    assert_refused(run.end(), 1, "worker process [0-9]+ was killed by SIGKILL", out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals(number: signal.Signals, running: Any, out: Path) -> None:
    run = running("--workers", "2")
    workers = run.workers()
    run.process.send_signal(number)
    assert_refused(run.end(), 128 + number, f"ended by {number.name}", out)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_end_with_their_parent(running: Any) -> None:
    run = running("--workers", "2")
    workers = run.workers()
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_was_there_before_stays(running: Any, large_tree: Path, out: Path) -> None:
    small = large_tree.parent / "tree2"
    small.mkdir()
    (small / "file").write_text("old")
    assert build(small, "-o", out, "--name", "large").returncode == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    run = running()
    (large_tree / "z").write_text("other")
    assert run.end().returncode == 5
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.root
def test_a_full_disk(large_tree: Path, out: Path) -> None:
    assert _libc.mount(b"tmpfs", os.fsencode(out), b"tmpfs", 0, b"size=3m") == 0
    try:
        assert_refused(build(large_tree, "-o", out), 11, "cannot write to .*: No space left on device", out)
        assert os.statvfs(out).f_bfree * 4096 > (2 << 20)
    finally:
        assert _libc.umount2(os.fsencode(out), 0) == 0


# --- and again --------------------------------------------------------------------------------------------


def test_an_identical_blob_is_reused(tree: Path, out: Path) -> None:
    assert build(tree, "-o", out).returncode == 0
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in out.iterdir()}
    assert build(tree, "-o", out).returncode == 0
    after = {path.name: (path.stat().st_ino, path.read_bytes()) for path in out.iterdir()}
    (blob,) = (name for name in before if len(name) == 64)
    assert after[blob] == before[blob]
    assert after["tree.meta"][1] == before["tree.meta"][1]
    assert after["tree.meta"][0] != before["tree.meta"][0]
    assert after.keys() == before.keys()
