"""What ends a process of the keeper's: it said what cannot be true."""

from __future__ import annotations


class LieError(Exception):
    """A process said what cannot be true."""
