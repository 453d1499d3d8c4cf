"""Work in the background of the keeper's loop: the only way to have some.

Trouble of the host (``trouble.py``) ends what ran into it and nothing else. An error that nobody expected ends the
process: who can say what is broken? The kernel then gives readers EIO instead of letting them wait.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from ...erofs.errors import NydusErofsError
from .log import logger
from .trouble import is_bug, report

CRASHED = 70  # exit code after a bug (EX_SOFTWARE)
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds

_running: set[asyncio.Task[Any]] = set()


def background(work: Coroutine[Any, Any, Any], what: str) -> asyncio.Task[Any]:
    """Run it beside everything else, as long as the loop runs.

    Args:
        what: is said, with the reason, when trouble of the host ends it.
    """
    task = asyncio.get_running_loop().create_task(work)
    _running.add(task)
    task.add_done_callback(partial(_done, what))
    return task


def _done(what: str, task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if task.cancelled() or (error := task.exception()) is None:
        return
    if isinstance(error, OSError | NydusErofsError) and not is_bug(error):
        report(what, error)
    else:
        fatal(task.get_loop(), {"message": what, "exception": error})


async def steadily(step: Callable[[], Awaitable[None]], what: str) -> None:
    """Take one step after the other, for ever; after trouble of the host not at once."""
    pause = _FIRST_PAUSE
    while True:
        try:
            await step()
        except (OSError, NydusErofsError) as error:
            if is_bug(error):
                raise
            report(what, error)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)
        else:
            pause = _FIRST_PAUSE


def on_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's handler of errors. Those of callbacks of ours ("handle") are bugs: who has readers to answer answers
    them. Others are the loop's own; when it cannot accept a client, it tries again a second later by itself."""
    error = context.get("exception")
    if isinstance(error, OSError) and "handle" not in context and not is_bug(error):
        report("a client cannot be served", error)
    else:
        fatal(loop, context)


def fatal(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """End the process, and say why."""
    error = context.get("exception")
    try:
        if isinstance(error, NydusErofsError):
            logger().critical("the service cannot go on", error=error.message, hint=error.hint)
        else:
            logger().critical("internal error", message=context.get("message"), error=repr(error))
            if error is not None:
                traceback.print_exception(error)
    finally:
        os._exit(CRASHED)  # also when nobody can be told
