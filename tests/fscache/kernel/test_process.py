"""Giving up privilege: what a process has left, and that nothing brings more back."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.root
UID = 60987
CHILD = f"""
import os
from nydus_erofs.fscache.kernel import process
from nydus_erofs.fscache.kernel.libc import lib
process.drop_privileges({UID})
"""


def run(code: Any) -> Any:
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD + code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_capability_is_left_anywhere() -> None:
    fields = dict(line.split(":\t") for line in run("print(open('/proc/self/status').read())").split("\n") if line)
    assert {fields[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert fields["Uid"] == fields["Gid"] == f"{UID}\t{UID}\t{UID}\t{UID}"
    assert (fields["Groups"].strip(), fields["NoNewPrivs"]) == ("", "1")


def test_nothing_brings_privilege_back() -> None:
    code = "for call in (os.setuid, os.setgid):\n try: call(0)\n except PermissionError: print('refused')\n"
    assert run(code).split() == ["refused"] * 2


def test_the_bits_are_locked() -> None:
    # PR_GET_SECUREBITS, PR_GET_DUMPABLE
    assert run("print(lib.prctl(27, 0, 0, 0, 0), lib.prctl(3, 0, 0, 0, 0))").split() == [str(0b11100011), "0"]
