"""One input, tried: what came of it, within which time."""

from __future__ import annotations

import re
import signal
import traceback
from types import FrameType, TracebackType
from typing import NamedTuple

from nydus_erofs.erofs.errors import NydusErofsError

from .target import Target

_FRAMES = 3  # of the innermost ones, by which two crashes count as the same


class TooSlowError(BaseException):
    """No error of the code under test: nothing there may catch it."""


class Crash(NamedTuple):
    """What must not happen. ``signature`` is the same for the same fault."""

    signature: str
    text: str


class Trial:
    """Tries inputs of a target in this process, in the main thread.

    The clock is the processor's, so that a loaded machine does no harm; who sleeps is found by who waits for us.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.refused = 0
        signal.signal(signal.SIGVTALRM, _ring)

    def __call__(self, data: bytes) -> Crash | object:
        """The crash, or what stands for the way that the input took."""
        signal.setitimer(signal.ITIMER_VIRTUAL, self.target.seconds)
        try:
            return self.target.run(data)
        except self.target.refusals as error:
            self.refused += 1
            if isinstance(error, NydusErofsError) and not str(error).isprintable():
                return Crash(f"unprintable {_way(error.__traceback__)[-1:]}", f"{str(error)!r}\n")
            return type(error).__name__, _way(error.__traceback__)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            return _crash(error)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _ring(_number: int, _frame: FrameType | None) -> None:
    raise TooSlowError("it takes too long")


def _crash(error: BaseException) -> Crash:
    text = "".join(traceback.format_exception(error, limit=-30))
    frames = traceback.StackSummary.from_list(traceback.extract_tb(error.__traceback__)[1:])
    if isinstance(error, (TooSlowError, RecursionError, MemoryError)):
        frames = traceback.StackSummary.from_list([frame for frame in frames if "nydus_erofs" in frame.filename][:1])
    places = [f"{frame.name}:{frame.line}" for frame in frames[-_FRAMES:]]
    return Crash(f"{type(error).__name__} {' | '.join(places)}", text)


def _way(trace: TracebackType | None) -> tuple[tuple[str, int], ...]:
    """Where a refusal came from: enough to tell a new one from a known one."""
    found = []
    while trace is not None:
        found.append((trace.tb_frame.f_code.co_name, trace.tb_lineno))
        trace = trace.tb_next
    return tuple(found[-4:])


def one_word(signature: str) -> str:
    """A signature as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", signature)[:60].strip("-").lower()
