"""Work in the background of the keeper's loop. An error there that nobody expected ends the process: who can say what
is broken? The kernel then gives readers EIO instead of letting them wait."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Coroutine
from typing import Any

from .log import logger

CRASHED = 70  # exit code after a bug (EX_SOFTWARE)

_running: set[asyncio.Task[Any]] = set()


def background(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Run it beside everything else, as long as the loop runs."""
    task = asyncio.get_running_loop().create_task(work)
    _running.add(task)
    task.add_done_callback(_done)
    return task


def _done(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        fatal(task.get_loop(), {"message": "task failed", "exception": error})


def fatal(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's handler of exceptions that nobody expected."""
    error = context.get("exception")
    logger().critical("internal error", message=context.get("message"), error=repr(error))
    if error is not None:
        traceback.print_exception(error)
    os._exit(CRASHED)
