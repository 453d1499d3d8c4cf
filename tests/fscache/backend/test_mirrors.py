"""Mirrors, of every kind of backend alike: asked in order before the origin, left alone when they fail."""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from nydus_erofs.erofs.errors import BackendError
from nydus_erofs.erofs.ids import blob_id
from nydus_erofs.fscache.backend.assemble import Backends
from nydus_erofs.fscache.backend.blob import RemoteBlob
from nydus_erofs.fscache.backend.s3.client import S3Client
from nydus_erofs.fscache.config.backend import LocalFs
from nydus_erofs.fscache.config.backend_file import convert
from nydus_erofs.fscache.credentials.basic import encode
from tests.kit.servers import distribution, s3
from tests.kit.servers.proxy import ForwardProxy
from tests.kit.servers.s3 import Gateway
from tests.kit.servers.stub import Request, Stub
from tests.kit.servers.tokens import TokenServer

DATA = os.urandom(50_000)
BLOB = hashlib.sha256(DATA).hexdigest()
PATHS = {"s3": f"/images/{BLOB}", "registry": f"/v2/team/app/blobs/sha256:{BLOB}", "http-proxy": f"/blobs/{BLOB}"}
PATIENCE = {"timeout": 2.0, "connect_timeout": 2.0, "retry_limit": 0}


def backend(kind: str, origin: str, **fields: Any) -> RemoteBlob:
    """A blob of a backend as the worker assembles it."""
    own = {
        "s3": {
            "endpoint": origin, "scheme": "http", "bucket_name": "images", "access_key_id": s3.KEY,
            "access_key_secret": s3.SECRET,
        },
        "registry": {"host": origin, "repo": "team/app", "scheme": "http"},
        "http-proxy": {"addr": f"http://{origin}", "path": "/blobs"},
    }[kind]  # fmt: skip
    remote = convert(kind, {**own, **PATIENCE, **fields})
    assert not isinstance(remote, LocalFs)
    return Backends(4, lambda: None).blob(remote, blob_id(BLOB))


class Mirror:
    """A stub with the blob while its status is 200; else it answers that."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        good = s3.objects(DATA)
        self.stub = Stub(lambda request: good(request) if self.status == 200 else request.send(self.status))
        self.requests, self.url = self.stub.requests, f"http://{self.stub.endpoint}"

    def taken(self) -> int:
        """How many requests came since this was asked last."""
        count = len(self.requests)
        self.requests.clear()
        return count


@pytest.fixture
def mirror() -> Iterator[Callable[..., Mirror]]:
    """`mirror(status)`: a running `Mirror`."""
    with contextlib.ExitStack() as closing:

        def make(status: int = 200) -> Mirror:
            made = Mirror(status)
            closing.enter_context(made.stub)
            return made

        yield make


@pytest.fixture(params=list(PATHS))
def kind(request: pytest.FixtureRequest, s3_no_keys: None) -> str:
    return str(request.param)


def test_in_order_and_left_alone(kind: str, mirror: Callable[..., Mirror]) -> None:
    one, two, origin = mirror(404), mirror(), mirror()
    patience = {"failure_limit": 2, "health_check_interval": 1}
    mirrors = [{"host": f"{one.url}/", "headers": {"X-Mine": "yes"}, **patience}, {"host": two.url, **patience}]
    blob = backend(kind, origin.stub.endpoint, mirrors=mirrors)

    def asked() -> tuple[int, int, int]:
        assert blob.read_at(7, 9) == DATA[7:16]
        return one.taken(), two.taken(), origin.taken()

    for _ in range(4):
        assert asked() == (1, 1, 0)  # it has not everything, which is no failure
    one.status = 200
    assert blob.read_at(0, 9) == DATA[:9]
    assert one.requests[0].path == PATHS[kind]
    assert one.requests[0].headers["X-Mine"] == "yes"
    assert asked() == (2, 0, 0)
    one.status = two.status = 500
    assert [asked() for _ in range(4)] == [(1, 1, 1), (1, 1, 1), (0, 0, 1), (0, 0, 1)]
    two.status = 200
    time.sleep(1.1)
    assert [asked() for _ in range(3)] == [(1, 1, 0), (0, 1, 0), (0, 1, 0)]
    assert "X-Mine" not in str([request.headers for request in two.requests + origin.requests])


def test_a_ping_tells_whether_it_is_back(kind: str, mirror: Callable[..., Mirror]) -> None:
    one, origin, health = mirror(503), mirror(), mirror(503)
    fields = {"host": one.url, "failure_limit": 1, "health_check_interval": 1, "ping_url": f"{health.url}/healthy"}
    blob = backend(kind, origin.stub.endpoint, mirrors=[fields])
    for back, expected in ((503, (1, 0)), (503, (0, 1)), (200, (1, 1))):
        one.status, health.status = (200 if back == 200 else 503), back
        assert blob.read_at(0, 9) == DATA[:9]
        assert (one.taken(), health.taken()) == expected
        time.sleep(1.1)


def test_the_word_of_the_origin_counts(kind: str, mirror: Callable[..., Mirror]) -> None:
    one, origin = mirror(500), mirror(403)
    blob = backend(kind, origin.stub.endpoint, mirrors=[{"host": one.url}])
    with pytest.raises(BackendError) as caught:
        blob.read_at(0, 9)
    assert "403" in str(caught.value)
    assert origin.stub.endpoint in str(caught.value)


def test_past_the_proxy(kind: str, mirror: Callable[..., Mirror]) -> None:
    one, origin = mirror(), mirror()
    with contextlib.closing(ForwardProxy()) as proxy:
        fields = {"proxy": {"url": proxy.url}, "mirrors": [{"host": one.url}]}
        blob = backend(kind, origin.stub.endpoint, **fields)
        assert blob.read_at(0, 9) == DATA[:9]
        assert (one.taken(), proxy.requests) == (1, [])
        one.status = 404
        assert blob.read_at(0, 9) == DATA[:9]
        assert len(proxy.requests) == 1


def test_a_proxy_that_is_down_is_gone_round(kind: str, mirror: Callable[..., Mirror]) -> None:
    origin, url = mirror(), f"http://127.0.0.1:{distribution.free_port()}"
    assert backend(kind, origin.stub.endpoint, proxy={"url": url}).read_at(0, 9) == DATA[:9]
    alone = backend(kind, origin.stub.endpoint, proxy={"url": url, "fallback": False})
    with pytest.raises(BackendError, match="no connection to the proxy before"):
        alone.read_at(0, 9)


def test_a_bucket_is_signed_for_its_mirror(
    s3_server: Gateway, s3_gateway: S3Client, s3_store: Callable[..., str]
) -> None:
    """A real server checks that."""
    s3_store(s3_gateway, DATA, BLOB)
    dead = f"127.0.0.1:{distribution.free_port()}"
    blob = backend("s3", dead, mirrors=[{"host": f"http://{s3_server.endpoint}"}])
    assert blob.size() == len(DATA)
    assert blob.read_at(5, 9) == DATA[5:14]


def test_a_mirror_gets_the_registrys_token(
    registry_make: Callable[..., distribution.Registry], registry_tokens: Callable[..., TokenServer]
) -> None:
    tokens = registry_tokens()
    registry = registry_make(tokens.auth)
    registry.add(DATA)
    good = s3.objects(DATA)
    reply = lambda request: good(request) if request.headers["Authorization"] else request.send(401)  # noqa: E731
    with Stub(reply) as stub:
        blob = backend("registry", registry.host, mirrors=[{"host": f"http://{stub.endpoint}"}])
        assert blob.read_at(0, 9) == DATA[:9]  # from the registry, which says what it wants
        registry.stop()
        assert blob.read_at(0, 9) == DATA[:9]
        assert stub.requests[-1].headers["Authorization"].startswith("Bearer ")


def test_a_mirror_in_the_clear_gets_no_password(mirror: Callable[..., Mirror], tmp_path: Path) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca"))
    good, auth, one = s3.objects(DATA), encode("me", "my-password"), mirror(404)
    basic = f"Basic {auth}"

    def reply(request: Request) -> None:
        if request.headers["Authorization"] == basic:
            good(request)
        else:
            request.send(401, WWW_Authenticate="Basic realm=x")

    with Stub(reply, context) as stub:
        blob = backend(
            "registry", stub.endpoint, scheme="https", ca_cert_files=[str(tmp_path / "ca")], auth=auth,
            mirrors=[{"host": one.url}],
        )  # fmt: skip
        for _ in range(3):
            assert blob.read_at(0, 9) == DATA[:9]
        assert len(one.requests) == 3
        assert "Authorization" not in str([request.headers for request in one.requests])
