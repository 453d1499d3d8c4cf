"""A server of plain files over HTTP, or over a unix socket: HEAD for the size, ranged GETs for the bytes."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote, unquote

import urllib3

from ...erofs.record import Buffer
from ..config import backend as config
from ..credentials.basic import encode
from .base import ObjectInfo
from .http.client import Answer, Http, Request, Span
from .http.routes import Route


class HttpProxyClient:
    """Reads objects by their path. It follows no redirects.

    Args:
        backend: ``addr`` may hold ``user:password@``, which become basic credentials for that server alone.
        connections: kept open to the server.
    """

    def __init__(self, backend: config.HttpProxy, connections: int) -> None:
        self.label = config.describe(backend)
        unix = backend.addr if backend.addr.startswith("/") else ""
        parts = urllib3.util.parse_url("http://localhost" if unix else backend.addr.rstrip("/"))
        self._base = parts._replace(auth=None).url
        user, _, password = unquote(parts.auth or "").partition(":")
        self._headers = {"Authorization": f"Basic {encode(user, password)}"} if user else {}
        self._http = Http(backend, connections, [password], unix)

    def stat(self, name: str) -> ObjectInfo:
        request = Request("HEAD", "", self._what(name))
        answer = self._send(request, name)
        return ObjectInfo(answer.size(request.what), answer.header("ETag"))

    def read(self, name: str, offset: int, length: int) -> Buffer:
        return self._send(Request("GET", "", self._what(name), span=Span(offset, length)), name).body

    def _what(self, name: str) -> str:
        return f"{name} of {self.label}"

    def _send(self, request: Request, name: str) -> Answer:
        path = "/" + quote(name.lstrip("/"))
        return self._http.first_good(lambda route: self._send_to(request, path, route))

    def _send_to(self, request: Request, path: str, route: Route | None) -> Answer:
        headers = route.headers if route else self._headers
        url = (route.url if route else self._base) + path
        answer = self._http.send(replace(request, url=url, headers=headers, direct=route is not None))
        if not answer.good:
            raise answer.error(request.what)
        return answer
