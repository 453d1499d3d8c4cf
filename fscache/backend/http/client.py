"""Requests to HTTP servers, as all clients send them: one attempt, bounded, checked.

A forward proxy is dealt with here, by the rules of ``routes.py``. Redirects and credentials are the clients' affair:
nothing is followed or repeated behind their back.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, NamedTuple

import urllib3
from urllib3.exceptions import HTTPError

from ....erofs.errors import BackendError
from ....erofs.record import Buffer
from ...config.backend import Proxy, Remote
from . import body as http_body
from .deadline import Deadline, base, within
from .errors import host_port, retry_after, server_text, status_error, transport_error
from .pools import Pools
from .routes import Route, Routes, proxy_route

# What Dragonfly's proxy wants to hear of a request for data, and what marks an answer as its own.
_DRAGONFLY = {"X-Dragonfly-Use-P2P": "true", "X-Dragonfly-Priority": "6"}
_ERROR_LIMIT = 65536  # bytes of a bad answer that are looked at
_DRAGONFLY_ERROR = "X-Dragonfly-Error-Type"


class Span(NamedTuple):
    """The bytes of an object that are wanted: exactly these."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Its ``repr`` shows no credential.

    Attributes:
        what: the object and its server, for messages.
        span: of a GET: the answer's body is exactly these bytes.
        limit: otherwise the most bytes that the body of a good answer may have.
        timeout: seconds to wait for the answer instead of the configuration's.
        end_to_end: never let a proxy do the TLS: the request holds or brings credentials of a person.
    """

    method: str
    url: str = field(repr=False)
    what: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    span: Span | None = None
    limit: int = 65536
    timeout: float = 0.0
    end_to_end: bool = False

    @property
    def tls(self) -> bool:
        return self.url.startswith("https:")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: of a bad answer ``body`` is the beginning, ``text`` what is fit for people."""

    status: int
    headers: urllib3.HTTPHeaderDict = field(repr=False)
    body: Buffer = field(repr=False)
    text: str
    where: str  # host:port that answered

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300

    def header(self, name: str, limit: int = 1024) -> str:
        """A header's value; one that is longer than ``limit`` counts as missing."""
        value = self.headers.get(name, "")
        return value if len(value) <= limit else ""

    def size(self, what: str) -> int:
        """Bytes of the object that a HEAD was for."""
        size = self.header("Content-Length")
        if not re.fullmatch(r"[0-9]{1,19}", size):
            raise BackendError(f"{what}: {self.where} does not tell its size")
        return int(size)

    def error(self, what: str) -> BackendError:
        """The error that this answer means."""
        return status_error(what, self.where, self.status, self.text, retry_after(self.header("Retry-After")))


class Http:
    """Connections to the servers of one backend. Safe for several threads.

    Args:
        connections: kept open to each server.
        secrets: credentials of the configuration: no message repeats them, whatever a server says.
        unix: path of the socket behind which the only server is.
        bundle: file of the certificates to trust instead of the system's.
    """

    def __init__(
        self, config: Remote, connections: int, secrets: Sequence[str] = (), unix: str = "", bundle: str = ""
    ) -> None:
        pools = Pools(config, connections, bundle)
        self._secrets, self._unix = secrets, unix
        self._direct = pools.unix(unix) if unix else pools.direct()
        self._proxy_config = config.proxy
        self._proxy = pools.proxy(config.proxy.url) if config.proxy else None
        ways: list[Route[urllib3.ProxyManager | None]] = []
        if config.proxy:
            ways.append(proxy_route(config.proxy, self._proxy))
        self._ways = Routes(ways, None, self.ping)
        self._connect_timeout, self._base = config.connect_timeout, base(config)

    def send(self, request: Request) -> Answer:
        """Send it, through the proxy if there is one. Any status is an answer.

        Raises:
            BackendError: no answer, or not the bytes that were asked for.
        """
        config = self._proxy_config
        if self._proxy is None or config is None or (config.use_http and request.tls and request.end_to_end):
            return self._exchange(self._direct, request, request.url)
        if not config.fallback:
            return self._through(self._proxy, request, config)
        return self._ways.first_good(lambda proxy: self._by(proxy, request, config))

    def _by(self, proxy: urllib3.ProxyManager | None, request: Request, config: Proxy) -> Answer:
        if proxy is None:
            return self._exchange(self._direct, request, request.url)
        answer = self._through(proxy, request, config)
        tunnel = request.tls and not config.use_http  # what comes out of it is the server's word
        if _DRAGONFLY_ERROR in answer.headers or answer.status == 407 or (answer.status >= 500 and not tunnel):
            raise BackendError(f"{request.what}: the proxy before {answer.where} answers {answer.status}")
        return answer

    def _through(self, proxy: urllib3.ProxyManager, request: Request, config: Proxy) -> Answer:
        url = "http" + request.url.removeprefix("https") if config.use_http and request.tls else request.url
        return self._exchange(proxy, request, url, _DRAGONFLY)

    def ping(self, url: str) -> None:
        """BackendError unless a server answers well, asked past the proxy."""
        request = Request("GET", url, "ping")
        answer = self._exchange(self._direct, request, url)
        if answer.status >= 400:
            raise answer.error(request.what)

    def _exchange(
        self, pool: urllib3.PoolManager, request: Request, url: str, extra: Mapping[str, str] | None = None
    ) -> Answer:
        where = self._unix or host_port(url)
        headers = {"Accept-Encoding": "identity", "User-Agent": "nydus-erofs", **request.headers}
        if request.span:
            offset, length = request.span
            headers |= {"Range": f"bytes={offset}-{offset + length - 1}", **(extra or {})}
        response = None
        options: dict[str, Any] = {}
        if request.timeout:
            options["timeout"] = urllib3.Timeout(connect=self._connect_timeout, read=request.timeout)
        with within(self._base) as deadline:
            deadline.asks(request.timeout, len(request.body or b""))
            try:
                deadline.left()
                response = pool.request(
                    request.method,
                    url,
                    body=request.body,
                    headers=headers,
                    retries=False,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                    **options,
                )
                body, text = self._body(request, response, where, deadline)
            except BackendError:
                raise
            except (HTTPError, HTTPException, OSError, ValueError) as error:
                if deadline.over:
                    asked = f"the proxy before {where}" if isinstance(pool, urllib3.ProxyManager) else where
                    raise deadline.error(request.what, asked) from None
                raise transport_error(request.what, where, error, begun=response is not None) from None
            finally:
                if response is not None:
                    response.close()  # a connection whose answer was read to its end went back before
        return Answer(response.status, response.headers, body, text, where)

    def _body(
        self, request: Request, response: urllib3.BaseHTTPResponse, where: str, deadline: Deadline
    ) -> tuple[Buffer, str]:
        if response.status < 200:  # not the final answer; botocore would take it for a good one
            raise status_error(request.what, where, response.status)
        if request.method == "HEAD":
            response.drain_conn()  # of nothing: the connection is free again
            return b"", ""
        reader = http_body.Reader(response, f"{request.what}: {where}", deadline)
        if 200 <= response.status < 300:
            return (reader.span(*request.span) if request.span else reader.all(request.limit)), ""
        sent = request.headers.get("Authorization", "").partition(" ")[2]
        with contextlib.suppress(HTTPError, HTTPException, OSError, ValueError, BackendError):
            said = reader.beginning(_ERROR_LIMIT)
            return said, server_text(said, [*self._secrets, sent], signed="?" in request.url)
        return b"", ""
