"""The body of an answer, never longer than what was asked for."""

from __future__ import annotations

import re

import urllib3

from ....erofs.errors import BackendError
from .deadline import Deadline

_PIECE = 1 << 17  # bytes: larger ones are mapped and unmapped each time
_CONTENT_RANGE = re.compile(r"bytes (\d{1,20})-(\d{1,20})/(\d{1,20}|\*)", re.ASCII)


class Reader:
    """Reads one body.

    Args:
        what: the beginning of messages.
        deadline: told of what came.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse, what: str, deadline: Deadline) -> None:
        self._response, self._what, self._deadline = response, what, deadline

    def span(self, offset: int, length: int) -> bytearray:
        """The bytes of a ranged GET: exactly ``length`` from ``offset``, or BackendError."""
        self._check_span(offset, length)
        body = bytearray()
        while len(body) < length and (piece := self._piece(length - len(body))):
            body += piece
            self._deadline.brought(len(piece))
        if len(body) < length:
            raise BackendError(f"{self._what} sends {len(body)} bytes instead of {length}")
        if self._piece(1):
            raise BackendError(f"{self._what} sends more than {length} bytes")
        return body

    def _check_span(self, offset: int, length: int) -> None:
        self._check_plain()
        headers, end = self._response.headers, offset + length
        declared = headers.get("Content-Length", "")
        if self._response.status == 200 and offset == 0 and declared == str(length):
            return
        if self._response.status != 206:
            raise BackendError(
                f"{self._what} answers {self._response.status} to a request for a part",
                hint="the server must know range requests",
                retryable=False,
            )
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "")[:100])
        if not match:
            raise BackendError(f"{self._what} does not say which bytes it sends")
        first, last = int(match[1]), int(match[2])
        if (first, last) != (offset, end - 1):
            short = match[3] != "*" and int(match[3]) < end
            raise BackendError(
                f"{self._what} sends bytes {first}-{last} instead of {offset}-{end - 1}"
                + (": it is shorter than the image says" if short else ""),
                retryable=not short,
            )
        if declared and declared != str(length):
            raise BackendError(f"{self._what} announces {declared[:20]!r} bytes instead of {length}")

    def all(self, limit: int) -> bytes:
        """A whole body of at most ``limit`` bytes."""
        self._check_plain()
        body = bytearray()
        while len(body) <= limit and (piece := self._piece(limit + 1 - len(body))):
            body += piece
            self._deadline.brought(len(piece))
        if len(body) > limit:
            raise BackendError(f"{self._what} sends more than {limit} bytes", retryable=False)
        return bytes(body)

    def beginning(self, limit: int) -> bytes:
        """A body up to byte ``limit``; it is not what was asked for, and gets no time of its own."""
        body = bytearray()
        while len(body) < limit and (piece := self._piece(limit - len(body))):
            body += piece
        return bytes(body)

    def _check_plain(self) -> None:
        encoding = self._response.headers.get("Content-Encoding", "identity")
        if encoding.lower() not in ("identity", ""):
            raise BackendError(f"{self._what} sends encoded bytes, which was not asked for", retryable=False)

    def _piece(self, most: int) -> bytes:
        return self._response.read1(min(most, _PIECE), decode_content=False)
