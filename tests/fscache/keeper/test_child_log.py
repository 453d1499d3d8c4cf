"""What a process without privilege writes to standard error: lines of the log, and no more than is bearable."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import pytest

from nydus_erofs.fscache.keeper.children import child_log
from nydus_erofs.fscache.kernel.fd import Fd


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []

    class Logger:
        def warning(self, event: str, *, process: str, pid: int, line: str) -> None:
            assert (event, process, pid) == ("a process wrote", "worker", 7)
            lines.append(line)

    monkeypatch.setattr(child_log, "logger", Logger)
    monkeypatch.setattr(child_log, "_budget", child_log._Budget())
    return lines


def pour(*pieces: bytes) -> float:
    """Write these to the pipe, as a process might; seconds that it took to have them all logged."""
    log, end = os.pipe()

    def write() -> None:
        with open(end, "wb", buffering=0) as file:
            for piece in pieces:
                file.write(piece)
                time.sleep(0.01)

    threading.Thread(target=write, daemon=True).start()
    start = time.monotonic()
    asyncio.run(child_log.read_log("worker", 7, Fd(log)))
    return time.monotonic() - start


def test_lines(logged: list[str]) -> None:
    pour(b"one\ntw", b"o\n\nthree")
    assert logged == ["one", "two", "three"]


def test_nothing_that_a_terminal_obeys(logged: list[str]) -> None:
    pour(b"\x1b]0;title\x07 \x9b31m \xff \xe2\x80\xae \tcaf\xc3\xa9\r\n")
    (line,) = logged
    assert line.isprintable()
    assert "caf\u00e9" in line


def test_long_lines_are_cut(logged: list[str]) -> None:
    pour(b"x" * 3000 + b"\n", b"y" * 3000)
    assert {len(line) for line in logged} <= {child_log._LINE}
    assert {line[0] for line in logged} == {"x", "y"}


def test_who_writes_too_much_waits(logged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_log, "_AT_ONCE", 1000)
    monkeypatch.setattr(child_log, "_RATE", 10000)
    monkeypatch.setattr(child_log, "_budget", child_log._Budget())
    took: Any = pour(*[b"line of text\n" * 50] * 10)  # 6500 bytes
    assert len(logged) == 500
    assert took > 0.5
