"""What verbs print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click

Cell = str | int


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print rows under a header; columns of numbers are set to the right."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    numeric = [all(isinstance(row[column], int) for row in rows) for column in range(len(header))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def pairs(items: Iterable[tuple[str, Cell]]) -> None:
    """Print names and values in two columns."""
    shown = list(items)
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        click.echo(f"{name.ljust(width)}  {value}")


def to_json(value: object) -> str:
    """One JSON text in ASCII.

    A file name that is no UTF-8 comes as Python's surrogateescape does it: each odd byte 0xNN is the lone
    surrogate U+DCNN, written as ``\\udcNN``, so that no name is lost and no two become one.
    """
    return json.dumps(value, ensure_ascii=True)


def text(name: bytes) -> str:
    """A file name as it goes into JSON; see ``to_json``."""
    return name.decode("utf-8", "surrogateescape")
