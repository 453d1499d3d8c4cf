"""Wall time, CPU time and memory of a program together with all processes it starts."""

import os
import re
import resource
import subprocess
import threading
import time
from dataclasses import dataclass

INTERVAL = 0.05  # seconds between two looks at memory


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run took."""

    wall: float  # seconds
    cpu: float  # seconds, user and system, of the program and the children it waited for
    peak: int  # bytes: the largest sum of the proportional set sizes of all its processes, sampled
    largest: int  # bytes: the largest resident set of any single one of them, exact


def tree(pid: int) -> list[int]:
    """`pid` and its descendants, as far as they are still there."""
    found, pending = [], [pid]
    while pending:
        parent = pending.pop()
        found.append(parent)
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as children:
                    pending.extend(map(int, children.read().split()))
        except OSError:
            continue  # gone meanwhile
    return found


def memory(pid: int) -> int:
    """Bytes that `pid` and its descendants use together, shared pages counted once (Pss)."""
    total = 0
    for process in tree(pid):
        try:
            with open(f"/proc/{process}/smaps_rollup") as rollup:
                if match := re.search(r"^Pss:\s+(\d+) kB", rollup.read(), re.MULTILINE):
                    total += int(match[1]) << 10
        except OSError:
            continue
    return total


class Watch:
    """Samples the memory of a process tree from a thread; `peak` is the largest sum so far, in bytes."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(INTERVAL):
            self.peak = max(self.peak, memory(self._pid))

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return self.peak


def run(command: list[str], *, timeout: float = 3600) -> Usage:
    """Run to its end; output goes to stderr only if it fails.  Raises subprocess.CalledProcessError."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    watch = Watch(process.pid)
    killer = threading.Timer(timeout, process.kill)
    killer.start()
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    killer.cancel()
    peak = watch.stop()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return Usage(wall, used.ru_utime + used.ru_stime, peak, used.ru_maxrss << 10)


def labelled(programs: list[str], kind: str) -> list[tuple[str, str]]:
    """(label, program) of each "LABEL=PROGRAM" or "PROGRAM"; without a label the kind, numbered if needed."""
    found = []
    for number, program in enumerate(programs, 1):
        label, _, path = program.rpartition("=")
        found.append((label or (f"{kind} {number}" if len(programs) > 1 else kind), path))
    return found


def allow_files() -> None:
    """Raise the limit on open files as far as it goes, for programs started from here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def table(rows: list[list[str]]) -> str:
    """Rows of cells, the first row being the heads, as a Markdown table with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
