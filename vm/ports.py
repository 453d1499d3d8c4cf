"""What leaves the guest: three virtio ports, each a pipe that QEMU writes and we read.

``stdout`` and ``stderr`` are the command's. ``status`` carries lines of the guest's first process:
``up SECONDS`` (its uptime as the command starts), ``exit CODE``, ``failed WHY``. A guest that dies
just ends them.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

TIMED_OUT = 124
"""The wall-clock limit passed, as timeout(1) has it."""
NO_STATUS = 125
"""The guest ended without telling a code: panic, hard reset or power-off by the command."""
RESET = 137
"""We pulled the plug because the caller asked for it, as a shell shows SIGKILL."""

_POWER_OFF_SECONDS = 15


@dataclass(slots=True)
class Outcome:
    """``code`` is the command's or one of the above; ``boot`` and ``seconds`` are seconds of guest uptime
    before the command and of wall clock in all."""

    code: int = NO_STATUS
    boot: float = 0.0
    seconds: float = 0.0
    reason: str = "the guest ended without an exit code"


class Ports:
    """Owns the pipes; ``pump`` consumes them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._pipes = {name: os.pipe() for name in names}
        self._status = b""
        self._streams: dict[str, BinaryIO] = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}

    def guest_ends(self) -> list[int]:
        """Descriptors that QEMU must inherit."""
        return [write for _, write in self._pipes.values()]

    def arguments(self) -> Iterator[str]:
        """QEMU's words for the ports."""
        for number, (name, (_, write)) in enumerate(self._pipes.items(), 1):
            yield from ("-add-fd", f"fd={write},set={number}")
            yield from ("-chardev", f"file,id={name},path=/dev/fdset/{number},append=on")
            yield from ("-device", f"virtserialport,chardev={name},name={name}")

    def pump(self, qemu: subprocess.Popen[bytes], timeout: float | None, reset_after: float | None) -> Outcome:
        """Pass output on until QEMU is gone; kills it when a limit passes. Limits are in seconds."""
        outcome = Outcome()
        limit = time.monotonic() + timeout if timeout else float("inf")
        reset = float("inf")
        done = False
        with selectors.DefaultSelector() as selector:
            for name, (read, write) in self._pipes.items():
                os.close(write)
                selector.register(read, selectors.EVENT_READ, name)
            while selector.get_map():
                wait = min(limit, reset) - time.monotonic()
                ready = selector.select(None if wait == float("inf") else max(wait, 0))
                for key, _ in ready:
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fd)
                        os.close(key.fd)
                    elif key.data != "status":
                        self._streams[key.data].write(data)
                        self._streams[key.data].flush()
                    else:
                        for word, value in self._lines(data):
                            if word == "up":
                                outcome.boot = float(value)
                                reset = time.monotonic() + reset_after if reset_after else reset
                            elif word == "exit":
                                outcome.code, outcome.reason, done = int(value), "", True
                                limit, reset = time.monotonic() + _POWER_OFF_SECONDS, float("inf")
                            else:
                                outcome.reason = value
                if time.monotonic() >= min(limit, reset) and qemu.poll() is None:
                    if reset <= limit:
                        outcome.code, outcome.reason = (
                            RESET,
                            f"reset {reset_after:g} s after the command started",
                        )
                    elif not done:
                        before = "" if outcome.boot else ", before the command could start"
                        outcome.code, outcome.reason = (
                            TIMED_OUT,
                            f"time limit of {timeout:g} s passed{before}",
                        )
                    else:
                        outcome.reason = "the guest did not power off and was stopped"
                    limit = reset = float("inf")
                    qemu.kill()
        qemu.wait()
        return outcome

    def _lines(self, data: bytes) -> Iterator[tuple[str, str]]:
        *lines, self._status = (self._status + data).split(b"\n")
        for line in lines:
            word, _, value = line.decode(errors="replace").partition(" ")
            yield word, value
