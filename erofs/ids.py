"""Names: of blobs (the lower-case hex SHA-256 under which a blob is stored everywhere) and of files, for people."""

from __future__ import annotations

import re
from typing import NewType

from .errors import FormatError

BlobId = NewType("BlobId", str)

_BLOB_ID = re.compile(r"[0-9a-f]{64}")


def blob_id(text: str) -> BlobId:
    """Check that ``text`` is a blob id: 64 lower-case hex digits, so that it is safe as a file or object name."""
    if not _BLOB_ID.fullmatch(text):
        raise FormatError(f"not a blob id (64 lower-case hex digits): {text[:80]!r}")
    return BlobId(text)


def printable(name: bytes) -> str:
    """A file name or path as it may go to a terminal: bytes that are no UTF-8 and unprintable characters escaped."""
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text])
