"""Logging never waits for who reads it, and never fails."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

WRITER = """
import sys
from nydus_erofs.fscache.keeper import log
log.configure("info")
for number in range(int(sys.argv[1])):
    log.logger().info("x" * 100, number=number)
print("done", flush=True)
"""


def write(stderr: int, lines: int = 3000) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(lines)], stderr=stderr, stdout=subprocess.PIPE, timeout=30, check=True
    )
    return done.stdout.decode().strip()


def test_a_pipe_that_nobody_reads() -> None:
    reading, writing = os.pipe()
    assert write(writing) == "done"
    os.close(writing)
    with open(reading, "rb") as file:
        assert file.read().startswith(b'{"number": 0')


def test_a_pipe_whose_reader_is_gone() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert write(writing) == "done"
    os.close(writing)


def test_a_journal_that_is_busy() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert write(theirs.fileno()) == "done"


@pytest.mark.parametrize("stopped", [True, False])
def test_a_terminal(stopped: bool) -> None:
    """Stopped with Ctrl-S, or closed."""
    ours, theirs = pty.openpty()
    if stopped:
        os.write(ours, b"\x13")
    else:
        os.close(ours)
    assert write(theirs) == "done"
    assert os.get_blocking(theirs), "its other users have it as it was"
    os.close(theirs)


def test_whoever_reads_gets_every_line(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    got: list[bytes] = []

    def read() -> None:
        with open(reading, "rb") as file:
            got.extend(file.read().splitlines())

    reader = threading.Thread(target=read)
    reader.start()
    write(writing, 100)
    os.close(writing)
    reader.join(20)
    assert len(got) == 100
    path = tmp_path / "log"
    with open(path, "wb") as file:
        write(file.fileno(), 5000)
    assert len(path.read_bytes().splitlines()) == 5000
