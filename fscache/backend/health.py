"""Whether a server answers: pure bookkeeping, with the clock passed in.

After a few failures in a row a server counts as down. Then requests are turned away at once, and one looks now and
then whether it is back, in growing intervals: what waits for a dead server takes no thread and no time.
"""

from __future__ import annotations

_FAILURES = 3  # in a row, until a server counts as down
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 2.0  # seconds between looks


class Health:
    """One server's. Times are seconds of a steady clock."""

    def __init__(self) -> None:
        self.down = False
        self._failures = 0
        self._pause = _FIRST_PAUSE
        self._look_at = 0.0

    def wait(self, now: float) -> float:
        """Seconds until the next look at a server that is down."""
        return max(0.0, self._look_at - now)

    def answered(self) -> None:
        """It answers, whatever it says."""
        self.down = False
        self._failures, self._pause = 0, _FIRST_PAUSE

    def failed(self, now: float, retry_after: float = 0.0) -> bool:
        """A request came to nothing, or the server asks for a pause of ``retry_after`` seconds; true when that makes
        it count as down."""
        self._failures += 1
        before, self.down = self.down, self.down or self._failures >= _FAILURES or retry_after > 0
        if self.down:
            self._look_at = now + max(self._pause, retry_after)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return self.down and not before
