"""How long the readers of one store wait. Pure bookkeeping: it is told the time, in seconds of any steady clock.

A store has ``patience`` seconds to bring its readers something, counted from when they began to wait and anew from
each thing that it brought. Then it has *stalled*: all of them get EIO, and so does whoever comes in the next moments,
at once. After that rest the next reader is a *trial*: he, and those who come while he waits, may wait for a moment.
So the store is asked now and then, and lives again as soon as it brings anything, whenever that is. One that brings
this and that, but never what a certain reader waits for, does not hold him for ever either.
"""

from __future__ import annotations

from math import inf

TRIAL = 1.0  # seconds that readers of a stalled store wait
REST = 2.0  # seconds after a trial that nobody does
MOST = 5  # times its patience, the longest that a store may keep any reader waiting


class Clock:
    """Of one store."""

    __slots__ = ("_again", "_since", "patience", "stalled")

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.stalled = False  # brought nothing for so long that nobody should wait for it
        self._since = 0.0  # when its readers began to wait, or had something last
        self._again = 0.0  # when a stalled one is asked again

    def arrive(self, now: float, *, others: bool) -> bool:
        """A reader comes, while ``others`` wait or alone; whether he may wait, too."""
        if others:
            return True
        if self.stalled and now < self._again:
            return False
        self._since = now
        return True

    def progress(self, now: float) -> bool:
        """Readers were brought something; whether that is news of a store that had stalled."""
        was, self.stalled, self._since = self.stalled, False, now
        return was

    def look(self, now: float) -> float:
        """Readers who came up to this time wait no longer; to be asked now and then while there are any."""
        if now < self._since + (TRIAL if self.stalled else self.patience):
            return now - MOST * self.patience
        self._again = now + REST
        if self.stalled:
            return inf
        # Whoever has only just come does not pay for the patience of those before: he is the first trial.
        self.stalled, self._since = True, now
        return now - TRIAL
