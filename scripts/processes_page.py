#!/usr/bin/env python3
"""Print docs/processes.md from the table of processes that the service follows.

python scripts/processes_page.py > docs/processes.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_args

from nydus_erofs.fscache.config.service import Config
from nydus_erofs.fscache.prepare.syscalls import PROFILE as PREPARE_CALLS
from nydus_erofs.fscache.processes import TABLE, Limit, Process
from nydus_erofs.fscache.proto import prepare, worker
from nydus_erofs.fscache.worker.syscalls import PROFILE as WORKER_CALLS

HEAD = """\
# Processes

Printed from `fscache/processes.py`, which the service itself follows, by `scripts/processes_page.py`; do not edit.
Why it is like this is in [privileges.md](privileges.md).
"""
CALLS = """\
## System calls

Any other ends the process, and the log says so (which call it was, the kernel's log, if the kernel has auditing).
*Checked* are those that depend on an argument. What does not pass fails with an errno, as do those that are
*refused*, and calls that are newer than the table.
"""
TAIL = """\
## What may be said

One packet of a socket each, JSON, with descriptors beside it where that is said. Whatever is not in this list, does
not fit its type and bounds, or cannot be true ends the process that said it.

"""


def main() -> None:
    print("\n".join(page()))


def page() -> Iterator[str]:
    yield HEAD
    yield from overview()
    for process in TABLE:
        yield from section(process)
    yield CALLS
    for name, profile in (("worker", WORKER_CALLS), ("prepare", PREPARE_CALLS)):
        yield f"- {name}: {names(profile.allowed)}"
        yield f"- {name}, checked: {names(profile.checked)}"
        if profile.refused:
            yield f"- {name}, refused: {names(profile.refused)}"
    yield ""
    yield TAIL.rstrip()
    yield ""
    for name, room, to, back in (
        ("worker", worker, worker.ToWorker, worker.ToKeeper),
        ("prepare", prepare, prepare.ToPrepare, prepare.ToKeeper),
    ):
        file = f"`fscache/proto/{room.__name__.rpartition('.')[2]}.py`"
        yield f"- keeper to {name} ({file}): {messages(to)}"
        yield f"- {name} to keeper: {messages(back)}"


def overview() -> Iterator[str]:
    yield "| process | runs as | capabilities | namespaces of its own | system calls | network |"
    yield "|---|---|---|---|---|---|"
    for process in TABLE:
        cells = (
            f"**{process.name}**", runs_as(process), process.capabilities, ", ".join(process.namespaces) or "none",
            "[a list](#system-calls)" if process.filtered else "all", process.network,
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"
    yield ""


def runs_as(process: Process) -> str:
    default = getattr(Config(), process.user, None)
    return f"`{process.user}` ({default})" if default else process.user


def section(process: Process) -> Iterator[str]:
    yield f"## {process.name}"
    yield ""
    yield f"{process.does[0].upper()}{process.does[1:]}."
    yield ""
    yield f"- started: {process.started}"
    umask = "" if process.umask is None else f"; umask {process.umask:03o}"
    yield f"- session: {process.session}{umask}"
    yield f"- descriptors: {'; '.join(process.descriptors)}"
    yield f"- environment: {environment(process)}"
    yield f"- files by name: {'; '.join(process.places)}"
    if process.limits:
        yield f"- limits: {'; '.join(map(limit, process.limits))}"
    if process.oom_score is not None:
        yield f"- when memory runs out: ended before others (`oom_score_adj` {process.oom_score}, if it is not more)"
    yield f"- hears: {process.hears}"
    yield f"- says: {process.says}"
    yield ""


def environment(process: Process) -> str:
    if process.environment is None:
        return "its starter's"
    return ", ".join(f"`{name}`" for name in process.environment) or "empty"


def limit(one: Limit) -> str:
    text = f"`{one.kind}` {size(one.base) if one.kind in ('AS', 'FSIZE') else one.base}"
    if one.each:
        text += f" and {size(one.each)} for each {one.what}"
    return f"{text} ({one.why})" if one.why else text


def size(value: int) -> str:
    for bits, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB")):
        if value and not value % (1 << bits):
            return f"{value >> bits} {unit}"
    return f"{value} bytes"


def names(calls: Iterable[str]) -> str:
    return ", ".join(sorted(calls))


def messages(union: object) -> str:
    return ", ".join(f"`{kind.__name__}`" for kind in get_args(union))


if __name__ == "__main__":
    main()
