"""A server of plain files over HTTP, or over a unix socket: HEAD for the size, ranged GETs for the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, unquote

import msgspec
import urllib3

from ...erofs.record import Buffer
from ..config import backend as config
from ..credentials.basic import encode
from .base import ObjectInfo
from .http.client import Answer, Http, Request, Span


class HttpProxyClient:
    """Reads objects by their path. It follows no redirects.

    Args:
        backend: ``addr`` may hold ``user:password@``, which become basic credentials for that server alone.
        connections: kept open to the server.
        headers: of each request.
    """

    def __init__(self, backend: config.HttpProxy, connections: int, headers: Mapping[str, str] | None = None) -> None:
        self.label = config.describe(backend)
        self._config, self._connections = backend, connections
        unix = backend.addr if backend.addr.startswith("/") else ""
        parts = urllib3.util.parse_url("http://localhost" if unix else backend.addr.rstrip("/"))
        self._base = parts._replace(auth=None).url
        user, _, password = unquote(parts.auth or "").partition(":")
        self._headers = {"Authorization": f"Basic {encode(user, password)}"} if user else dict(headers or {})
        self._http = Http(backend, connections, [password], unix)

    def stat(self, name: str) -> ObjectInfo:
        answer = self._send("HEAD", name)
        return ObjectInfo(answer.size(self._what(name)), answer.header("ETag"))

    def read(self, name: str, offset: int, length: int) -> Buffer:
        return self._send("GET", name, Span(offset, length)).body

    def at(self, mirror: config.Mirror) -> HttpProxyClient:
        """As of ``Client``: with the mirror's headers only."""
        there = msgspec.structs.replace(self._config, addr=mirror.host, proxy=None, mirrors=[])
        return HttpProxyClient(there, self._connections, mirror.headers)

    def _what(self, name: str) -> str:
        return f"{name} of {self.label}"

    def _send(self, method: str, name: str, span: Span | None = None) -> Answer:
        url = f"{self._base}/{quote(name.lstrip('/'))}"
        answer = self._http.send(Request(method, url, self._what(name), self._headers, span=span))
        if not answer.good:
            raise answer.error(self._what(name))
        return answer
