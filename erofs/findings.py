"""What the checker finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import FormatError
from .rules import Rule

MAX_FINDINGS = 1000


class Finding(NamedTuple):
    """One broken invariant; ``where`` is a place for people: ``superblock``, ``nid 132 /usr/bin``, ``blob 0``."""

    rule: Rule
    where: str
    detail: str


class TooManyFindingsError(Exception):
    """Enough is known."""


@dataclass(slots=True)
class Report:
    """What was found, and how much was looked at."""

    findings: list[Finding] = field(default_factory=list)
    names: int = 0  # names in the tree, the root's too
    chunks: int = 0  # chunks that files refer to
    verified: int = 0  # chunks compared with their digest
    blobs: int = 0  # blobs in the blob table
    blobs_read: int = 0
    complete: bool = True  # False when there were too many findings

    def add(self, rule: Rule, where: str, detail: str) -> None:
        """Note a finding; TooManyFindingsError with the last one there is room for."""
        self.findings.append(Finding(rule, where, detail))
        if len(self.findings) >= MAX_FINDINGS:
            self.complete = False
            raise TooManyFindingsError

    def add_error(self, error: FormatError) -> None:
        """Note what a reader raised."""
        self.add(error.rule, error.place or "bootstrap", str(error).removeprefix(f"{error.place}: "))
