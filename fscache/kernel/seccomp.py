"""System call filters: a process says which calls it needs, and the kernel ends it at any other.

A filter is a program of classic BPF that looks at ``struct seccomp_data`` (linux/seccomp.h) before each call: its
number, the architecture of the process, and its arguments as numbers. What a pointer leads to is not seen.

A call outside the profile is a bug or an intruder. It ends the process (SIGSYS, exit code -31), because an error that
some library swallows would be noticed by nobody. What libraries try and can do without fails with an errno instead,
as on a kernel that lacks it: arguments outside a check, calls that a profile names as refused, clone3 (its flags are
in memory; libc then takes clone), and whatever is newer than this table.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from typing import NamedTuple

from .libc import checked, ffi, integer, lib
from .syscall_numbers import NEWEST, NUMBERS

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND...
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, how many to skip if true, if false, operand
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # bytes from the start of struct seccomp_data
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_*; _KILL ends all threads
_SET_FILTER, _ACTION_AVAILABLE, _TSYNC = 1, 2, 1
_X32 = 0x40000000
_CLONE3 = 435
_ALL_BITS = 0xFFFFFFFF


class Check(NamedTuple):
    """Which values of an argument are allowed: those that, with ``mask``, are one of ``values``. Others fail with
    ``otherwise``. Only the low 32 bits are looked at: of arguments that have no more."""

    argument: int
    values: tuple[int, ...]
    otherwise: int
    mask: int = _ALL_BITS


class Profile(NamedTuple):
    """The calls that a process needs, those that depend on an argument, and those that fail with an errno."""

    allowed: frozenset[str]
    checked: Mapping[str, Check]
    refused: Mapping[str, int]


class _Architecture(NamedTuple):
    audit: int  # AUDIT_ARCH_*
    column: int  # of NUMBERS
    seccomp: int  # number of seccomp(2)


_ARCHITECTURES = {"x86_64": _Architecture(0xC000003E, 0, 317), "aarch64": _Architecture(0xC00000B7, 1, 277)}


def install(profile: Profile) -> None:
    """Filter the calls of this process from now on, in all its threads and for good. Needs PR_SET_NO_NEW_PRIVS.

    Raises:
        OSError: there is no filter for this machine, or the kernel has none.
    """
    machine = os.uname().machine
    architecture = _ARCHITECTURES.get(machine)
    if architecture is None or ffi.sizeof("void *") != 8:
        raise OSError(errno.ENOSYS, f"there is no filter for {machine}")
    number = integer(architecture.seccomp)
    action = ffi.new("uint32_t *", _KILL)
    checked(lib.syscall(number, integer(_ACTION_AVAILABLE), integer(0), action), "seccomp")
    code = program(profile, machine)
    instructions = ffi.from_buffer(code)
    address = int(ffi.cast("uintptr_t", instructions))
    header = struct.pack("@HP", len(code) // _INSTRUCTION.size, address)  # struct sock_fprog
    result = lib.syscall(number, integer(_SET_FILTER), integer(_TSYNC), ffi.from_buffer(header))
    if checked(result, "seccomp"):
        raise OSError(errno.ESRCH, f"seccomp: thread {result} has a filter of its own")


def program(profile: Profile, machine: str) -> bytes:
    """A profile as BPF for a machine (``os.uname().machine``)."""
    architecture = _ARCHITECTURES[machine]
    code = [
        _instruction(_LOAD, _ARCHITECTURE),
        *_unless(architecture.audit, _KILL),
        _instruction(_LOAD, _NUMBER),
        *_from(_X32, _KILL),  # on x86_64 the same calls once more, with pointers of 32 bits
        *_when(_CLONE3, _ERRNO | errno.ENOSYS),
        *_from(NEWEST + 1, _ERRNO | errno.ENOSYS),
    ]
    for name, number in _numbers(profile.refused, architecture):
        code += _when(number, _ERRNO | profile.refused[name])
    for name, number in _numbers(profile.checked, architecture):
        look = _checked(profile.checked[name])
        code += [_instruction(_EQUAL, number, no=len(look)), *look]
    for _, number in _numbers(profile.allowed, architecture):
        code += _when(number, _ALLOW)
    return b"".join([*code, _instruction(_RETURN, _KILL)])


def _numbers(names: Mapping[str, object] | frozenset[str], architecture: _Architecture) -> list[tuple[str, int]]:
    """(name, number) of those calls that an architecture has."""
    found = ((name, NUMBERS[name][architecture.column]) for name in sorted(names))
    return [(name, number) for name, number in found if number is not None]


def _checked(check: Check) -> list[bytes]:
    code = [_instruction(_LOAD, _ARGUMENTS + 8 * check.argument), _instruction(_AND, check.mask)]
    for value in check.values:
        code += _when(value, _ALLOW)
    return [*code, _instruction(_RETURN, _ERRNO | check.otherwise)]


def _when(value: int, action: int) -> list[bytes]:
    return [_instruction(_EQUAL, value, no=1), _instruction(_RETURN, action)]


def _unless(value: int, action: int) -> list[bytes]:
    return [_instruction(_EQUAL, value, yes=1), _instruction(_RETURN, action)]


def _from(value: int, action: int) -> list[bytes]:
    return [_instruction(_AT_LEAST, value, no=1), _instruction(_RETURN, action)]


def _instruction(code: int, operand: int, yes: int = 0, no: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, yes, no, operand)
