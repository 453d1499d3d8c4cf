"""Whether a server answers: pure bookkeeping, with the clock passed in.

After a few failures in a row a server counts as down. Then requests are turned away at once, except for one at a
time that looks whether it is back, in growing intervals: what waits for a dead server takes no thread and no time.
"""

from __future__ import annotations

_FAILURES = 3  # in a row, until a server counts as down
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 2.0  # seconds between looks


class Health:
    """One server's. Times are seconds of a steady clock."""

    def __init__(self) -> None:
        self.down_since: float | None = None
        self._failures = 0
        self._pause = _FIRST_PAUSE
        self._look_at = 0.0

    def enter(self, now: float) -> float:
        """Ask to send a request: 0, or the seconds to wait before asking again."""
        if self.down_since is None:
            return 0.0
        if now < self._look_at:
            return self._look_at - now
        self._look_at = now + _LONGEST_PAUSE  # this one looks; others only if nothing comes of it
        return 0.0

    def answered(self) -> None:
        """It answers, whatever it says."""
        self.down_since = None
        self._failures, self._pause = 0, _FIRST_PAUSE

    def failed(self, now: float, retry_after: float = 0.0) -> None:
        """A request came to nothing, or the server asks for a pause of ``retry_after`` seconds."""
        self._failures += 1
        if self.down_since is None and (self._failures >= _FAILURES or retry_after):
            self.down_since = now
        if self.down_since is not None:
            self._look_at = now + max(self._pause, retry_after)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
