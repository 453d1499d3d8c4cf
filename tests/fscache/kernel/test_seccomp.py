"""System call filters: their programs, read as the kernel reads them, and at work in a child."""

from __future__ import annotations

import errno
import re
import signal
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nydus_erofs.fscache.kernel import seccomp
from nydus_erofs.fscache.kernel.seccomp import Check, Profile
from nydus_erofs.fscache.kernel.syscall_numbers import NEWEST, NUMBERS
from nydus_erofs.fscache.prepare import syscalls as prepare
from nydus_erofs.fscache.verifier import syscalls as verifier
from nydus_erofs.fscache.worker import syscalls as worker
from tests.kit.child import run, said

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
PROFILES = {"worker": worker.PROFILE, "prepare": prepare.PROFILE, "verifier": verifier.PROFILE}
HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}
ALLOW, KILL = 0x7FFF0000, 0x80000000


def failing(number: Any) -> Any:
    return 0x50000 | number


def verdict(code: Any, number: Any, audit: Any, *arguments: object) -> Any:
    """What a program says of a call: the few instructions of BPF that there are, one after the other."""
    data = struct.pack("=IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("=HBBI", code))
    at = value = 0
    while True:
        operation, yes, no, operand = program[at]
        at += 1
        match operation:
            case 0x20:
                (value,) = struct.unpack_from("=I", data, operand)
            case 0x54:
                value &= operand
            case 0x15:
                at += yes if value == operand else no
            case 0x35:
                at += yes if value >= operand else no
            case 0x06:
                return operand
            case _:
                raise AssertionError(hex(operation))


@pytest.fixture(params=[(machine, name) for machine in MACHINES for name in PROFILES], ids="-".join)
def judge(request: Any) -> Any:
    """The verdict of a real profile on a real machine."""
    machine, name = request.param
    audit, column = MACHINES[machine]
    code = seccomp.program(PROFILES[name], machine)
    assert len(code) // 8 <= 4096
    numbers = {call: numbers[column] for call, numbers in NUMBERS.items() if numbers[column] is not None}
    return SimpleNamespace(
        of=lambda number, *arguments: verdict(code, number, audit, *arguments),
        elsewhere=lambda number: verdict(code, number, 0x40000003),  # i386
        profile=PROFILES[name], numbers=numbers, machine=machine,
    )  # fmt: skip


def test_what_is_named_is_allowed_and_nothing_else(judge: Any) -> None:
    named = {judge.numbers.get(name) for name in judge.profile.allowed}
    asked = {
        judge.numbers[name] for name in (*judge.profile.checked, *judge.profile.refused) if name in judge.numbers
    }
    assert {number for number in range(NEWEST + 1) if judge.of(number) == ALLOW} - asked == named - {None}
    for number in set(range(NEWEST + 1)) - named - asked - {435}:
        assert judge.of(number) == KILL


def test_refused_is_said_with_an_errno(judge: Any) -> None:
    for name, number in judge.profile.refused.items():
        if name in judge.numbers:
            assert judge.of(judge.numbers[name]) == failing(number)


def test_arguments(judge: Any) -> None:
    for name, check in judge.profile.checked.items():
        number, zeros = judge.numbers[name], [0] * check.argument
        for value in check.values:
            assert judge.of(number, *zeros, value) == ALLOW
            assert judge.of(number, *zeros, value | ~check.mask & 0xFFFFFFFF) == ALLOW
        assert check.mask not in check.values
        assert judge.of(number, *zeros, check.mask) == failing(check.otherwise)


def test_what_came_later_is_not_there(judge: Any) -> None:
    assert {judge.of(number) for number in (435, NEWEST + 1, 462, 1000)} == {failing(errno.ENOSYS)}  # 435: clone3


def test_numbers_of_another_architecture(judge: Any) -> None:
    assert judge.elsewhere(judge.numbers["read"]) == KILL
    assert judge.of(0x40000000 | judge.numbers["read"]) == KILL  # x32
    assert judge.of(0xFFFFFFFF) == KILL


def test_the_table_is_the_kernels() -> None:
    """Wherever its headers are installed."""
    for machine, path in HEADERS.items():
        if not Path(path).exists():
            continue
        found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(path).read_text()))
        found.setdefault("newfstatat", found.get("fstatat"))
        for name, numbers in NUMBERS.items():
            number = numbers[MACHINES[machine][1]]
            assert str(number) == found.get(name, "None"), name


def test_the_table_has_only_what_is_named() -> None:
    named = {name for p in PROFILES.values() for name in (*p.allowed, *p.checked, *p.refused)}
    assert named == set(NUMBERS)
    assert all(len({*p.allowed, *p.checked, *p.refused}) == sum(map(len, p)) for p in PROFILES.values())


def test_a_machine_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(machine="riscv64"))
    nothing = Profile(frozenset(), {}, {})
    with pytest.raises(OSError, match="no filter for riscv64"):
        seccomp.install(nothing)


FILTERED = """
from nydus_erofs.fscache.kernel import seccomp
from nydus_erofs.fscache.kernel.libc import lib
from nydus_erofs.fscache.worker.syscalls import PROFILE
def install(allowed=(), refused={}):
    lib.prctl(38, 1, 0, 0, 0)  # no new privileges
    profile = seccomp.Profile(PROFILE.allowed.union(allowed), PROFILE.checked, refused)
    seccomp.install(profile)
"""


def test_a_call_outside_ends_the_process() -> None:
    done = run(FILTERED + "install(); print('alive', flush=True); os.sched_yield(); os.setpriority(0, 0, 5)")
    assert (done.returncode, done.stdout) == (-signal.SIGSYS, "alive\n")


def test_of_any_thread() -> None:
    code = "install(); threading.Thread(target=os.setpriority, args=(0, 0, 5)).start(); threading.Event().wait(50)"
    assert run(FILTERED + code).returncode == -signal.SIGSYS


def test_of_threads_that_were_there_before() -> None:
    code = """
go = threading.Event()
threading.Thread(target=lambda: (go.wait(), attempt(os.unlink, "/nowhere"))).start()
attempt(os.unlink, "/nowhere")
install(refused={"unlink": errno.EROFS, "unlinkat": errno.EROFS})
go.set()
"""
    assert said(FILTERED + code) == ["ENOENT", "EROFS"]


def test_without_a_right_to_it() -> None:
    code = "attempt(seccomp.install, PROFILE)"
    assert said(FILTERED + "if not os.geteuid(): os.setresuid(65534, 65534, 65534)\n" + code) == ["EACCES"]


def test_a_check_looks_at_bits() -> None:
    check = Check(2, (0,), errno.EACCES, mask=4)
    code = seccomp.program(Profile(frozenset(), {"mprotect": check}, {}), "x86_64")
    assert verdict(code, 10, 0xC000003E, 0, 0, 3) == ALLOW
    assert verdict(code, 10, 0xC000003E, 0, 0, 7) == failing(errno.EACCES)
