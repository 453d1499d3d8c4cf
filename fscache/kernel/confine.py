"""Giving up for good what a process has no need of, before the first byte of a stranger's.

In an order in which each step still may be done, and none can be undone. Only for a process with one thread: most of
it concerns the thread that calls.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Sequence
from functools import partial

from ..processes import Limit, Process
from . import landlock, seccomp
from .libc import checked, lib
from .process import close_all_but, die_with_parent, drop_privileges

# CLONE_NEW*. Not one of mounts: a copy of the mount table would keep images mounted.
_NAMESPACES = {"uts": 0x04000000, "ipc": 0x08000000, "net": 0x40000000}


def confine(
    process: Process,
    uid: int,
    descriptors: Sequence[int],
    rules: Sequence[landlock.Rule],
    calls: seccomp.Profile,
    count: int,
) -> list[str]:
    """Be what the table says of this kind of process. Import everything first.

    Args:
        uid: its user and group.
        descriptors: to keep besides standard input, output and error.
        rules: what of its places Landlock must know.
        calls: system calls that it needs from then on.
        count: of what its limits depend on.

    Returns:
        What the kernel does not do, one phrase each. The sandbox is weaker then; user and capabilities are given up
        in any case.
    """
    parent = os.getppid()
    missing: list[str] = []
    close_all_but(0, 1, 2, *descriptors)
    if process.umask is not None:
        os.umask(process.umask)
    if process.oom_score is not None:
        _try(missing, "oom_score_adj", partial(_go_first, process.oom_score))
    for name in process.namespaces:
        _try(missing, f"{name} namespace", partial(_unshare, name))
    for limit in process.limits:
        _lower(limit, count)
    _try(missing, "landlock", lambda: _restrict(process, rules))
    drop_privileges(uid)
    die_with_parent(parent)
    _try(missing, "seccomp", lambda: seccomp.install(calls))
    return missing


def _try(missing: list[str], what: str, step: Callable[[], object]) -> None:
    try:
        step()
    except OSError as error:
        missing.append(f"{what}: {error.strerror or error}")


def _go_first(score: int) -> None:
    """Raise ``oom_score_adj``, by which the kernel chooses whom to end when memory runs out."""
    with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        if int(file.read(16)) < score:
            file.write(b"%d" % score)


def _unshare(name: str) -> None:
    checked(lib.unshare(_NAMESPACES[name]), "unshare")


def _lower(limit: Limit, count: int) -> None:
    """Set a limit, soft and hard; one that is lower already stays."""
    kind = getattr(resource, f"RLIMIT_{limit.kind}")
    _, hard = resource.getrlimit(kind)
    most = limit.most(count) if hard == resource.RLIM_INFINITY else min(limit.most(count), hard)
    resource.setrlimit(kind, (most, most))


def _restrict(process: Process, rules: Sequence[landlock.Rule]) -> None:
    if not landlock.restrict(rules, connect=process.connect):
        raise OSError(0, "this kernel has none")
