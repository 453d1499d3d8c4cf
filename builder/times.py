"""Times that do not depend on when and where a tree was made: ``--mtime`` and SOURCE_DATE_EPOCH.

Source: https://reproducible-builds.org/specs/source-date-epoch/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from ..erofs.errors import ConfigError
from .options import BuildOptions

VARIABLE = "SOURCE_DATE_EPOCH"

_NSEC = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS = range(-(1 << 63), 1 << 63)  # what an inode holds


def parse_time(text: str) -> int:
    """Nanoseconds since 1970 of seconds since then, or of a date of ISO 8601, in UTC unless it says otherwise."""
    try:
        if re.fullmatch("-?[0-9]+", text):
            time = int(text) * _NSEC
        else:
            date = datetime.fromisoformat(text)
            date = date if date.tzinfo else date.replace(tzinfo=UTC)
            time = (date - _EPOCH) // timedelta(microseconds=1) * 1000
    except ValueError:
        raise ConfigError(
            f"--mtime {text!r} is neither seconds since 1970 nor a date",
            hint="for example 1700000000, 2023-11-14 or 2023-11-14T22:13:20Z",
        ) from None
    if time // _NSEC not in _SECONDS:
        raise ConfigError(f"--mtime {text}: an image has no room for a time so far away")
    return time


def source_date_epoch(environment: Mapping[str, str]) -> int | None:
    """The latest time that an image is to have, in nanoseconds since 1970; None if the variable is not set."""
    text = environment.get(VARIABLE)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 19 or int(text) not in _SECONDS:
        raise ConfigError(
            f"{VARIABLE}={text!r} is not a number of seconds since 1970", hint=f"correct it, or unset {VARIABLE}"
        )
    return int(text) * _NSEC


def time_rule(options: BuildOptions) -> Callable[[int], int] | None:
    """From the time of a file to its time in the image; None where they are the same."""
    mtime, latest = options.mtime, options.latest_mtime
    if mtime is not None:
        return lambda _: mtime
    if latest is not None:
        return lambda time: min(time, latest)
    return None
