"""The registry client against distribution, and against stubs for what a real registry cannot be made to do."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import trustme

from nydus_erofs.erofs.errors import BackendError, BlobNotFoundError, ConfigError, CorruptError, DeniedError
from nydus_erofs.fscache.backend.registry.client import RegistryClient
from nydus_erofs.fscache.config import backend as config
from nydus_erofs.fscache.credentials.basic import encode
from nydus_erofs.fscache.push import registry as registry_push
from nydus_erofs.fscache.push.registry import RegistryWriter
from tests.kit.servers import distribution
from tests.kit.servers.proxy import ForwardProxy
from tests.kit.servers.stub import Reply, Request, Stub
from tests.kit.servers.tokens import TokenServer

DATA = os.urandom(300_000)
NAME = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
REPO = "team/app"
PATH = f"/v2/{REPO}/blobs/{NAME}"


def client(host: str, *, scheme: Literal["http", "https", ""] = "http", **fields: Any) -> RegistryClient:
    backend = config.Registry(
        host=host, repo=REPO, scheme=scheme, **{"timeout": 2.0, "connect_timeout": 2.0, **fields}
    )
    checked = config.check(backend)
    assert isinstance(checked, config.Registry)
    return RegistryClient(checked, 4)


def writer_to(host: str, **fields: Any) -> RegistryWriter:
    return RegistryWriter(client(host, **fields))


def caught(call: Callable[[], object], *kinds: type[BackendError]) -> BackendError:
    """The error of a call, told as people would see it: a traceback too."""
    with pytest.raises(BackendError) as info:
        call()
    assert type(info.value) in (kinds or (BackendError,)), info.value
    assert "\n" not in str(info.value)
    return info.value


def parts(request: Request, data: bytes = DATA) -> None:
    """What an honest server sends."""
    first, _, last = request.headers["Range"].removeprefix("bytes=").partition("-")
    part = data[int(first) : int(last) + 1]
    request.send(206, part, Content_Range=f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")


# --- reading --------------------------------------------------------------------------------------------


def test_anonymous(registry_make: Callable[..., distribution.Registry]) -> None:
    registry = registry_make()
    assert registry.add(DATA) == NAME
    reader = client(registry.host)
    info = reader.stat(NAME)
    assert (info.size, info.etag) == (len(DATA), NAME)
    for offset, length in ((0, 1), (0, len(DATA)), (1234, 100_000), (len(DATA) - 1, 1)):
        assert reader.read(NAME, offset, length) == DATA[offset : offset + length]
    missing = "sha256:" + "0" * 64
    error = caught(lambda: reader.stat(missing), BlobNotFoundError)
    assert registry.host in str(error)
    assert missing in str(error)
    assert not error.retryable
    caught(lambda: reader.read(missing, 0, 1), BlobNotFoundError)
    for offset, length in ((len(DATA), 1), (len(DATA) - 1, 2)):
        error = caught(partial(reader.read, NAME, offset, length))
        assert "shorter than the image says" in str(error)
        assert not error.retryable


def test_threads_share_connections(registry_make: Callable[..., distribution.Registry]) -> None:
    registry = registry_make()
    registry.add(DATA)
    relay = distribution.Relay(registry.port)
    reader = client(relay.host)
    for number in range(10):
        assert reader.read(NAME, number, 1000) == DATA[number : number + 1000]
        assert reader.stat(NAME).size == len(DATA)
    assert relay.connections == 1
    wrong: list[object] = []
    threads = [
        threading.Thread(
            target=lambda at=at: wrong.extend(
                n for n in range(10) if reader.read(NAME, at + n, 5000) != DATA[at + n : at + n + 5000]
            )
        )
        for at in range(0, 80_000, 20_000)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert relay.connections <= 4
    relay.close()


def test_basic(registry_make: Callable[..., distribution.Registry]) -> None:
    registry = registry_make("basic")
    registry.add(DATA)
    assert client(registry.host, auth=encode("someone", "correct horse")).read(NAME, 5, 10) == DATA[5:15]
    wrong: list[dict[str, Any]] = [
        {},
        {"auth": encode("someone", "wrong staple")},
        {"registry_token": "not-for-basic"},
    ]
    for fields in wrong:
        error = caught(partial(client(registry.host, **fields).read, NAME, 5, 10), DeniedError)
        assert "401" in str(error)


def test_bearer(
    registry_make: Callable[..., distribution.Registry], registry_tokens: Callable[..., TokenServer]
) -> None:
    tokens = registry_tokens(users={"me": "secret-word"})
    registry = registry_make(tokens.auth)
    registry.add(DATA)
    reader = client(registry.host, auth=encode("me", "secret-word"))
    assert reader.stat(NAME).size == len(DATA)
    assert reader.read(NAME, 0, 100) == DATA[:100]
    assert [fields["scope"] for _, fields, _ in tokens.requests] == [f"repository:{REPO}:pull"]
    assert tokens.requests[0][1]["service"] == "the-registry"
    error = caught(lambda: client(registry.host, auth=encode("me", "not-that-word")).stat(NAME), DeniedError)
    assert "token" in str(error)


def test_bearer_anonymous(
    registry_make: Callable[..., distribution.Registry], registry_tokens: Callable[..., TokenServer]
) -> None:
    tokens = registry_tokens()
    registry = registry_make(tokens.auth)
    registry.add(DATA)
    assert client(registry.host).read(NAME, 1, 2) == DATA[1:3]
    assert tokens.requests[0][2] == ""


def test_given_token(
    registry_make: Callable[..., distribution.Registry], registry_tokens: Callable[..., TokenServer]
) -> None:
    tokens = registry_tokens(users={})
    registry = registry_make(tokens.auth)
    registry.add(DATA)
    given = tokens.token(f"repository:{REPO}:pull")
    assert client(registry.host, registry_token=given).read(NAME, 1, 2) == DATA[1:3]
    caught(lambda: client(registry.host, registry_token=given + "x").read(NAME, 1, 2), DeniedError)
    assert tokens.requests == []


def test_token_expires(
    registry_make: Callable[..., distribution.Registry], registry_tokens: Callable[..., TokenServer]
) -> None:
    """Announced: it is renewed before it is of no use. Not announced: after the registry's 401."""
    for says in (2, 300):
        tokens = registry_tokens(lasts=2.0, says=says)
        registry = registry_make(tokens.auth)
        registry.add(DATA)
        reader = client(registry.host)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            assert reader.read(NAME, 0, 100) == DATA[:100]
            time.sleep(0.1)
        assert 2 <= len(tokens.requests) <= 6


def test_one_thread_fetches_the_token(
    registry_make: Callable[..., distribution.Registry], registry_tokens: Callable[..., TokenServer]
) -> None:
    tokens = registry_tokens()
    tokens.delay = 0.3
    registry = registry_make(tokens.auth)
    registry.add(DATA)
    reader = client(registry.host)
    results = []
    threads = [threading.Thread(target=lambda: results.append(reader.read(NAME, 0, 9))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [DATA[:9]] * 4
    assert len(tokens.requests) == 1


def test_identity_token(
    registry_make: Callable[..., distribution.Registry], registry_tokens: Callable[..., TokenServer]
) -> None:
    tokens = registry_tokens(users={}, identity="a-refresh-token")
    registry = registry_make(tokens.auth)
    registry.add(DATA)
    assert client(registry.host, auth=encode("<token>", "a-refresh-token")).read(NAME, 0, 9) == DATA[:9]
    assert tokens.requests[0][0] == "POST"
    error = caught(
        lambda: client(registry.host, auth=encode("<token>", "another-token")).read(NAME, 0, 9), DeniedError
    )
    assert "another-token" not in str(error)


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (401, DeniedError, False), (403, DeniedError, False), (404, BlobNotFoundError, False),
        (405, BackendError, False), (408, BackendError, True), (416, BackendError, False),
        (429, BackendError, True), (500, BackendError, True), (502, BackendError, True), (503, BackendError, True),
    ],
)  # fmt: skip
def test_statuses(status: int, kind: type[BackendError | BlobNotFoundError | DeniedError], retryable: bool) -> None:
    body = json.dumps({"errors": [{"code": "ODD", "message": "m\n" + "é" * 500, "detail": "hidden"}]}).encode()
    with Stub(lambda request: request.send(status, body, Retry_After="1000")) as stub:
        error = caught(lambda: client(stub.endpoint).read(NAME, 0, 9), kind)
        assert error.retryable is retryable
        assert error.retry_after == (60 if status in (429, 503) else 0)
        assert str(status) in str(error)
        assert f"127.0.0.1:{stub.port}" in str(error)
        assert "ODD: m é" in str(error)
        assert "hidden" not in str(error)
        assert len(str(error)) < 600
        assert caught(lambda: client(stub.endpoint).stat(NAME), kind).retryable is retryable


def announces_more(request: Request) -> None:
    request.send(206, DATA[:9], Content_Range=f"bytes 0-9/{len(DATA)}", Content_Length=10)
    request.reset()


def resets(request: Request) -> None:
    request.send(206, DATA[:5], Content_Range=f"bytes 0-9/{len(DATA)}", Content_Length=10)
    request.reset()


def stalls(request: Request) -> None:
    request.send(206, DATA[:5], Content_Range=f"bytes 0-9/{len(DATA)}", Content_Length=10)
    time.sleep(1.5)


def ranged(data: bytes, span: str = "bytes 0-9/300000", status: int = 206, **headers: Any) -> Callable[..., Any]:
    return lambda request: request.send(status, data, **{"Content_Range": span, **headers})


def chunked(data: bytes) -> Callable[..., Any]:
    def reply(request: Request) -> None:
        request.send(206, b"", Content_Range="bytes 0-9/300000", Content_Length="", Transfer_Encoding="chunked")
        request.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))

    return reply


@pytest.mark.parametrize(
    ("reply", "words", "retryable"),
    [
        (announces_more, "", True),
        (resets, "", True),
        (stalls, "nothing more", True),
        (ranged(DATA[:9]), "announces", True),
        (ranged(DATA[:11]), "announces", True),
        (ranged(DATA[:9], "bytes 0-8/9"), "shorter than the image says", False),
        (ranged(DATA[1:11], "bytes 1-10/300000"), "instead of", True),
        (ranged(DATA[:10], ""), "does not say which bytes", True),
        (ranged(DATA[:10], "bytes 0-9/300000, bytes 0-9/300000"), "does not say which bytes", True),
        (ranged(DATA[:10], Content_Encoding="gzip"), "encoded", False),
        (ranged(DATA, "", 200), "for a part", False),
        (ranged(DATA[:10], status=204), "for a part", False),
        (chunked(DATA[:9]), "9 bytes instead of 10", True),
        (chunked(DATA[:11]), "more than 10", True),
    ],
)
def test_bad_bodies(reply: Callable[..., Any], words: str, retryable: bool) -> None:
    with Stub(reply) as stub:
        error = caught(lambda: client(stub.endpoint, timeout=0.5).read(NAME, 0, 10))
        assert words in str(error)
        assert error.retryable is retryable


def test_odd_but_right_bodies() -> None:
    for reply in (ranged(DATA[:10], "", 200), chunked(DATA[:10]), ranged(DATA[:10], "bytes 0-9/*")):
        with Stub(reply) as stub:
            assert client(stub.endpoint).read(NAME, 0, 10) == DATA[:10]


def test_server_restarts(registry_make: Callable[..., distribution.Registry]) -> None:
    registry = registry_make()
    registry.add(DATA)
    reader = client(registry.host)
    assert reader.read(NAME, 0, 9) == DATA[:9]
    registry.stop()
    error = caught(lambda: reader.read(NAME, 0, 9))
    assert error.retryable
    assert registry.host in str(error)
    assert "refused" in caught(lambda: reader.read(NAME, 0, 9)).message
    registry.start()
    assert reader.read(NAME, 0, 9) == DATA[:9]


def test_no_such_host() -> None:
    error = caught(lambda: client("no-such-host.invalid:5000", connect_timeout=5.0).stat(NAME))
    assert error.retryable
    assert "no-such-host.invalid:5000" in str(error)


def test_tls(registry_make: Callable[..., distribution.Registry], tmp_path: Path) -> None:
    ca, other = trustme.CA(), trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    chain, key, trusted, stranger = (tmp_path / name for name in ("chain", "key", "ca", "other"))
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    ca.cert_pem.write_to_path(str(trusted))
    other.cert_pem.write_to_path(str(stranger))
    registry = registry_make("", (chain, key))
    registry.add(DATA)
    for fields in ({"ca_cert_files": [str(stranger), str(trusted)]}, {"skip_verify": True}):
        assert client(registry.host, scheme="https", **fields).read(NAME, 0, 9) == DATA[:9]
    for fields in ({}, {"ca_cert_files": [str(stranger)]}):
        error = caught(partial(client(registry.host, scheme="https", **fields).stat, NAME))
        assert not error.retryable
        assert "ca_cert_files" in (error.hint or "")
        assert "unable to get local issuer certificate" in str(error)
    named = client(f"localhost:{registry.port}", scheme="https", ca_cert_files=[str(trusted)])
    assert "mismatch" in str(caught(lambda: named.stat(NAME)))
    with Stub(parts) as stub:  # one that speaks no TLS
        assert not caught(lambda: client(stub.endpoint, scheme="https").stat(NAME)).retryable
    (tmp_path / "nonsense").write_text("no certificate")
    for name in ("nonsense", "missing"):
        with pytest.raises(ConfigError, match=name):
            client("h", ca_cert_files=[str(tmp_path / name)])


# --- registries of this host ----------------------------------------------------------------------------


def test_of_this_host_without_tls(
    registry_make: Callable[..., distribution.Registry], registry_tokens: Callable[..., TokenServer]
) -> None:
    """As docker and containerd take them: nobody says that it speaks http."""
    tokens = registry_tokens(users={"me": "secret-word"})
    for auth, fields in (("", {}), ("basic", {"auth": encode("someone", "correct horse")}),
                         (tokens.auth, {"auth": encode("me", "secret-word")})):  # fmt: skip
        registry = registry_make(auth)
        registry.add(DATA)
        for host in (registry.host, f"localhost:{registry.port}"):
            reader = client(host, scheme="", **fields)
            assert reader.read(NAME, 3, 9) == DATA[3:12]
            assert reader.label == f"registry {host}/{REPO}"


def test_of_this_host_with_tls(tmp_path: Path) -> None:
    reply = lambda request: request.send(404) if request.command == "HEAD" else parts(request)  # noqa: E731
    stub, _ = tls_stub(tmp_path, reply)
    with stub:
        assert client(stub.endpoint, scheme="").read(NAME, 3, 9) == DATA[3:12]
        error = caught(lambda: client(stub.endpoint, scheme="https").read(NAME, 3, 9))  # said is said
        assert "--insecure" in str(error.hint)


def test_of_this_host_is_asked_once() -> None:
    with Stub(parts) as stub:
        reader = client(stub.endpoint, scheme="")
        for _ in range(3):
            assert reader.read(NAME, 3, 9) == DATA[3:12]
        assert len([request for request in stub.requests if request.path == PATH]) == 3
        error = caught(lambda: client(stub.endpoint, scheme="https").read(NAME, 3, 9))
        assert "--plain-http" in str(error.hint)


def test_of_this_host_that_is_not_up_yet(registry_make: Callable[..., distribution.Registry]) -> None:
    registry = registry_make()
    registry.add(DATA)
    registry.stop()
    reader = client(registry.host, scheme="")
    assert caught(lambda: reader.read(NAME, 3, 9)).retryable
    registry.start()
    assert reader.read(NAME, 3, 9) == DATA[3:12]


def test_of_this_host_writing(registry_make: Callable[..., distribution.Registry]) -> None:
    assert push(writer_to(registry_make().host, scheme=""), b"small")[1] == [5]


def test_wrong_configuration() -> None:
    wrong: list[dict[str, Any]] = [{"repo": "a/../b"}, {"repo": "a?b"}, {"repo": "a", "auth": "nocolon"}]
    for fields in wrong:
        with pytest.raises(ConfigError):
            RegistryClient(config.Registry(host="h", **fields), 1)
    with pytest.raises(ConfigError):
        client("h").read("../x", 0, 1)


# --- redirects ------------------------------------------------------------------------------------------


def test_redirect_is_kept_and_dropped() -> None:
    status = 200

    def store(request: Request) -> None:
        if status != 200:
            request.send(status, b"<Error><Code>Expired</Code><Sig>the-signature</Sig></Error>")
        else:
            parts(request)

    with Stub(store) as storage:
        url = f"http://{storage.endpoint}/there?signature=the-signature"

        def lead(request: Request) -> None:
            if request.headers["Authorization"] != f"Basic {encode('me', 'my-password')}":
                request.send(401, WWW_Authenticate='Basic realm="x"')
            else:
                request.send(307, Location=url)

        with Stub(lead) as registry:
            reader = client(registry.endpoint, auth=encode("me", "my-password"))
            for _ in range(3):
                assert reader.read(NAME, 7, 9) == DATA[7:16]
            assert len(registry.requests) == 2
            for status in (401, 403, 404, 500):
                asked = len(registry.requests)
                error = caught(lambda: reader.read(NAME, 7, 9), DeniedError, BlobNotFoundError, BackendError)
                assert "the-signature" not in str(error)
                assert f"127.0.0.1:{storage.port}" in str(error)
                again = status != 500  # where that may help
                assert len(registry.requests) == asked + again
                status = 200
                assert reader.read(NAME, 7, 9) == DATA[7:16]
                assert len(registry.requests) == asked + again + 1
        assert not any("Authorization" in request.headers for request in storage.requests)


def test_redirect_expires() -> None:
    """A signed URL that is too old is none of the reader's business."""
    good = ["/1"]

    def store(request: Request) -> None:
        parts(request) if request.path in good else request.send(403)

    with Stub(store) as storage:
        lead = lambda request: request.send(302, Location=f"http://{storage.endpoint}{good[0]}")  # noqa: E731
        with Stub(lead) as registry:
            reader = client(registry.endpoint)
            assert reader.read(NAME, 0, 9) == DATA[:9]
            good[0] = "/2"
            assert reader.read(NAME, 0, 9) == DATA[:9]


def test_redirect_within_the_registry_keeps_credentials() -> None:
    def lead(request: Request) -> None:
        if request.headers["Authorization"] is None:
            request.send(401, WWW_Authenticate="Basic realm=x")
        elif request.path == PATH:
            request.send(308, Location="/elsewhere")
        else:
            parts(request)

    with Stub(lead) as registry:
        assert client(registry.endpoint, auth=encode("a", "b")).read(NAME, 0, 9) == DATA[:9]


def test_redirect_overrides() -> None:
    with Stub(parts) as storage:
        lead = lambda request: request.send(303, Location="https://unreachable.invalid/x?y=z")  # noqa: E731
        with Stub(lead) as registry:
            reader = client(registry.endpoint, blob_url_scheme="http", blob_redirected_host=storage.endpoint)
            assert reader.read(NAME, 0, 9) == DATA[:9]
        assert storage.requests[0].path == "/x?y=z"


@pytest.mark.parametrize("location", ["", "file:///etc/passwd", "http://me:pw@127.0.0.1/", "http://[::1", None])
def test_redirect_astray(location: str | None) -> None:
    loop = lambda request: request.send(307, Location=PATH if location is None else location)  # noqa: E731
    with Stub(loop) as stub:
        error = caught(lambda: client(stub.endpoint).read(NAME, 0, 9))
        assert not error.retryable
        assert ("redirects" if location is None else "leads to no") in str(error)
        assert len(stub.requests) == (6 if location is None else 1)


# --- the way there --------------------------------------------------------------------------------------


@pytest.fixture
def proxy() -> Iterator[ForwardProxy]:
    made = ForwardProxy()
    with contextlib.closing(made):
        yield made


def test_proxy(registry_make: Callable[..., distribution.Registry], proxy: ForwardProxy) -> None:
    registry = registry_make("basic")
    registry.add(DATA)
    url = proxy.url.replace("//", "//user:proxy-password@")
    reader = client(registry.host, auth=encode("someone", "correct horse"), proxy=config.Proxy(url=url))
    assert reader.read(NAME, 0, 9) == DATA[:9]
    method, target, headers = proxy.requests[-1]
    assert (method, target) == ("GET", f"http://{registry.host}{PATH}")
    assert headers["proxy-authorization"] == f"Basic {encode('user', 'proxy-password')}"
    assert headers["x-dragonfly-use-p2p"] == "true"
    asked = len(proxy.requests)
    proxy.status = 503
    for _ in range(3):  # one failure, then it is left alone
        assert reader.read(NAME, 0, 9) == DATA[:9]
    assert len(proxy.requests) == asked + 1


def test_proxy_down(registry_make: Callable[..., distribution.Registry]) -> None:
    registry = registry_make()
    registry.add(DATA)
    url = f"http://user:proxy-password@127.0.0.1:{distribution.free_port()}"
    assert client(registry.host, proxy=config.Proxy(url=url)).read(NAME, 0, 9) == DATA[:9]
    error = caught(lambda: client(registry.host, proxy=config.Proxy(url=url, fallback=False)).read(NAME, 0, 9))
    assert error.retryable
    assert "proxy" in str(error)
    assert "proxy-password" not in str(error)


def test_proxy_comes_back(registry_make: Callable[..., distribution.Registry]) -> None:
    registry = registry_make()
    registry.add(DATA)
    port = distribution.free_port()
    ping = [503]
    with Stub(lambda request: request.send(ping[0])) as pinged:
        through = config.Proxy(
            url=f"http://127.0.0.1:{port}", check_interval=1, ping_url=f"http://{pinged.endpoint}/healthy"
        )
        reader = client(registry.host, proxy=through)
        assert reader.read(NAME, 0, 9) == DATA[:9]
        assert pinged.requests == []
        with contextlib.closing(ForwardProxy(port=port)) as proxy:
            for status, used in ((503, 0), (200, 1)):
                ping[0] = status
                time.sleep(1.1)
                assert reader.read(NAME, 0, 9) == DATA[:9]
                assert len(proxy.requests) == used
        assert len(pinged.requests) == 2


def tls_stub(tmp_path: Path, reply: Callable[..., Any]) -> tuple[Stub, str]:
    """A stub behind TLS, and the file of its CA."""
    ca = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.cert_pem.write_to_path(str(tmp_path / "ca"))
    return Stub(reply, context), str(tmp_path / "ca")


def test_proxy_tunnel(tmp_path: Path, proxy: ForwardProxy) -> None:
    answer: list[Reply] = [parts]
    stub, ca = tls_stub(tmp_path, lambda request: answer[0](request))
    with stub:
        reader = client(stub.endpoint, scheme="https", ca_cert_files=[ca], proxy=config.Proxy(url=proxy.url))
        assert reader.read(NAME, 0, 9) == DATA[:9]
        assert [(method, target) for method, target, _ in proxy.requests] == [("CONNECT", stub.endpoint)]
        answer[0] = lambda request: request.send(500)  # the server's own: the proxy is not to blame
        asked = len(stub.requests)
        caught(lambda: reader.read(NAME, 0, 9))
        assert len(stub.requests) == asked + 1
        proxy.status = 403
        answer[0] = parts
        fresh = client(stub.endpoint, scheme="https", ca_cert_files=[ca], proxy=config.Proxy(url=proxy.url))
        assert fresh.read(NAME, 0, 9) == DATA[:9]


def test_proxy_use_http(registry_tokens: Callable[..., TokenServer], tmp_path: Path, proxy: ForwardProxy) -> None:
    """Data goes to the proxy in the clear, and it does the TLS; a password never does."""
    seen = []

    def reply(request: Request) -> None:
        if request.path.startswith("/token"):
            seen.append(request.headers["Authorization"])
            request.send(200, b'{"token": "a-token-for-you"}')
        elif request.headers["Authorization"] != "Bearer a-token-for-you":
            request.send(401, WWW_Authenticate=f'Bearer realm="https://{stub.endpoint}/token",service="s"')
        else:
            parts(request)

    stub, ca = tls_stub(tmp_path, reply)
    with stub:
        proxy.upstream_tls = ssl.create_default_context(cafile=ca)
        through = config.Proxy(url=proxy.url, use_http=True)
        auth = encode("me", "my-password")
        reader = client(stub.endpoint, scheme="https", ca_cert_files=[ca], proxy=through, auth=auth)
        assert reader.read(NAME, 0, 9) == DATA[:9]
        assert {(method, target) for method, target, _ in proxy.requests} == {
            ("GET", f"http://{stub.endpoint}{PATH}")
        }
        assert seen == [f"Basic {auth}"]
        assert not any(auth in str(headers) for _, _, headers in proxy.requests)


# --- writing --------------------------------------------------------------------------------------------


def push(writer: RegistryWriter, data: bytes) -> tuple[str, list[int]]:
    steps: list[int] = []
    digest = hashlib.sha256(data).hexdigest()
    name = f"sha256:{digest}"
    assert not writer.holds(name, len(data), digest)
    writer.put(name, io.BytesIO(data), len(data), digest, steps.append)
    assert writer.holds(name, len(data), digest)
    assert sum(steps) == len(data)
    if data:  # nothing asks for no bytes
        assert bytes(writer.client.read(name, 0, len(data))) == data
    return name, steps


def test_push(
    registry_make: Callable[..., distribution.Registry], registry_tokens: Callable[..., TokenServer]
) -> None:
    tokens = registry_tokens(users={"me": "secret-word"})
    registry = registry_make(tokens.auth)
    writer = writer_to(registry.host, auth=encode("me", "secret-word"))
    assert len(push(writer, b"small")[1]) == 1
    assert push(writer, b"")[1] == []
    big = os.urandom(40 << 20)
    name, steps = push(writer, big)
    assert steps == [16 << 20, 16 << 20, 8 << 20]
    again: list[int] = []
    writer.put(name, io.BytesIO(b"not looked at"), len(big), name[7:], again.append)
    assert again == [len(big)]
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 5,
                   "digest": "sha256:" + hashlib.sha256(b"small").hexdigest()},
        "layers": [],
    }).encode()  # fmt: skip
    digest = writer.put_manifest("v1", manifest, "application/vnd.oci.image.manifest.v1+json")
    assert digest == "sha256:" + hashlib.sha256(manifest).hexdigest()
    for reference in ("v1", digest):
        got = writer.client.manifest(reference)
        assert got == (manifest, digest, "application/vnd.oci.image.manifest.v1+json")
    caught(lambda: writer.client.manifest("v2"), BlobNotFoundError)
    caught(lambda: writer.put_manifest("v3", b"{}", "application/vnd.oci.image.manifest.v1+json"))


def test_push_refused(registry_make: Callable[..., distribution.Registry]) -> None:
    registry = registry_make("basic")
    writer = writer_to(registry.host, auth=encode("someone", "wrong staple"))
    digest = hashlib.sha256(b"x").hexdigest()
    caught(lambda: writer.put(f"sha256:{digest}", io.BytesIO(b"x"), 1, digest, print), DeniedError)


def test_push_of_other_bytes(registry_make: Callable[..., distribution.Registry]) -> None:
    registry = registry_make()
    digest = hashlib.sha256(b"x").hexdigest()
    writer = writer_to(registry.host)
    error = caught(lambda: writer.put(f"sha256:{digest}", io.BytesIO(b"y"), 1, digest, lambda more: None))
    assert not error.retryable
    assert not writer.holds(f"sha256:{digest}", 1, digest)


def test_push_goes_on_after_a_cut(registry_make: Callable[..., distribution.Registry]) -> None:
    registry = registry_make()
    relay = distribution.Relay(registry.port)
    relay.cut_after = 20 << 20
    writer = writer_to(relay.host)
    push(writer, os.urandom(40 << 20))
    assert relay.cut_after is None
    assert relay.connections > 1
    relay.close()


def test_push_resumes() -> None:
    """A registry that keeps what came before a cut is sent the rest alone."""
    data = os.urandom(20 << 20)
    digest = hashlib.sha256(data).hexdigest()
    kept, cuts = bytearray(), [3 << 20]
    done: list[str] = []

    def reply(request: Request) -> None:
        state = f"/up?state={len(kept)}&secret=s"
        if request.command == "HEAD":
            request.send(200 if done else 404, Content_Length=len(data) if done else 0)
        elif request.command == "POST":
            request.send(202, Location=state)
        elif request.command == "PATCH":
            body = stub.requests[-1].body
            assert request.headers["Content-Range"] == f"{len(kept)}-{len(kept) + len(body) - 1}"
            if cuts:
                kept.extend(body[: cuts.pop()])
                request.reset()
                return
            kept.extend(body)
            request.send(202, Location=f"/up?state={len(kept)}&secret=s")
        elif request.command == "GET":
            request.send(204, Location=state, Range=f"0-{len(kept) - 1}")
        else:
            done.append(request.path)
            request.send(201)

    with Stub(reply) as stub:
        steps: list[int] = []
        writer_to(stub.endpoint).put(f"sha256:{digest}", io.BytesIO(data), len(data), digest, steps.append)
        assert bytes(kept) == data
        assert sum(steps) == len(data)
        assert done == [f"/up?state={len(data)}&secret=s&digest=sha256%3A{digest}"]
        assert [request.command for request in stub.requests] == [
            "HEAD",
            "POST",
            "PATCH",
            "GET",
            "PATCH",
            "PATCH",
            "PUT",
        ]


def test_manifest_is_checked() -> None:
    digest = "sha256:" + hashlib.sha256(b"{}").hexdigest()
    replies = {
        "/right": lambda request: request.send(200, b"{}", Docker_Content_Digest=digest, Content_Type="a/b; c=d"),
        "/wrong": lambda request: request.send(200, b"{ }", Docker_Content_Digest=digest),
        f"/{digest}": lambda request: request.send(200, b"{ }"),
        "/long": lambda request: request.send(200, b" " * ((4 << 20) + 1)),
    }
    with Stub(lambda request: replies[request.path.removeprefix(f"/v2/{REPO}/manifests")](request)) as stub:
        reader = client(stub.endpoint)
        assert reader.manifest("right") == (b"{}", digest, "a/b")
        assert "application/vnd.oci.image.index.v1+json" in stub.requests[0].headers["Accept"]
        for reference in ("wrong", digest):
            caught(partial(reader.manifest, reference), CorruptError)
        assert "more than" in str(caught(lambda: reader.manifest("long")))
        with pytest.raises(ConfigError):
            reader.manifest("no/tag")


# --- secrets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [307, 400, 401, 403, 404, 416, 429, 500, 503])
def test_no_credential_in_any_message(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that repeats all it was told."""
    monkeypatch.setattr(registry_push, "_PAUSE", 0.0)
    secrets = ["pass-word-1", "token-2", "identity-3", "signature-4", "proxy-5", encode("me", "pass-word-1")]

    def reply(request: Request) -> None:
        seen = stub.requests[-1]
        if request.path.startswith("/realm") and status != 400:
            request.send(200, b'{"token": "token-2"}')
        elif (
            "Authorization" not in seen.headers
            and not request.path.startswith("/realm")
            and "signed" not in seen.path
        ):
            request.send(401, WWW_Authenticate=kind[0])
        else:
            said = f"{seen.path} {seen.headers} pass-word-1 identity-3".encode() + seen.body
            request.send(status, said, Location=f"http://{stub.endpoint}/signed?X=signature-4")

    kind = [""]
    credentials: list[dict[str, Any]] = [
        {"auth": encode("me", "pass-word-1")}, {"auth": encode("<token>", "identity-3")},
        {"registry_token": "token-2"}, {},
    ]  # fmt: skip
    with Stub(reply) as stub:
        for kind[0] in ("Basic realm=x", f'Bearer realm="http://{stub.endpoint}/realm?x=signature-4",service=s'):
            for fields in credentials:
                url = f"http://u:proxy-5@127.0.0.1:{distribution.free_port()}"
                reader = client(stub.endpoint, proxy=config.Proxy(url=url), **fields)
                writer = RegistryWriter(reader)
                calls: list[Callable[[], object]] = [
                    partial(reader.read, NAME, 0, 9),
                    partial(reader.stat, NAME),
                    partial(reader.manifest, "v1"),
                    partial(writer.put_manifest, "v1", b"{}", "a/b"),
                    partial(writer.put, NAME, io.BytesIO(DATA), len(DATA), NAME[7:], print),
                ]
                for call in calls:
                    with pytest.raises(BackendError) as info:
                        call()
                    shown = f"{info.value} {info.value!r} {reader!r} {reader.label} " + "".join(
                        traceback.format_exception(info.value)
                    )
                    assert not [secret for secret in secrets if secret in shown], shown
