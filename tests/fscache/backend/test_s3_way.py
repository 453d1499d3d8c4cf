"""The way to an S3 server: addresses, connections, a proxy, TLS."""

import hashlib
import hmac
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme

from nydus_erofs.erofs.errors import BackendError, ConfigError, DeniedError
from nydus_erofs.fscache.backend.s3.client import S3Client
from nydus_erofs.fscache.config.backend import S3, Mirror, Proxy
from nydus_erofs.fscache.config.backend_file import convert
from tests.kit.servers import s3
from tests.kit.servers.stub import Stub

DATA = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(256)) * 8  # 64 KiB, as in conftest.py
Make = Callable[..., S3Client]


def test_nobody_there(s3_make: Make, s3_failure: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = s3_failure(BackendError, s3_make(f"127.0.0.1:{port}").read, "x", 0, 1)
    assert error.retryable
    assert f"no connection to 127.0.0.1:{port}: Connection refused" in str(error)


def test_a_name_that_nobody_knows(s3_make: Make, s3_failure: Any) -> None:
    error = s3_failure(BackendError, s3_make("nosuchhost.invalid:9000").read, "x", 0, 1)
    assert error.retryable
    assert "no address for the name of nosuchhost.invalid:9000" in str(error)


def test_a_host_that_does_not_answer(s3_make: Make, s3_failure: Any) -> None:
    with socket.socket() as full:  # the queue of one is taken: further connections hang
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        error = s3_failure(BackendError, s3_make(f"127.0.0.1:{full.getsockname()[1]}").read, "x", 0, 1)
        for one in waiting:
            one.close()
    assert error.retryable
    assert "in time" in str(error)


@pytest.mark.parametrize("fields, url", [
    ({"endpoint": "s3.example.com"}, "https://s3.example.com/images/x"),
    ({"endpoint": "oss.example.com", "path_style": False}, "https://images.oss.example.com/x"),
    ({"endpoint": "host:9000", "scheme": "http"}, "http://host:9000/images/x"),
    ({}, "https://s3.amazonaws.com/images/x"),
    ({"region": "eu-west-1"}, "https://s3.eu-west-1.amazonaws.com/images/x"),
    ({"region": "eu-west-1", "path_style": False}, "https://images.s3.eu-west-1.amazonaws.com/x"),
    ({"endpoint": "h.example.com/storage/v1/s3"}, "https://h.example.com/storage/v1/s3/images/x"),
    ({"endpoint": "h.example.com:8/s3", "path_style": False}, "https://images.h.example.com:8/s3/x"),
    ({"region": "cn-north-1"}, "https://s3.cn-north-1.amazonaws.com.cn/images/x"),
])  # fmt: skip
def test_endpoints(s3_no_keys: None, monkeypatch: pytest.MonkeyPatch, fields: Any, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere.example.com")  # the configuration is what counts
    asked = []

    def send(self: Any, request: Any) -> None:
        asked.append(request.url)
        raise BackendError("refused")

    monkeypatch.setattr("nydus_erofs.fscache.backend.http.client.Http.send", send)
    config = S3(**({"bucket_name": "images", "access_key_id": s3.KEY, "access_key_secret": s3.SECRET} | fields))
    with pytest.raises(BackendError):
        S3Client(config, 1).read("x", 0, 1)
    assert asked == [url]


def signed_right(request: Any, secret: str) -> bool:
    """Whether a request's signature (AWS's version 4) is that of what came: path, query and headers as they are."""

    def mac(key: bytes, text: str) -> bytes:
        return hmac.digest(key, text.encode(), "sha256")

    headers = {name.lower(): " ".join(value.split()) for name, value in request.headers.items()}
    fields = dict(field.strip().split("=", 1) for field in headers["authorization"].partition(" ")[2].split(","))
    names = fields["SignedHeaders"].split(";")
    path, _, query = request.path.partition("?")
    parts = sorted(part if "=" in part else f"{part}=" for part in query.split("&") if part)
    shown = [f"{name}:{headers[name]}" for name in names]
    canonical = [request.command, path, "&".join(parts), *shown, "", fields["SignedHeaders"]]
    canonical.append(headers["x-amz-content-sha256"])
    scope = fields["Credential"].split("/", 1)[1]
    hashed = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = mac(key, part)
    wanted = mac(key, "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], scope, hashed])).hex()
    return "host" in names and hmac.compare_digest(wanted, fields["Signature"])


def test_an_endpoint_behind_a_path(s3_no_keys: None) -> None:
    """The path belongs to what is signed: such servers check it."""
    good = s3.objects(DATA)

    def reply(request: Any) -> None:
        if not request.path.startswith("/storage/v1/s3/images") or not signed_right(request, s3.SECRET):
            s3.error(403, "SignatureDoesNotMatch")(request)
        elif "uploads" in request.path:
            request.send(200, b"<Result><UploadId>1</UploadId></Result>")
        elif request.command == "PUT":
            request.send(200, ETag='"etag"')
        else:
            good(request)

    with Stub(reply) as server:
        fields = {
            "scheme": "http", "bucket_name": s3.BUCKET, "access_key_id": s3.KEY,
            "access_key_secret": s3.SECRET, "retry_limit": 0,
        }  # fmt: skip
        for path in ("/storage/v1/s3", "/storage/v1/s3/"):
            config = convert("s3", {"endpoint": server.endpoint + path, **fields})
            assert isinstance(config, S3)
            client = S3Client(config, 1)
            assert client.stat("a b/+x").size == len(DATA)
            assert client.read("a b/+x", 3, 9) == DATA[3:12]
            client.call("list_multipart_uploads", "x", Prefix="a/b c")
            assert client.call("create_multipart_upload", "x")["UploadId"] == "1"
            client.call("upload_part", "x", UploadId="1", PartNumber=1, Body=b"bytes")
        mirror = Mirror(host=f"http://{server.endpoint}/storage/v1/s3")
        assert isinstance(config, S3)
        assert S3Client(config, 1).at(mirror).read("x", 3, 9) == DATA[3:12]
        elsewhere = convert("s3", {"endpoint": server.endpoint, **fields})
        assert isinstance(elsewhere, S3)
        with pytest.raises(DeniedError):
            S3Client(elsewhere, 1).stat("x")


def test_forward_proxy(s3_make: Make, s3_failure: Any) -> None:
    with Stub(s3.objects(DATA)) as proxy:
        url = f"http://user:{s3.SECRET.replace('/', '%2F')}@{proxy.endpoint}"
        assert s3_make("nosuchhost.invalid", proxy=Proxy(url=url)).read("x", 3, 9) == DATA[3:12]
        assert proxy.requests[0].path == "http://nosuchhost.invalid/images/x"
        assert proxy.requests[0].headers["proxy-authorization"]
    error = s3_failure(
        BackendError, s3_make("nosuchhost.invalid", proxy=Proxy(url=url, fallback=False)).read, "x", 3, 9
    )
    assert "user" not in str(error)
    assert "no connection to the proxy before nosuchhost.invalid" in str(error)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def test_tls(s3_make: Make, s3_failure: Any, authority: trustme.CA, tmp_path: Path) -> None:
    files = [str(tmp_path / "other.pem"), str(tmp_path / "ours.pem")]
    trustme.CA().cert_pem.write_to_path(files[0])
    authority.cert_pem.write_to_path(files[1])
    with Stub(s3.objects(DATA), tls(authority, "127.0.0.1")) as server:
        for fields in ({"ca_cert_files": files}, {"skip_verify": True}):
            client = s3_make(server, scheme="https", **fields)
            with ThreadPoolExecutor(4) as pool:
                assert all(pool.map(lambda number, c=client: c.read("x", number, 9) == DATA[number : number + 9],
                                    range(16)))  # fmt: skip
        for untrusting in ({}, {"ca_cert_files": files[:1]}):
            error = s3_failure(BackendError, s3_make(server, scheme="https", **untrusting).read, "x", 0, 1)
            assert not error.retryable
            assert "unable to get local issuer certificate" in str(error)
            assert "ca_cert_files" in str(error)
            assert "skip_verify" in str(error)
        error = s3_failure(BackendError, s3_make(server).read, "x", 0, 1)  # http spoken to an https server
        assert server.endpoint in str(error)


def test_tls_of_another_host(s3_make: Make, s3_failure: Any, authority: trustme.CA, tmp_path: Path) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Stub(s3.objects(DATA), tls(authority, "other.example.com")) as server:
        client = s3_make(server, scheme="https", ca_cert_files=[str(tmp_path / "ca.pem")])
        error = s3_failure(BackendError, client.read, "x", 0, 1)
        assert not error.retryable
        assert "certificate is not valid for" in str(error)


def test_https_spoken_to_an_http_server(s3_make: Make, s3_failure: Any) -> None:
    with Stub(s3.objects(DATA)) as server:
        error = s3_failure(BackendError, s3_make(server, scheme="https").read, "x", 0, 1)
        assert not error.retryable
        assert "does the server speak https?" in str(error)


def test_unusable_ca_files(s3_make: Make, s3_failure: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for name, said in (("empty.pem", "no certificate in PEM form"), ("missing.pem", "No such file")):
        client = s3_make("127.0.0.1:1", scheme="https", ca_cert_files=[str(tmp_path / name)])
        with pytest.raises(ConfigError, match=said):
            client.read("x", 0, 1)
