"""The table of failures in docs/serving.md: each row has a test that makes it happen, marked ``failure("ROW")``."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def rows() -> dict[str, list[str]]:
    """Each row by its first column: lines of the log of which one at least must come.

    None where the documents are not, as beside the installed wheel.
    """
    if not PAGE.exists():
        return {}
    section = PAGE.read_text().partition("## When something fails")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
    return {what: re.findall(r"`(.+?)`", log) for what, _, _, log in cells[2:]}
