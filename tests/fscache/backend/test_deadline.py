"""Every request ends, whatever a server does: registry, proxy and S3 alike."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import trustme

from nydus_erofs.erofs.errors import BackendError
from nydus_erofs.fscache.backend.assemble import Backends, client
from nydus_erofs.fscache.backend.http import deadline
from nydus_erofs.fscache.backend.mirrored import Mirrored
from nydus_erofs.fscache.config.backend import S3, HttpProxy, Mirror, Proxy, Registry, Remote
from nydus_erofs.fscache.worker.preload import preload
from tests.kit.servers import hostile, s3
from tests.kit.servers.hostile import DATA, Hostile, Way
from tests.kit.waiting import wait_for

pytestmark = pytest.mark.usefixtures("s3_no_keys")
NAME = "sha256:" + "0" * 64
BASE = 0.3  # seconds; all other limits are far beyond it
KINDS = ("s3", "registry", "http-proxy")
PATIENT: dict[str, Any] = {"timeout": 60.0, "connect_timeout": 60.0, "deadline": BASE, "retry_limit": 0}
WAYS = (
    hostile.status_line, hostile.headers, hostile.body, hostile.chunks, hostile.chunk_extension, hostile.interim,
    hostile.silent, hostile.late,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    preload("s3")  # its time is not part of what is measured


def remote(kind: str, endpoint: str, scheme: Any = "http", **fields: Any) -> Remote:
    fields = PATIENT | fields
    match kind:
        case "s3":
            return S3(
                endpoint=endpoint, scheme=scheme, bucket_name="b", access_key_id=s3.KEY, access_key_secret=s3.SECRET,
                **fields,
            )  # fmt: skip
        case "registry":
            return Registry(host=endpoint, scheme=scheme, repo="team/app", **fields)
    return HttpProxy(addr=f"{scheme}://{endpoint}", **fields)


def reader(config: Remote) -> Callable[..., Any]:
    """What reads from a backend, as the worker does, but once."""
    backend = Mirrored(client(config, 2), config.mirrors, print, deadline.base(config))
    return lambda offset=0, length=300_000: backend.call(lambda client: client.read(NAME, offset, length))


def cut(read: Callable[..., Any], server: Hostile) -> BackendError:
    """The error of a request that reached the server; it came in time."""
    for _ in range(20):  # on a busy machine a deadline is over before there is a connection
        before, begin = server.connections, time.monotonic()
        with pytest.raises(BackendError) as caught:
            read()
        if server.connections > before:
            assert time.monotonic() - begin < hostile.LONGEST / 2
            return caught.value
    raise AssertionError("nothing was asked")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_server_that_keeps_us_waiting(kind: str, way: Way) -> None:
    with Hostile(way) as server:
        read = reader(remote(kind, server.endpoint))
        for _ in range(2 if way is hostile.late else 1):  # an answer that comes later is nobody's
            error = cut(read, server)
            assert error.retryable
            assert re.search(rf"no more than \d+ bytes in \d+\.\d s from {server.endpoint}$", error.message)
            assert s3.KEY not in error.message
        wait_for("nothing is kept", lambda: not server.busy)


@pytest.mark.parametrize("kind", KINDS)
def test_a_handshake_that_drips(kind: str) -> None:
    with Hostile(hostile.handshake) as server:
        error = cut(reader(remote(kind, server.endpoint, "https")), server)
        assert error.retryable
        assert re.search(rf"no more than 0 bytes in \d+\.\d s from {server.endpoint}$", error.message)
        wait_for("nothing is kept", lambda: not server.busy)


@pytest.fixture(scope="module")
def tls() -> ssl.SSLContext:
    """Of a server on loopback."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_drips_over_tls(kind: str, tls: ssl.SSLContext) -> None:
    with Hostile(hostile.headers, tls=tls) as server:
        error = cut(reader(remote(kind, server.endpoint, "https", skip_verify=True)), server)
        assert re.search(rf"no more than 0 bytes in \d+\.\d s from {server.endpoint}$", error.message)
        wait_for("nothing is kept", lambda: not server.busy)


@pytest.mark.parametrize("way", [hostile.headers, hostile.tunnel], ids=lambda way: way.__name__)
def test_tls_through_a_proxy_behind_tls(way: Way, tls: ssl.SSLContext) -> None:
    with Hostile(way, tls=tls) as server:
        proxy = Proxy(url=f"https://{server.endpoint}", fallback=False)
        error = cut(reader(remote("http-proxy", "127.0.0.1:1", "https", proxy=proxy, skip_verify=True)), server)
        assert " s from the proxy before 127.0.0.1:1" in error.message
        wait_for("nothing is kept", lambda: not server.busy)


@pytest.mark.parametrize("kind", KINDS)
def test_interim_answers_without_end(kind: str) -> None:
    """As fast as they come they cost no more than a mebibyte."""
    with Hostile(hostile.interim_flood) as server:
        error = cut(reader(remote(kind, server.endpoint, deadline=hostile.LONGEST)), server)
        assert error.retryable
        assert "more than 1048576 bytes beside the answer" in error.message
        wait_for("nothing is kept", lambda: not server.busy)


def test_redirects_are_in_it() -> None:
    with Hostile(hostile.redirects) as server:
        error = cut(reader(remote("registry", server.endpoint)), server)
        assert f" s from {server.endpoint}" in error.message
        for kind in ("s3", "http-proxy"):  # which follow none
            assert not cut(reader(remote(kind, server.endpoint, deadline=5.0)), server).retryable


def test_a_connection_that_is_not_made() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            for sock in (first, second, third):
                sock.setblocking(False)
                sock.connect_ex(address)
            begin = time.monotonic()
            with pytest.raises(BackendError, match=f"no more than 0 bytes in .* s from 127.0.0.1:{address[1]}"):
                reader(remote("http-proxy", f"127.0.0.1:{address[1]}"))()
            assert time.monotonic() - begin < hostile.LONGEST / 2


def test_a_unix_socket(tmp_path: Path) -> None:
    with Hostile(hostile.headers, str(tmp_path / "sock")) as server:
        error = cut(reader(HttpProxy(addr=server.endpoint, **PATIENT)), server)
        assert f" s from {server.endpoint}" in error.message


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy(scheme: str) -> None:
    with Hostile(hostile.headers) as server:
        proxy = Proxy(url=f"http://{server.endpoint}", fallback=False)
        error = cut(reader(remote("http-proxy", "127.0.0.1:1", scheme, proxy=proxy)), server)
        assert " s from the proxy before 127.0.0.1:1" in error.message


def test_a_mirror_takes_nothing_of_the_origins_time() -> None:
    with Hostile(hostile.headers) as mirror, Hostile(hostile.steady) as origin:
        mirrors = [Mirror(host=f"http://{mirror.endpoint}")]
        assert reader(remote("http-proxy", origin.endpoint, deadline=1.0, mirrors=mirrors))(0, 5) == DATA[:5]
        assert mirror.connections == 1


@pytest.mark.parametrize("source", ["container", "instance", "role"])
def test_asking_for_keys(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Hostile(hostile.headers) as server:
        monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.TIMEOUT_SECONDS", 60)
        monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "60")
        match source:
            case "container":
                monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://{server.endpoint}/keys")
            case "instance":
                monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
                monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{server.endpoint}")
            case "role":
                (tmp_path / "token").write_text("an-identity")
                monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
                monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
                monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://{server.endpoint}")
        error = cut(reader(S3(endpoint="127.0.0.1:1", scheme="http", bucket_name="b", **PATIENT)), server)
        assert error.retryable
        assert re.search(
            rf"s3 http://127.0.0.1:1/b: its keys: no more than 0 bytes in .* s from {server.endpoint}$", error.message
        )
        assert "an-identity" not in error.message
        wait_for("nothing is kept", lambda: not server.busy)


def test_a_slow_server_may_be_slow() -> None:
    """It takes longer than the base, but sends more than the least."""
    with Hostile(hostile.steady) as server:
        begin = time.monotonic()
        assert reader(remote("http-proxy", server.endpoint, deadline=1.0))(0, 400 << 10) == DATA[: 400 << 10]
        assert time.monotonic() - begin > 1.5


def test_it_counts_as_a_failure_of_the_backend() -> None:
    with Hostile(hostile.headers) as server:
        backends = Backends(2, lambda: None)
        backend = backends.get(remote("http-proxy", server.endpoint, retry_limit=1))
        with pytest.raises(BackendError, match="no more than 0 bytes"):
            backend.read(NAME, 0, 10)
        (news,) = backends.news()
        assert (news.errors, news.retries, news.bytes) == (2, 1, 0)
        assert "no more than 0 bytes" in news.last_error
        assert server.connections == 2


def test_what_it_allows() -> None:
    for kind in KINDS:
        assert deadline.base(remote(kind, "a", timeout=5.0, connect_timeout=5.0, deadline=0.0)) == 30
        assert deadline.base(remote(kind, "a", deadline=7.0)) == 7
    with deadline.within(1000.0) as outer, deadline.within(1.0) as inner:
        assert outer is inner is deadline.current()
        assert 900 < outer.left() < 1000
        outer.brought(16384 * 100)  # a second for each 16 KiB that came
        assert 1000 < outer.left() < 1100
        outer.asks(60.0, 16384 * 200)  # and for those that are sent
        assert 1260 < outer.left() < 1360
    assert deadline.current() is None


def test_others_are_waited_for_within_it() -> None:
    lock = Lock()
    flight: Future[str] = Future()
    with (
        lock,
        deadline.within(0.1),
        pytest.raises(BackendError, match="x: another request"),
        deadline.held(lock, "x"),
    ):
        pass
    with deadline.within(0.1), pytest.raises(BackendError, match="x: another request"):
        deadline.result(flight, "x")
    flight.set_result("here")
    with deadline.held(lock, "x"):
        assert deadline.result(flight, "x") == "here"
    assert not lock.locked()
