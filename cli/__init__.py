"""The command line: the only room that knows click, terminals and exit codes."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the ``nydus-erofs`` script."""
    from . import exits, quick

    exits.end_with(lambda: quick.run(sys.argv[1:]))
