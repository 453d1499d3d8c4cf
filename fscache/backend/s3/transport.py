"""Sending for botocore, which prepares requests and parses answers, with a transport that trusts no server.

Botocore would read an answer whatever its length and however long it takes, and its texts may repeat what was sent:
what a request proved itself with is taken out of them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from botocore.awsrequest import AWSPreparedRequest, AWSResponse

from ....erofs.record import Buffer
from ..http.client import Http, Request, Span

_MOST_TEXT = 2 << 20  # bytes of an answer's XML; a page of 1000 parts or uploads has less than 1 MiB
_SPAN = re.compile(r"bytes=(\d+)-(\d+)")
_PROOFS = re.compile(r"Credential=([^/,]+)|Signature=(\w+)")


class Transport:
    """Sends prepared requests as all backends do.

    Args:
        what: the server and what is asked of it, for messages.
        extra: headers of each request, beside those that are signed.
        writing: seconds to wait for the answer to what changes something, instead of the configuration's.
    """

    def __init__(self, http: Http, what: str, extra: Mapping[str, str], writing: float = 0.0) -> None:
        self._http, self._what, self._extra, self._writing = http, what, extra, writing

    def send(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        """Botocore's ``before-send``: the answer, checked, and if it is an error cleaned of what we sent."""
        headers = {**{name: _plain(value) for name, value in request.headers.items()}, **self._extra}
        span = _SPAN.fullmatch(headers.pop("Range", "")) if request.method == "GET" else None
        wanted = Span(int(span[1]), int(span[2]) + 1 - int(span[1])) if span else None
        writing = self._writing if request.method in ("PUT", "POST") else 0.0
        sent: Any = request.body  # bytes, which botocore makes a file of in memory
        if isinstance(sent, io.BytesIO):
            sent = sent.getbuffer()
        answer = self._http.send(
            Request(request.method, request.url, self._what, headers, sent, wanted, _MOST_TEXT, writing)
        )
        body = answer.body
        if not answer.good:
            for proof in _proofs(headers):
                body = bytes(body).replace(proof, b"...")
        shown: Any = answer.headers
        return AWSResponse(request.url, answer.status, shown, _Body(body))


def _proofs(headers: dict[str, str]) -> list[bytes]:
    """What a request shows to prove who it is from: the key's id, the session's token, the signature."""
    values = {name.lower(): value for name, value in headers.items()}
    found = [proof for pair in _PROOFS.findall(values.get("authorization", "")) for proof in pair]
    return [proof.encode() for proof in (*found, values.get("x-amz-security-token", "")) if proof]


def _plain(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


class _Body:
    """Bytes as botocore expects them from urllib3: all at once, and not copied."""

    def __init__(self, data: Buffer) -> None:
        self._data = data

    def stream(self) -> list[Buffer]:
        return [self._data]

    def read(self, _most: int | None = None) -> Buffer:
        data, self._data = self._data, b""
        return data
