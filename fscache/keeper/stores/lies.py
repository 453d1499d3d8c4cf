"""What ends a worker: it said what cannot be true."""

from __future__ import annotations


class LieError(Exception):
    """The worker said what cannot be true."""
