"""``--exclude``: shell patterns for what is left out of an image.

A pattern without "/" is for the name of a file or directory wherever it lies; one with "/" is for the path
from the source on ("/" in front says so too). ``*``, ``?`` and ``[...]`` are as in ``fnmatch``; in a path
``*`` also matches "/". A "/" at the end restricts the pattern to directories. What lies below a directory
that is left out is left out with it.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterable

from ..erofs.errors import ConfigError

Excluded = Callable[[bytes, bool], bool]  # of (path from the source on, is it a directory)


def _regex(patterns: list[str]) -> re.Pattern[bytes] | None:
    if not patterns:
        return None
    # Names are bytes: latin-1 makes one character of each, and back.
    parts = [fnmatch.translate(os.fsencode(pattern).decode("latin-1")) for pattern in patterns]
    return re.compile("|".join(parts).encode("latin-1"))


def exclude_test(patterns: Iterable[str]) -> Excluded | None:
    """The test for what ``patterns`` leave out; None if there are none."""
    names: list[str] = []
    paths: list[str] = []
    for pattern in patterns:
        body = pattern.rstrip("/")
        if not body:
            raise ConfigError(f"--exclude {pattern!r} names nothing that can be left out")
        # Directories are matched with a "/" behind them.
        ends = ("/",) if body != pattern else ("", "/")
        (paths if "/" in body else names).extend(body.lstrip("/") + end for end in ends)
    if not names and not paths:
        return None
    by_name, by_path = _regex(names), _regex(paths)

    def excluded(path: bytes, is_dir: bool) -> bool:
        end = b"/" if is_dir else b""
        if by_name and by_name.match(path.rpartition(b"/")[2] + end):
            return True
        return bool(by_path and by_path.match(path + end))

    return excluded
