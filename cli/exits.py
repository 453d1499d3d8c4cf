"""How a command ends: an error becomes one line and an exit code. Without click: ``quick.py`` says why."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ..erofs.errors import NydusErofsError, ServiceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_KILLED_BY = 128  # the shell's exit code for a signal is this much more than the signal


def require_root(what: str) -> None:
    """ServiceError unless this is root."""
    if os.geteuid() != 0:
        raise ServiceError(f"{what} needs root", hint="run it with sudo")


def fail(error: NydusErofsError) -> int:
    """Print an error as one line (and its hint as a second) on standard error; its exit code."""
    _say(error.message)
    if error.hint:
        sys.stderr.write(f"  hint: {error.hint}\n")
    return error.exit_code


def _say(what: str) -> None:
    sys.stderr.write(f"nydus-erofs: {what}\n")


def end_with(call: Callable[[], int]) -> NoReturn:
    """Run a command to its exit code, and exit with it or with that of its error."""
    try:
        sys.exit(call())
    except NydusErofsError as error:
        sys.exit(fail(error))
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(_KILLED_BY + 2)  # SIGINT
    except BrokenPipeError:
        # The reader of our output went away; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_KILLED_BY + 13)  # SIGPIPE
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _say(f"{error.strerror or error}{where}")
        sys.exit(1)
