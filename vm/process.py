"""Running other programs, and one error for everything that stops us."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class VmError(Exception):
    """One line for people, with what to do about it in ``hint``."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.args[0]} ({self.hint})" if self.hint else str(self.args[0])


def output(command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and return its standard output.

    Raises VmError with the last lines it wrote when it is missing or fails.
    """
    try:
        done = subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        raise VmError(f"{command[0]} is not installed") from None
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise VmError(f"{' '.join(command[:3])} ... failed with code {done.returncode}:\n{tail}")
    return done.stdout


def pipeline(*commands: Sequence[str]) -> None:
    """Run ``a | b | c``; raises VmError when any of them fails."""
    processes: list[subprocess.Popen[bytes]] = []
    for position, command in enumerate(commands):
        last = position == len(commands) - 1
        process = subprocess.Popen(
            command,
            stdin=processes[-1].stdout if processes else subprocess.DEVNULL,
            stdout=None if last else subprocess.PIPE,
        )
        if processes and (upstream := processes[-1].stdout) is not None:
            upstream.close()  # so that an early end downstream reaches the writer as SIGPIPE
        processes.append(process)
    for process, command in zip(reversed(processes), reversed(commands), strict=True):
        if process.wait():
            raise VmError(f"{' '.join(command[:3])} ... failed with code {process.returncode}")


def say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)
