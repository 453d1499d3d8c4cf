"""What a registry says it wants (the WWW-Authenticate header, RFC 9110)."""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class Challenge(NamedTuple):
    """One way in that a server offers (WWW-Authenticate)."""

    scheme: str  # lower case
    realm: str
    service: str
    scope: str


_CHALLENGE = re.compile(r"(?:^|,)\s*([A-Za-z][A-Za-z0-9-]*)(?=\s|,|$)")
_PARAMETER = re.compile(r'([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))')


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges of a WWW-Authenticate header, which may hold several; nonsense gives fewer."""
    # Quoted values may hold anything: blank them out to find where the challenges begin.
    outline = re.sub(r'"(?:[^"\\]|\\.)*"', lambda match: '"' + "." * (len(match[0]) - 2) + '"', header)
    starts = [match for match in _CHALLENGE.finditer(outline) if not outline[match.end() :].lstrip().startswith("=")]
    found = []
    for number, start in enumerate(starts):
        end = starts[number + 1].start() if number + 1 < len(starts) else len(header)
        values: dict[str, Any] = {"realm": "", "service": "", "scope": ""}
        for name, quoted, plain in _PARAMETER.findall(header[start.end() : end]):
            if name.lower() in values:
                values[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) or plain
        found.append(Challenge(start[1].lower(), **values))
    return found
