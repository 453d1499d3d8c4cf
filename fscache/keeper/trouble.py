"""Trouble of the host: a full or failing disk, no descriptors, no processes. Any call may meet it, and no such error
ends the service.

What a request runs into it is refused for, in one line with a hint. What the service does by itself is logged, not in
a flood, and tried again where that makes sense (``tasks.py``). Only a call that made no sense is a bug, and ends the
process: who can say what else is broken?
"""

from __future__ import annotations

import errno
import os
import time
from typing import Any

from ...erofs.errors import KernelError, NydusErofsError
from .log import logger

_BUGS = frozenset({errno.EBADF, errno.EFAULT, errno.ENOTSOCK})
_ROOM = "make room there, or choose another folder (--state-dir, --run-dir)"
_DISK = "has the disk failed? the kernel's log tells; then mount it again for writing, or choose another folder"
_FDS = "the service has no descriptors left: 'nydus-erofs doctor' names the limits, and how to raise them"
_PROCESSES = "a limit is reached: of processes (TasksMax= of its unit, kernel.pid_max) or of memory"
_HINTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _ROOM),
    **dict.fromkeys((errno.EROFS, errno.EIO, errno.EUCLEAN, errno.ESHUTDOWN), _DISK),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _FDS),
    **dict.fromkeys((errno.EAGAIN, errno.ENOMEM), _PROCESSES),
}
_EVERY = 60.0  # seconds between two lines that say the same
_MOST_KNOWN = 256  # kinds of lines remembered

_said: dict[tuple[str, str], tuple[float, int]] = {}  # what was said: when, and how often it was not since


def is_bug(error: BaseException) -> bool:
    """Whether an error is not the host's, but ours."""
    return not isinstance(error, NydusErofsError | OSError) or getattr(error, "errno", 0) in _BUGS


def refusal(error: OSError, what: str = "") -> KernelError:
    """The same for a person: what failed, and what to do about it.

    Args:
        what: was being done, if the error itself does not say.
    """
    said = error.strerror or str(error)
    if error.filename:
        said = f"{said}: {os.fsdecode(error.filename)}"
    elif what and said == os.strerror(error.errno or 0):  # else it says already what failed
        said = f"{what}: {said}"
    return KernelError(said, hint=_HINTS.get(error.errno or 0), number=error.errno or errno.EIO)


def report(what: str, error: OSError | NydusErofsError, **fields: Any) -> None:
    """Log what the service could not do; what happens again and again once a minute, and how often.

    Args:
        what: is not done, or does not work: the line's event.
    """
    shown = refusal(error) if isinstance(error, OSError) else error
    known, now = (what, shown.message), time.monotonic()
    when, unsaid = _said.get(known, (-_EVERY, 0))
    if now - when < _EVERY:
        _said[known] = when, unsaid + 1
        return
    if len(_said) >= _MOST_KNOWN:
        _said.clear()
    _said[known] = now, 0
    if unsaid:
        fields["times"] = unsaid + 1
    if shown.hint:
        fields["hint"] = shown.hint
    logger().error(what, error=shown.message, **fields)
