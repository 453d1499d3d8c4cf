"""A child that gives something up and then tries what it should not be able to do any more, and what it should."""

from __future__ import annotations

import subprocess

from tests.kit.command import PYTHON

UID = 60987
# `attempt(call, *arguments)` says how a call went: "done", or the name of its errno.
_SAYING = """
import errno, os, signal, sys, threading
def attempt(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
    else:
        print("done", flush=True)
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, ``attempt`` and some modules at hand; ``sys.argv[1:]`` are the arguments."""
    command = [*PYTHON, "-c", _SAYING + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def said(code: str, *arguments: object) -> list[str]:
    """Words that a child says which ends well."""
    done = run(code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
