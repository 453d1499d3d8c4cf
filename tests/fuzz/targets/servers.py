"""What servers answer: HTTP as it comes over the wire, for each kind of backend."""

from __future__ import annotations

import copy
import functools
import io
import random
import re
from collections.abc import Iterator
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection

from nydus_erofs.erofs.errors import BackendError, FormatError, UnsupportedError
from nydus_erofs.fscache.backend.httpproxy import HttpProxyClient
from nydus_erofs.fscache.backend.registry import oci
from nydus_erofs.fscache.backend.registry.client import RegistryClient, digest_of
from nydus_erofs.fscache.backend.registry.tokens import Tokens
from nydus_erofs.fscache.backend.s3.client import S3Client
from nydus_erofs.fscache.config.backend import S3, HttpProxy, Registry
from nydus_erofs.fscache.credentials.basic import encode
from tests.fuzz import mutate
from tests.fuzz.target import target

SECRET = "hushhush"
NEXT = b"\n=====\n"  # between two answers
DIGEST = "sha256:" + "ab" * 32


class _Socket:
    """A server that says one thing and closes."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._raw)

    def sendall(self, _data: bytes) -> None: ...

    def settimeout(self, _seconds: float | None) -> None: ...

    def close(self) -> None: ...


class _Connection(HTTPConnection):
    answers: list[bytes]

    def connect(self) -> None:
        self.sock = _Socket(self.answers.pop(0) if self.answers else b"")

    @property
    def is_connected(self) -> bool:
        return False


class _Manager(urllib3.PoolManager):
    """Every URL leads to the same few answers, and to no network."""

    def __init__(self, answers: list[bytes]) -> None:
        super().__init__()
        self._pool = urllib3.HTTPConnectionPool("h", timeout=5, retries=False)
        self._pool.ConnectionCls = type("Connection", (_Connection,), {"answers": answers})

    def connection_from_host(self, *_: Any, **__: Any) -> urllib3.HTTPConnectionPool:
        return self._pool


def answered(client: Any, data: bytes) -> Any:
    """A client whose servers say this, one thing after the other."""
    client._http._direct = _Manager(data.split(NEXT))
    return client


# --- seeds, and how they are changed --------------------------------------------------------------------------


def answer(status: str, body: bytes = b"", *headers: str, length: bool = True) -> bytes:
    """One, of HTTP 1.1."""
    more = [f"Content-Length: {len(body)}"] if length else []
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, *more, "", ""]).encode() + body


LAYER = {"mediaType": "application/vnd.oci.image.layer.nydus.blob.v1", "digest": DIGEST, "size": 10}
MANIFEST = oci.pack_manifest(oci.Layer(DIGEST, 5, ""), [oci.Layer(DIGEST, 9, "")], oci.Layer(DIGEST, 7, ""))
INDEX = oci._json(
    {"manifests": [LAYER | {"platform": {"architecture": "amd64", "os": "linux", "os.features": ["x"]}}]}
)
CHALLENGE = 'WWW-Authenticate: Bearer realm="https://auth/token",service="reg",scope="repository:r:pull"'
_WORDS = [b"HTTP/1.1 ", b"200 OK", b"206 Partial Content", b"302 Found", b"401 Unauthorized", b"404 Not Found",
          b"429 X", b"503 X", b"100 Continue", b"204 No Content", b"304 Not Modified", b"416 X", b"\r\n", b"\n",
          b": ", b"Content-Length", b"Content-Range: bytes 0-9/10", b"Content-Range: bytes 5-14/*",
          b"bytes 0-18446744073709551615/1", b"Content-Encoding: gzip", b"Transfer-Encoding: chunked",
          b"Location: ", b"Location: http://[", b"Location: //u:p@h:99999/x", b"http://h/", b"Retry-After: ",
          b"Retry-After: Fri, 31 Dec 9999 23:59:59 -9999", b"1e999", b"nan", b"-1", b"\xc2\xb2", b"ETag: \"x\"",
          b"Docker-Content-Digest: ", DIGEST.encode(), b"WWW-Authenticate: Basic realm=x", b"Connection: close",
          b"\0", b"\xff", b"a" * 70_000, b"x-amz-bucket-region: eu", b"0\r\n\r\n", b"5\r\nabcde\r\n",
          b"fffffffff\r\n", b"; x=y", b"<Error><Code>", b"</Code></Error>", b"&#0;", b"<!DOCTYPE a [",
          b"Set-Cookie: a=b", b"Content-Type: ", CHALLENGE.encode(), NEXT]  # fmt: skip
_LENGTH = re.compile(rb"Content-Length: \d+")


def _http_change(raw: bytes, rng: random.Random) -> bytes:
    """The head as words, the body as a document; the length is told as it is, in most cases."""
    head, gap, body = raw.partition(b"\r\n\r\n")
    if gap and rng.random() < 0.4:
        body = mutate.document(body, rng) if body[:1] in b"{[" else mutate.text(_WORDS)(body, rng)
    else:
        head = mutate.text(_WORDS)(head, rng)
    if rng.random() < 0.8:
        head = _LENGTH.sub(b"Content-Length: %d" % len(body), head)
    return head + gap + body


def _servers_change(known: list[bytes]) -> mutate.Change:
    return mutate.lines(_http_change, known, NEXT)


_FAULTS = [
    answer("404 Not Found", b'{"errors": [{"code": "BLOB_UNKNOWN", "message": "no"}]}'), answer("500 X",
    b"<html>no</html>"), answer("503 X", b"", "Retry-After: 3"), answer("403 X",
    b"<Error><Code>AccessDenied</Code></Error>"), answer("302 Found", b"", "Location: https://storage/x?sig=1"),
    answer("429 X", b"", "Retry-After: Fri, 31 Dec 1999 23:59:59 GMT"), answer("200 OK",
    b"5\r\nabcde\r\n5\r\nfghij\r\n0\r\n\r\n", "Transfer-Encoding: chunked", length=False),
]  # fmt: skip
_PIECE = answer("206 Partial Content", b"0123456789", "Content-Range: bytes 0-9/10")


def _judge(error: BackendError) -> None:
    """What an error tells people holds nothing of what was sent in confidence, and is one line."""
    text = str(error)
    assert SECRET not in text
    assert "\n" not in text
    assert len(text) < 4000


def _steps(client: Any) -> object:
    """What is asked of any backend."""
    ways: list[object] = []
    for call in (lambda: client.stat("x").size >= 0, lambda: len(client.read("x", 0, 10)) == 10):
        try:
            assert call()
            ways.append(True)
        except BackendError as error:
            _judge(error)
            ways.append((type(error).__name__, error.retryable, re.sub(r"[^a-z ]", "", str(error))[-40:]))
    return ways


# --- backends -------------------------------------------------------------------------------------------------


@functools.cache
def _plain() -> HttpProxyClient:
    return HttpProxyClient(HttpProxy(addr=f"http://u:{SECRET}@h"), 1)


def _plain_seeds() -> Iterator[bytes]:
    yield NEXT.join([answer("200 OK", b"", "ETag: x") + b"x" * 3, _PIECE])
    yield NEXT.join([answer("200 OK", b"0123456789"), answer("200 OK", b"0123456789")])
    for fault in _FAULTS:
        yield NEXT.join([fault, fault])


@target(_plain_seeds, _servers_change([_PIECE, *_FAULTS]), refusals=())
def http_answers(data: bytes) -> object:
    return _steps(answered(_plain(), data))


@functools.cache
def _known_registry() -> RegistryClient:
    return RegistryClient(Registry(host="h", repo="r", scheme="http", auth=encode("u", SECRET)), 1)


def _registry() -> RegistryClient:
    """One that remembers neither redirects nor tokens; certificates are read once."""
    known = _known_registry()
    new = copy.copy(known)
    new._redirects, new._tokens = {}, Tokens(known._config, known._http.send, lambda: False)
    return new


_TOKEN = answer("200 OK", b'{"token": "t", "expires_in": 300}')
_ASKS = answer("401 Unauthorized", b"", CHALLENGE.replace("https", "http"))


def _registry_seeds() -> Iterator[bytes]:
    found = answer("200 OK", MANIFEST, f"Docker-Content-Digest: {digest_of(MANIFEST)}")
    size = answer("200 OK", b"", f"Docker-Content-Digest: {DIGEST}")
    yield NEXT.join([found, size, _PIECE])
    yield NEXT.join([_ASKS, _TOKEN, found, size, _FAULTS[4], _PIECE])
    yield NEXT.join([answer("401 X", b"", "WWW-Authenticate: Basic realm=r"), answer("200 OK", INDEX), size, _PIECE])
    for fault in _FAULTS:
        yield NEXT.join([fault, fault, fault])


@target(_registry_seeds, _servers_change([_PIECE, _TOKEN, _ASKS, *_FAULTS]), refusals=())
def registry_answers(data: bytes) -> object:
    client = answered(_registry(), data)
    ways = []
    try:
        image = oci.parse_manifest(client.manifest("tag").data, "h/r:tag")
        ways.append(type(image).__name__)
    except BackendError as error:
        _judge(error)
        ways.append(type(error).__name__)
    except (FormatError, UnsupportedError) as error:
        ways.append(type(error).__name__)
    return ways, _steps(_Named(client))


class _Named:
    def __init__(self, client: RegistryClient) -> None:
        self._client = client

    def stat(self, _: str) -> Any:
        return self._client.stat(DIGEST)

    def read(self, _: str, offset: int, length: int) -> Any:
        return self._client.read(DIGEST, offset, length)


@functools.cache
def _bucket() -> tuple[S3Client, Any]:
    """A client, and what of it sends."""
    client = S3Client(
        S3(bucket_name="b", endpoint="h", scheme="http", access_key_id="k", access_key_secret=SECRET), 1
    )
    api = client._connected()
    sends = []

    def spy(request: Any, **_: Any) -> None:
        sends.append(request)

    api.meta.events.register("before-send.s3", spy)
    emitter = api.meta.events._emitter
    (transport,) = (
        handler.__self__ for handler in emitter._lookup_cache.get("before-send.s3", ()) or _handlers(emitter)
        if hasattr(handler, "__self__")
    )  # fmt: skip
    return client, transport


def _handlers(emitter: Any) -> Any:
    return emitter._handlers.prefix_search("before-send.s3")


_LIST = (
    b'<?xml version="1.0"?><ListMultipartUploadsResult><Bucket>b</Bucket><Upload><Key>x</Key><UploadId>u</UploadId>'
    b"<Initiated>2026-01-01T00:00:00Z</Initiated></Upload><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
)


def _bucket_seeds() -> Iterator[bytes]:
    size = answer("200 OK", b"", 'ETag: "x"', "x-amz-meta-sha256: 00")
    listed = answer("200 OK", _LIST)
    yield NEXT.join([size, _PIECE, listed])
    yield NEXT.join(
        [
            answer("301 Moved", b"<Error><Code>PermanentRedirect</Code></Error>", "x-amz-bucket-region: eu"),
            _PIECE,
            listed,
        ]
    )
    for code in ("NoSuchKey", "NoSuchBucket", "SlowDown", "SignatureDoesNotMatch", "Strange"):
        body = f"<Error><Code>{code}</Code><Message>k {SECRET}</Message></Error>".encode().replace(
            SECRET.encode(), b"no"
        )
        yield NEXT.join([answer("404 X"), answer("403 X", body), answer("400 X", body)])
    for fault in _FAULTS:
        yield NEXT.join([fault, fault, fault])


@target(_bucket_seeds, _servers_change([_PIECE, answer("200 OK", _LIST), *_FAULTS]), refusals=(), seconds=20.0)
def s3_answers(data: bytes) -> object:
    client, transport = _bucket()
    answered(transport, data)
    ways = _steps(client)
    try:
        found = client.call("list_multipart_uploads", "x", Prefix="x")
        return ways, sorted(found)[:3]
    except BackendError as error:
        _judge(error)
        return ways, type(error).__name__
