"""Checking an image: every broken invariant by name.

The reader raises at the first thing that is wrong; the checker uses the same code, notes what it raises and
goes on wherever something can still be trusted. Time and memory are bounded by the size of the bootstrap,
and by the number of findings: it stops at ``MAX_FINDINGS``.
"""

from __future__ import annotations

from .check_blobs import BlobCheck, FindBlob, Progress
from .check_tree import TreeCheck
from .errors import FormatError
from .findings import MAX_FINDINGS, Finding, Report, TooManyFindingsError
from .image import Bootstrap
from .rules import Rule
from .source import Source

__all__ = ["MAX_FINDINGS", "FindBlob", "Finding", "Progress", "Report", "Rule", "check", "examine"]


def examine(source: Source, find_blob: FindBlob | None = None, progress: Progress | None = None) -> Report:
    """Check a bootstrap, and the blobs that ``find_blob`` gives.

    Args:
        source: the bootstrap.
        find_blob: a blob's bytes; None for one that is not to be checked; BlobNotFoundError is a finding.
        progress: called with (bytes of chunks verified, bytes in all) while blobs are read.

    UnsupportedError for a bootstrap of a kind that this version does not read at all.
    """
    report = Report()
    try:
        bootstrap = Bootstrap(source, report.add_error)
        report.blobs = len(bootstrap.blobs)
        _check_total(bootstrap, report)
        TreeCheck(bootstrap, report).run()
        if find_blob is not None:
            BlobCheck(bootstrap, report, progress).run(find_blob)
    except FormatError as error:
        # What ended the reading, unless it only follows from what was found before.
        if error.rule not in {finding.rule for finding in report.findings}:
            report.findings.append(Finding(error.rule, "bootstrap", str(error)))
        report.complete = False
    except TooManyFindingsError:
        pass
    return report


def check(source: Source, find_blob: FindBlob | None = None, progress: Progress | None = None) -> list[Finding]:
    """The findings of ``examine``; none for a sound image."""
    return examine(source, find_blob, progress).findings


def _check_total(bootstrap: Bootstrap, report: Report) -> None:
    """The superblock's count of blocks."""
    head = bootstrap.head
    blocks = sum(device.blocks for device in head.devices)
    if head.devices and head.superblock.blocks != blocks:
        detail = f"it counts {head.superblock.blocks} blocks, the devices have {blocks}"
        report.add(Rule.TOTALS, "superblock", detail)
