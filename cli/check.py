"""``nydus-erofs check``: every broken invariant of an image, one line each."""

from __future__ import annotations

import os
import sys
from typing import Self

import click

from ..erofs.check import MAX_FINDINGS, Report, Rule, examine
from ..erofs.errors import FormatError, UnsupportedError
from .files import ImageFiles
from .output import to_json


@click.command()
@click.argument("bootstrap", type=click.Path())
@click.option(
    "--blob-dir",
    type=click.Path(file_okay=False, exists=True),
    help="Folder of the blobs. [default: the bootstrap's]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, bootstrap: str, blob_dir: str | None, as_json: bool) -> None:
    """Check a BOOTSTRAP, and the blobs beside it or in --blob-dir.

    Each broken invariant is one line: its name, where it is broken, and what is there. The last line says
    what was checked. Exit code: 0 for a sound image, 3 for one with findings, 4 if all that was found is
    something this version cannot check.
    """
    with ImageFiles(bootstrap, blob_dir) as files, _Bar() as bar:
        report = examine(files.bootstrap(), files.find_blob, bar.update)
    if as_json:
        click.echo(to_json(_as_dict(bootstrap, report)))
    else:
        for rule, where, detail in report.findings:
            click.echo(f"{rule}: {where}: {detail}")
        click.echo(_summary(bootstrap, report))
    if report.findings:
        only_unsupported = all(finding.rule == Rule.UNSUPPORTED for finding in report.findings)
        ctx.exit(UnsupportedError.exit_code if only_unsupported else FormatError.exit_code)


def _summary(bootstrap: str, report: Report) -> str:
    count = len(report.findings)
    if not count:
        verdict = "sound"
    elif count >= MAX_FINDINGS:
        verdict = f"stopped at {count} findings"
    else:
        verdict = f"{count} finding{'s' * (count > 1)}"
    blobs = f"{report.blobs_read} of {report.blobs} blobs read, {report.verified} chunks verified"
    if report.blobs and not report.blobs_read:
        blobs = "no blobs read (--blob-dir names their folder)"
    name = os.path.basename(bootstrap)
    return f"{name}: {verdict}; {report.names} names, {report.chunks} chunks of files; {blobs}"


def _as_dict(bootstrap: str, report: Report) -> dict[str, object]:
    return {
        "bootstrap": bootstrap,
        "sound": not report.findings,
        "complete": report.complete,
        "names": report.names,
        "chunks": report.chunks,
        "blobs": report.blobs,
        "blobs_read": report.blobs_read,
        "chunks_verified": report.verified,
        "findings": [finding._asdict() for finding in report.findings],
    }


class _Bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = 0
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            click.echo("\r\033[K", nl=False, err=True)

    def update(self, done: int, total: int) -> None:
        """Show how much of the blobs is verified, in whole percents."""
        percent = done * 100 // max(total, 1)
        if self._live and percent != self._shown:
            self._shown = percent
            click.echo(f"\rverifying chunks: {percent} %", nl=False, err=True)
