"""Whether a worker still hears, and works. Pure bookkeeping: it is told the time, in seconds of any steady clock.

A worker that is stopped, or hangs as a whole, serves nobody, and nothing but its silence tells. So while anybody
waits for it, one that has said nothing for a moment is asked to say something; when it does not, another one does
better. The same goes for one that answers and yet has no news of any store, good or bad, for as long as readers wait.
"""

from __future__ import annotations

from enum import Enum, auto

QUIET = 2.0  # seconds without a word until it is asked for one
DEAF = 5.0  # seconds that it has for an answer
UNBORN = 30.0  # the same for a new one, which has modules to load


class Verdict(Enum):
    """What to do about it."""

    WAIT = auto()
    ASK = auto()
    REPLACE = auto()


class Hearing:
    """Of one worker, started at ``now``."""

    def __init__(self, now: float) -> None:
        self._heard = self._worked = now  # when it said something last, and when it had news of a store
        self._asked: float | None = None  # when it was asked to
        self._silent = True  # it never did

    def heard(self, now: float) -> None:
        """It says something, whatever that is."""
        self._heard, self._asked, self._silent = now, None, False

    def worked(self, now: float) -> None:
        """It has news of a store that was asked for."""
        self._worked = now

    def idle(self, now: float) -> float:
        """Seconds without any."""
        return now - self._worked

    def look(self, now: float) -> Verdict:
        """To be asked now and then while somebody waits for it."""
        if self._asked is not None:
            patience = UNBORN if self._silent else DEAF
            return Verdict.REPLACE if now - self._asked >= patience else Verdict.WAIT
        if now - self._heard < QUIET:
            return Verdict.WAIT
        self._asked = now
        return Verdict.ASK
