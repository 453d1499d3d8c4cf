"""How far a build is, on standard error: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ..builder import Progress
from .units import size_text

_LINE_SECONDS = 5.0
_BAR_SECONDS = 0.1


class _Silent:
    def update(self, *, files: int, done: int, found: int, walked: bool) -> None:
        pass


class _Lines:
    """One line every few seconds; a short build has none."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _LINE_SECONDS

    def update(self, *, files: int, done: int, found: int, walked: bool) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LINE_SECONDS
            more = "" if walked else ", still looking"
            click.echo(f"{files} files, {size_text(done)} of {size_text(found)}{more}", err=True)


@contextmanager
def progress_for(*, quiet: bool) -> Iterator[Progress]:
    """The kind of progress that suits standard error."""
    if quiet:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        with _bar() as bar:
            yield bar


@contextmanager
def _bar() -> Iterator[Progress]:
    # Loaded only where it is seen: it takes longer than a small build.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Display

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    # Without a thread of its own, so that the builder may fork.
    with Display(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), auto_refresh=False, transient=True
    ) as d:
        task = d.add_task("building", total=None)

        class Bar:
            """Drawn ten times a second at most."""

            def __init__(self) -> None:
                self._next = 0.0

            def update(self, *, files: int, done: int, found: int, walked: bool) -> None:
                now = time.monotonic()
                if now >= self._next:
                    self._next = now + _BAR_SECONDS
                    d.update(task, description=f"{files} files", completed=done, total=found if walked else None)
                    d.refresh()

        yield Bar()
