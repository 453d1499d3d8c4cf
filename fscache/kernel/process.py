"""Processes: giving up privilege for good, and running one risky call in a child."""

from __future__ import annotations

import errno
import os
import resource
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from .libc import checked, integer, lib

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 28, 38
# User 0 is nobody special, capabilities outlive no change of user and are handed to no program; and so for ever (the
# odd bits are locks). Not NO_SETUID_FIXUP: with it the change of user below would leave the capabilities.
_NOROOT, _KEEP_CAPS_LOCKED, _NO_AMBIENT = 0b11, 0b100000, 0b11000000
_CAPABILITY_V3 = 0x20080522  # two words each of effective, permitted and inheritable ones
_MOST_CAPABILITIES = 64
_MOST_FDS = 1 << 30  # closerange(3) is one call of close_range(2)
_STANDARD_ERROR, _LAST_FD = 2, (1 << 32) - 1
_CLOSE_RANGE, _CLOSE_RANGE_CLOEXEC = 436, 4  # Linux 5.11; the same number on every architecture
_RLIMIT_NOFILE_WANTED = 1 << 20
_CRASHED = 70  # exit code of a process that met a bug (EX_SOFTWARE)


def crash() -> NoReturn:
    """End the process for the error that is being handled, whichever thread met it: who waits for this process is to
    notice."""
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(_CRASHED)


def until_gone(serve: Callable[[], None]) -> NoReturn:
    """Serve whoever started this process to his end, and end with him."""
    try:
        serve()
    except ConnectionError:
        pass
    except BaseException:
        crash()
    os._exit(0)


def drop_privileges(uid: int) -> None:
    """Become user and group ``uid`` with no other groups, no capabilities and no way back.

    Import everything first: the program's own files may be readable to root alone.
    """
    _give_up_capabilities_for_good()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # The change of user took all that could be used, this takes those that a program could inherit.
    checked(lib.capset(struct.pack("=Ii", _CAPABILITY_V3, 0), bytes(24)), "capset")
    checked(lib.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    checked(lib.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")


def _give_up_capabilities_for_good() -> None:
    """Have no program that this process starts get capabilities, be it setuid or not. Needs CAP_SETPCAP; where the
    service was given none, that no program gains privilege (``PR_SET_NO_NEW_PRIVS``) is all there is to it."""
    if lib.prctl(_PR_SET_SECUREBITS, _NOROOT | _KEEP_CAPS_LOCKED | _NO_AMBIENT, 0, 0, 0) < 0:
        return
    for capability in range(_MOST_CAPABILITIES):
        if lib.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            return  # the kernel knows no more


def die_with_parent(parent: int) -> None:
    """Have this process killed when ``parent``, which forked it, ends."""
    checked(lib.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        os._exit(1)


def close_all_but(*kept: int) -> None:
    """Close every other descriptor."""
    low = 0
    for fd in sorted({*kept, _MOST_FDS}):
        if low < fd:
            os.closerange(low, fd)
        low = fd + 1


def own_descriptors() -> None:
    """Hand on to no program what this process was given, and have something open as 0, 1 and 2."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        os.set_inheritable(fd, True)
    os.close(fd)
    first, last = integer(_STANDARD_ERROR + 1), integer(_LAST_FD)
    checked(lib.syscall(_CLOSE_RANGE, first, last, integer(_CLOSE_RANGE_CLOEXEC)), "close_range")


def raise_file_limit() -> int:
    """Raise the limit on open descriptors as far as this process may; the limit now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (_RLIMIT_NOFILE_WANTED, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        except (OSError, ValueError):
            continue
        return wanted
    return soft


def fork_call(call: Callable[[], object]) -> tuple[int, int]:
    """Run ``call`` in a forked child; (its process id, a pipe that ends with the child).

    The pipe carries nothing when the call succeeded, and else the errno as text, a blank and the message.
    Only for single-threaded processes.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        _run_and_exit(call, write_end)
    os.close(write_end)
    return pid, read_end


def _run_and_exit(call: Callable[[], object], write_end: int) -> NoReturn:
    status = 1
    try:
        call()
        status = 0
    except BaseException as error:
        number = getattr(error, "number", None) or getattr(error, "errno", None) or errno.EIO
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        os.write(write_end, f"{number} {text}".encode(errors="replace"))
    finally:
        sys.stderr.flush()
        os._exit(status)


def call_in_child(call: Callable[[], object]) -> str:
    """Run ``call`` in a child and wait for it; empty when it succeeded, else what it said."""
    pid, pipe = fork_call(call)
    with os.fdopen(pipe, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said.partition(" ")[2]
