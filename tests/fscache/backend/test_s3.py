"""The S3 client against versitygw, and against servers that do what a real one rarely does."""

import gc
import hashlib
import io
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trustme

from nydus_erofs.erofs.errors import BackendError, BlobNotFoundError, DeniedError, NydusErofsError
from nydus_erofs.fscache.backend import s3_write
from nydus_erofs.fscache.backend.config import S3, Proxy
from nydus_erofs.fscache.backend.s3 import S3Client
from nydus_erofs.fscache.backend.s3_errors import pause

MIB = 1 << 20
DATA = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(256)) * 8  # 64 KiB
Make = Callable[..., S3Client]


@pytest.fixture(autouse=True)
def no_keys_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the tester's own keys nor this machine's are found."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def make(s3_kit: ModuleType) -> Make:
    """`make(server, **fields)`: a client of a server (or of host:port), with the test's keys and short patience."""

    def make_client(server: Any, connections: int = 8, **fields: Any) -> S3Client:
        standard = {
            "endpoint": getattr(server, "endpoint", server), "scheme": "http", "bucket_name": s3_kit.BUCKET,
            "access_key_id": s3_kit.KEY, "access_key_secret": s3_kit.SECRET, "timeout": 1.0, "connect_timeout": 1.0,
        }  # fmt: skip
        return S3Client(S3(**(standard | fields)), connections)

    return make_client


@pytest.fixture
def gateway(make: Make, s3_server: Any) -> S3Client:
    return make(s3_server, timeout=20.0)


@pytest.fixture
def blob(gateway: S3Client) -> str:
    """The name of an object with `DATA`."""
    return stored(gateway, DATA)


@pytest.fixture
def failure(s3_kit: ModuleType) -> Callable[..., BackendError]:
    """`failure(kind, call, *arguments)`: the error of a call, checked for its form and for what it must not say."""

    def fail(kind: type[BackendError], call: Callable[..., object], *arguments: Any) -> BackendError:
        with pytest.raises(BackendError) as caught:
            call(*arguments)
        error = caught.value
        assert type(error) is kind, repr(error)
        everything = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
        for secret in (s3_kit.KEY, s3_kit.SECRET, s3_kit.TOKEN, "Signature=", "AWS4-HMAC"):
            assert secret not in everything
        assert "\n" not in str(error)
        assert str(error).isprintable()
        assert len(str(error)) < 600
        return error

    return fail


def stored(client: S3Client, data: bytes, name: str = "") -> str:
    name = name or uuid.uuid4().hex
    client.put(name, io.BytesIO(data), len(data), hashlib.sha256(data).hexdigest(), lambda count: None)
    return name


# --- a real server --------------------------------------------------------------------------------------


def test_stat_and_ranges(gateway: S3Client, blob: str) -> None:
    info = gateway.stat(blob)
    assert info == (len(DATA), hashlib.md5(DATA).hexdigest())
    for offset, length in ((0, 1), (0, len(DATA)), (len(DATA) - 1, 1), (4095, 4098), (1, len(DATA) - 2)):
        assert gateway.read(blob, offset, length) == DATA[offset : offset + length]


def test_beyond_the_end(gateway: S3Client, blob: str, failure: Any) -> None:
    for offset, length in ((len(DATA), 1), (len(DATA) - 1, 2), (1 << 40, 4096), (0, len(DATA) + 1)):
        error = failure(BackendError, gateway.read, blob, offset, length)
        assert not error.retryable
        assert "shorter than the image says" in error.message


def test_names_with_folders_and_odd_characters(gateway: S3Client) -> None:
    for name in ("a/b/c", "sha256:abc", "with space+plus%25", "ünï"):
        assert gateway.read(stored(gateway, DATA, name), 5, 7) == DATA[5:12]


def test_reads_of_many_threads(gateway: S3Client, blob: str) -> None:
    def one(number: int) -> bool:
        offset = number * 1001 % (len(DATA) - 5000)
        return gateway.read(blob, offset, 5000) == DATA[offset : offset + 5000]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(200)))


@pytest.mark.parametrize("fields, kind, words", [
    ({"access_key_secret": "wrong"}, DeniedError, ("signature does not match", "check access_key_secret")),
    ({"access_key_id": "WRONG"}, DeniedError, ("does not know the access key id", "check access_key_id")),
    ({"bucket_name": "no-such-bucket"}, BlobNotFoundError, ("no bucket 'no-such-bucket'", "check bucket_name")),
    ({"bucket_name": "Not A Bucket"}, BackendError, ("refuses this configuration",)),
    ({"region": "eu-west-9"}, BackendError, ("sends us elsewhere", "set region to 'us-east-1'")),
])  # fmt: skip
def test_wrong_configuration(
    make: Make, s3_server: Any, blob: str, failure: Any, fields: Any, kind: Any, words: Any
) -> None:
    client = make(s3_server, **fields)
    error = failure(kind, client.read, blob, 0, 1)
    assert str(error).startswith(client.label + f": object {blob}: ")
    assert all(word in str(error) for word in words), str(error)
    assert not error.retryable
    assert str(failure(kind, client.stat, blob)) == str(error)
    if kind is DeniedError:
        failure(DeniedError, stored, client, DATA)


def test_a_wrong_clock(gateway: S3Client, blob: str, failure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gateway.read(blob, 0, 1) == DATA[:1]
    wrong = datetime.now(UTC) - timedelta(hours=2)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: wrong.replace(tzinfo=None))
    error = failure(DeniedError, gateway.read, blob, 0, 1)
    assert "(RequestTimeTooSkewed)" in str(error)
    assert "synchronize it" in str(error)


def test_missing_object(gateway: S3Client, failure: Any) -> None:
    assert "no such object" in str(failure(BlobNotFoundError, gateway.read, "nothing", 0, 1))
    assert "no such object" in str(failure(BlobNotFoundError, gateway.stat, "nothing"))
    assert not gateway.holds("nothing", 1, "0" * 64)


def test_repr_holds_no_credentials(gateway: S3Client, s3_kit: ModuleType, s3_server: Any) -> None:
    assert repr(gateway) == f"S3Client(s3 http://{s3_server.endpoint}/{s3_kit.BUCKET})"


def test_constructing_loads_nothing() -> None:
    code = (
        "import sys; from nydus_erofs.fscache.backend import config, s3; s3.S3Client(config.S3(bucket_name='b'), 1);"
        "assert not {'boto3', 'botocore', 'urllib3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_home_and_environment(s3_server: Any, s3_kit: ModuleType, blob: str) -> None:
    code = (
        "import sys; from nydus_erofs.fscache.backend import config, s3;"
        "_, where, bucket, key, secret, name = sys.argv;"
        "c = s3.S3Client(config.S3(bucket_name=bucket, endpoint=where, scheme='http', access_key_id=key,"
        " access_key_secret=secret), 1); assert len(c.read(name, 1, 99)) == 99"
    )
    values = s3_server.endpoint, s3_kit.BUCKET, s3_kit.KEY, s3_kit.SECRET, blob
    subprocess.run([sys.executable, "-c", code, *values], env={}, check=True, timeout=60)


# --- writing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 8 * MIB, 8 * MIB + 1, 24 * MIB])
def test_put(gateway: S3Client, s3_server: Any, size: int) -> None:
    data = (DATA * (size // len(DATA) + 1))[:size]
    sha256, name, steps = hashlib.sha256(data).hexdigest(), uuid.uuid4().hex, list[int]()
    assert not gateway.holds(name, size, sha256)
    gateway.put(name, io.BytesIO(data), size, sha256, steps.append)
    assert sum(steps) == size
    assert (s3_server.bucket / name).read_bytes() == data
    assert gateway.stat(name).size == size
    assert gateway.holds(name, size, sha256)
    assert not gateway.holds(name, size + 1, sha256)
    assert not gateway.holds(name, size, "0" * 64)


def test_object_without_metadata_is_judged_by_its_size(gateway: S3Client, s3_server: Any) -> None:
    (s3_server.bucket / "placed").write_bytes(DATA)
    assert gateway.holds("placed", len(DATA), "0" * 64)


class KilledError(Exception):
    pass


def broken_off(client: S3Client, name: str, data: bytes, after: int) -> None:
    """A `put` that ends when `after` parts are there."""
    steps = list[int]()

    def progress(count: int) -> None:
        steps.append(count)
        if len(steps) == after:
            raise KilledError

    with pytest.raises(KilledError):
        client.put(name, io.BytesIO(data), len(data), hashlib.sha256(data).hexdigest(), progress)


def test_a_broken_off_upload_is_continued(make: Make, s3_server: Any, failure: Any) -> None:
    client, name, steps = make(s3_server, connections=1, timeout=20.0), uuid.uuid4().hex, list[int]()
    data = os.urandom(28 * MIB)
    broken_off(client, name, data, after=2)
    failure(BlobNotFoundError, client.stat, name)  # never half an object
    sha256 = hashlib.sha256(data).hexdigest()
    client.put(name, io.BytesIO(data), len(data), sha256, steps.append)
    assert steps == [16 * MIB, 8 * MIB, 4 * MIB]
    assert (s3_server.bucket / name).read_bytes() == data
    assert client.holds(name, len(data), sha256)
    assert not client.call("list_multipart_uploads", name, Prefix=name).get("Uploads")


def test_an_upload_of_other_bytes_is_left_alone(gateway: S3Client, s3_server: Any) -> None:
    name, steps, data = uuid.uuid4().hex, list[int](), os.urandom(20 * MIB)
    broken_off(gateway, name, bytes(20 * MIB), after=1)
    sha256 = hashlib.sha256(data).hexdigest()
    gateway.put(name, io.BytesIO(data), len(data), sha256, steps.append)
    assert sorted(steps) == [4 * MIB, 8 * MIB, 8 * MIB]
    assert (s3_server.bucket / name).read_bytes() == data
    assert gateway.holds(name, len(data), sha256)
    assert len(gateway.call("list_multipart_uploads", name, Prefix=name)["Uploads"]) == 1


def test_an_upload_goes_on_where_lists_are_forbidden(gateway: S3Client, monkeypatch: pytest.MonkeyPatch) -> None:
    call = gateway.call

    def without_lists(operation: str, name: str, **fields: Any) -> dict[str, Any]:
        if operation.startswith("list"):
            raise DeniedError("no lists")
        return call(operation, name, **fields)

    monkeypatch.setattr(gateway, "call", without_lists)
    data = bytes(9 * MIB)
    assert gateway.holds(stored(gateway, data), len(data), hashlib.sha256(data).hexdigest())


def test_bytes_that_arrive_changed_are_refused(
    gateway: S3Client, monkeypatch: pytest.MonkeyPatch, failure: Any
) -> None:
    monkeypatch.setattr(s3_write, "_md5", lambda data: ("", "1B2M2Y8AsgTpgAmY7PhCfg=="))
    for size in (1, 9 * MIB):
        name = uuid.uuid4().hex
        error = failure(BackendError, stored, gateway, bytes(size), name)
        assert error.retryable
        assert "not what was sent" in str(error)
        failure(BlobNotFoundError, gateway.stat, name)


def test_a_file_that_shrinks(gateway: S3Client) -> None:
    for size in (10, 17 * MIB):
        with pytest.raises(NydusErofsError, match="changed meanwhile"):
            gateway.put("shrunk", io.BytesIO(bytes(size - 1)), size, "0" * 64, lambda count: None)
        assert not gateway.holds("shrunk", size, "0" * 64)


def test_lists_of_parts_have_pages(gateway: S3Client, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [{"PartNumber": number} for number in range(1, 2501)]

    def call(operation: str, name: str, PartNumberMarker: int, **fields: Any) -> dict[str, Any]:  # noqa: N803
        page = parts[PartNumberMarker : PartNumberMarker + 1000]
        last = page[-1]["PartNumber"]
        return {"Parts": page, "NextPartNumberMarker": last, "IsTruncated": last < 2500}

    monkeypatch.setattr(gateway, "call", call)
    upload = s3_write._Upload(gateway, "", io.BytesIO(), 9 * MIB, "", print)
    assert upload._parts("an-id") == parts


def test_answers_to_uploads_that_lack_something(make: Make, s3_kit: ModuleType, failure: Any) -> None:
    def reply(request: Any) -> None:
        listed = b"<Upload><Key>x</Key></Upload>" if request.command == "GET" else uploaded
        request.send(200, b"<Result>" + listed + b"</Result>")

    with s3_kit.Stub(reply) as server:
        uploaded = b""
        assert "no UploadId" in str(failure(BackendError, stored, make(server), bytes(9 * MIB), "x"))
        uploaded = b"<UploadId>1</UploadId>"
        assert "no ETag" in str(failure(BackendError, stored, make(server), bytes(9 * MIB), "x"))
        assert "not there as it was sent" in str(failure(BackendError, stored, make(server), b"small", "x"))


def test_parts_grow_with_the_object() -> None:
    for size in (1, 9 * MIB, 80_000 * MIB, 80_000 * MIB + 1, 5 << 40):
        upload = s3_write._Upload(None, "", None, size, "", print)  # type: ignore[arg-type]
        assert upload._count <= 10_000
        assert sum(upload._span(number)[1] for number in (1, upload._count)[: upload._count]) <= size
        assert upload._span(upload._count)[0] + upload._span(upload._count)[1] == size


# --- credentials ----------------------------------------------------------------------------------------


def chained(make: Make, server: Any, **fields: Any) -> S3Client:
    return make(server, access_key_id="", access_key_secret="", **fields)


def test_no_credentials(make: Make, s3_server: Any, blob: str, failure: Any, monkeypatch: pytest.MonkeyPatch,
                        s3_kit: ModuleType) -> None:  # fmt: skip
    client = chained(make, s3_server)
    assert "set access_key_id" in str(failure(DeniedError, client.read, blob, 0, 1))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_kit.KEY)  # and when there are some, they are used
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_kit.SECRET)
    assert client.read(blob, 0, 9) == DATA[:9]


def test_profile(make: Make, s3_server: Any, blob: str, failure: Any, tmp_path: Path, s3_kit: ModuleType) -> None:
    text = f"[mine]\naws_access_key_id={s3_kit.KEY}\naws_secret_access_key={s3_kit.SECRET}\n"
    (tmp_path / "credentials").write_text(text)
    assert chained(make, s3_server, profile="mine").read(blob, 0, 9) == DATA[:9]
    assert "no profile other" in str(failure(BackendError, chained(make, s3_server, profile="other").stat, blob))


def test_container_credentials_of_a_real_server(
    make: Make, s3_kit: ModuleType, s3_server: Any, blob: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_kit.Stub(s3_kit.credentials(timedelta(hours=1), token="")) as source:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://{source.endpoint}/keys")
        client = chained(make, s3_server)
        for _ in range(3):
            assert client.read(blob, 0, 9) == DATA[:9]
        assert len(source.requests) == 1


@pytest.mark.parametrize("kind", ["container", "instance"])
def test_expiring_credentials_are_renewed(
    make: Make, s3_kit: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str, failure: Any
) -> None:
    with s3_kit.Stub(s3_kit.objects(DATA)) as server:
        with s3_kit.Stub(s3_kit.credentials(timedelta(minutes=2))) as source:
            if kind == "container":
                monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://{source.endpoint}/keys")
            else:
                monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
                monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{source.endpoint}")
                # which would have it wait for some minutes if an instance's keys end so soon
                monkeypatch.setattr("botocore.utils.InstanceMetadataFetcher._evaluate_expiration", lambda *_: None)
            client = chained(make, server)
            for _ in range(3):
                assert client.read("x", 0, 9) == DATA[:9]
        used = {request.headers["Authorization"].partition("/")[0] for request in server.requests}
        assert len(used) >= 2
        assert all(request.headers["X-Amz-Security-Token"] == s3_kit.TOKEN for request in server.requests)


def test_web_identity(
    make: Make, s3_kit: ModuleType, failure: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = (
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
        f"<AccessKeyId>{s3_kit.KEY}</AccessKeyId><SecretAccessKey>{s3_kit.SECRET}</SecretAccessKey>"
        f"<SessionToken>{s3_kit.TOKEN}</SessionToken><Expiration>2199-01-01T00:00:00Z</Expiration>"
        "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    )
    refused = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
    (tmp_path / "token").write_text("an-identity")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
    answers = [(403, refused), (200, given)]
    with (
        s3_kit.Stub(s3_kit.objects(DATA)) as server,
        s3_kit.Stub(lambda request: request.send(answers[0][0], answers[0][1].encode())) as sts,
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://{sts.endpoint}")
        client = chained(make, server)
        error = failure(DeniedError, client.read, "x", 0, 9)
        assert "AssumeRoleWithWebIdentity was answered with AccessDenied" in str(error)
        del answers[0]
        assert client.read("x", 0, 9) == DATA[:9]
        assert server.requests[0].headers["X-Amz-Security-Token"] == s3_kit.TOKEN


def test_a_source_of_credentials_that_fails_may_come_back(
    make: Make, s3_kit: ModuleType, s3_server: Any, blob: str, monkeypatch: pytest.MonkeyPatch, failure: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{port}/keys")
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.RETRY_ATTEMPTS", 1)
    error = failure(BackendError, chained(make, s3_server).read, blob, 0, 1)
    assert error.retryable
    assert "container-role" in str(error)


# --- servers that fail ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status, code, kind, retryable, after, words", [
    (403, "AccessDenied", DeniedError, False, 0, "check the bucket's policy"),
    (403, "RequestTimeTooSkewed", DeniedError, False, 0, "this host's clock is wrong"),
    (400, "ExpiredToken", DeniedError, False, 0, "renew session_token"),
    (400, "InvalidToken", DeniedError, False, 0, "check session_token"),
    (401, "Whatever", DeniedError, False, 0, "the server refuses (401 Whatever)"),
    (404, "Whatever", BlobNotFoundError, False, 0, "no such object"),
    (416, "InvalidRange", BackendError, False, 0, "shorter than the image says"),
    (429, "TooManyRequests", BackendError, True, 7, "fewer requests"),
    (503, "SlowDown", BackendError, True, 7, "fewer requests"),
    (503, "ServiceUnavailable", BackendError, True, 7, "503 ServiceUnavailable: a message"),
    (500, "InternalError", BackendError, True, 7, "500 InternalError: a message"),
    (501, "NotImplemented", BackendError, False, 0, "501 NotImplemented"),
    (400, "Odd", BackendError, False, 0, "400 Odd: a message"),
])  # fmt: skip
def test_error_answers(
    make: Make, s3_kit: ModuleType, failure: Any, status: int, code: str, kind: Any, retryable: bool, after: float,
    words: str,
) -> None:  # fmt: skip
    with s3_kit.Stub(s3_kit.error(status, code, Retry_After="7")) as server:
        client = make(server)
        error = failure(kind, client.read, "x", 0, 1)
        assert (error.retryable, error.retry_after) == (retryable, after)
        assert words in str(error)
        assert len(server.requests) == 1  # it is not for the client to try again
        error = failure(kind, client.stat, "x")
        assert (error.retryable, error.retry_after) == (retryable, after)


@pytest.mark.parametrize("value, seconds", [
    ("0", 0), ("5", 5), ("1.5", 1.5), ("3600", 60), ("1e999", 60), ("-4", 0), ("", 0), ("soon", 0),
    ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 21 Oct 2099 07:28:00 GMT", 60), ("Wed, 99 Oct 2015 07:28:00", 0),
])  # fmt: skip
def test_retry_after(value: str, seconds: float) -> None:
    assert pause(value) == seconds


def lying(part: bytes, sent: int | None = None, span: str = "", status: int = 206) -> Callable[[Any], None]:
    """An answer with these bytes, another Content-Length, another Content-Range."""

    def reply(request: Any) -> None:
        request.send(status, part, Content_Length=len(part) if sent is None else sent, Content_Range=span)
        request.close_connection = True

    return reply


def reset_in_the_middle(request: Any) -> None:
    request.send(206, DATA[:500], Content_Length=1000, Content_Range="bytes 0-999/65536")
    request.reset()


def stall(request: Any) -> None:
    request.send(206, DATA[:500], Content_Length=1000, Content_Range="bytes 0-999/65536")
    time.sleep(3)


@pytest.mark.parametrize("reply, words", [
    (lying(DATA[:500], span="bytes 0-999/65536"), "answered 500 bytes instead of 1000"),
    (lying(DATA[:2000], span="bytes 0-999/65536"), "answered 2000 bytes instead of 1000"),
    (lying(DATA[:500], sent=1000, span="bytes 0-999/65536"), "127.0.0.1"),
    (lying(DATA[:1000]), "answered bytes without saying which"),
    (lying(DATA[:1000], span="bytes 1-1000/65536"), "answered bytes 1-1000 instead of 1000 from 0"),
    (lying(DATA[:1000], span="bytes 0-999"), "answered bytes without saying which"),
    (lying(DATA[:1000], span="bytes 0-" + "9" * 5000), "answered bytes without saying which"),
    (lying(DATA, status=200), "answered 65536 bytes instead of 1000"),
    (lying(b"", status=204), "instead of 1000"),
    (lying(DATA[:1000], sent="many", span="bytes 0-999/65536"), "not understood"),  # type: ignore[arg-type]
    (reset_in_the_middle, "Connection reset by peer"),
    (stall, "sent nothing for 1 s"),
    (lambda request: time.sleep(3), "sent nothing for 1 s"),
    (lambda request: request.reset(), "127.0.0.1"),
    (lambda request: request.wfile.write(b"220 welcome to my mail server\r\n"), "closed the connection"),
])  # fmt: skip
def test_wrong_answers_may_be_asked_for_again(
    make: Make, s3_kit: ModuleType, failure: Any, reply: Any, words: str
) -> None:
    with s3_kit.Stub(reply) as server:
        error = failure(BackendError, make(server).read, "x", 0, 1000)
        assert error.retryable, str(error)
        assert words in str(error)


def test_chunked_answers(make: Make, s3_kit: ModuleType, failure: Any) -> None:
    def reply(request: Any) -> None:
        request.send(206, Content_Length="", Content_Range="bytes 0-999/65536", Transfer_Encoding="chunked")
        for offset in range(0, size, 100):
            request.wfile.write(b"64\r\n" + DATA[offset : offset + 100] + b"\r\n")
        request.wfile.write(b"0\r\n\r\n")

    with s3_kit.Stub(reply) as server:
        size = 1000
        assert make(server).read("x", 0, 1000) == DATA[:1000]
        size = 900
        assert "answered 900 bytes" in str(failure(BackendError, make(server).read, "x", 0, 1000))
        size = 1100
        assert "answered more bytes" in str(failure(BackendError, make(server).read, "x", 0, 1000))


def test_a_server_without_ranges(make: Make, s3_kit: ModuleType, failure: Any) -> None:
    with s3_kit.Stub(lambda request: request.send(200, DATA)) as server:
        client = make(server)
        assert client.read("x", 0, len(DATA)) == DATA
        failure(BackendError, client.read, "x", 1, len(DATA))
        failure(BackendError, client.read, "x", 0, 1)


def test_the_body_of_a_wrong_answer_is_not_read(make: Make, s3_kit: ModuleType, failure: Any) -> None:
    hung_up = threading.Event()

    def reply(request: Any) -> None:
        try:
            request.send(200, Content_Length=1 << 40)
            for _ in range(1 << 20):
                request.wfile.write(bytes(1 << 16))
        except OSError:
            hung_up.set()

    with s3_kit.Stub(reply) as server:
        failure(BackendError, make(server).read, "x", 0, 1000)
        gc.collect()
        assert hung_up.wait(5)


@pytest.mark.parametrize("status", [200, 500])
def test_endless_texts_are_cut(make: Make, s3_kit: ModuleType, failure: Any, status: int) -> None:
    sent = 0

    def reply(request: Any) -> None:
        nonlocal sent
        request.send(status, Content_Length="", Content_Type="application/xml")
        while sent < 64 * MIB:
            request.wfile.write(b"<a>" * 10_000)
            sent += 30_000

    with s3_kit.Stub(reply) as server:
        failure(BackendError, lambda: make(server).call("list_multipart_uploads", "x", Prefix="x"))
    assert sent < 32 * MIB


@pytest.mark.parametrize("body", [
    b"", b"not xml", b"<Error><Code>x</Code><Code>y</Code><Message><b>deep</b></Message></Error>",
    b"<Error><Region><a/></Region></Error>", b"<html>\x1b[31m" + b"x" * 5000, b"\xff\xfe<", b"<Error/>",
    b"<Error><Message>" + b"line\n\x07" * 900 + b"</Message></Error>",
    b'<!DOCTYPE a [<!ENTITY b "xxxxxxxxxx"><!ENTITY c "&b;&b;&b;&b;">]><Error><Code>&c;</Code></Error>',
])  # fmt: skip
@pytest.mark.parametrize("status", [301, 400, 500])
def test_odd_texts(make: Make, s3_kit: ModuleType, failure: Any, body: bytes, status: int) -> None:
    with s3_kit.Stub(lambda request: request.send(status, body)) as server:
        text = str(failure(BackendError, make(server).read, "x", 0, 1))
        assert str(status) in text or "not understood" in text


def test_echoed_credentials_are_taken_out(make: Make, s3_kit: ModuleType, failure: Any) -> None:
    def reply(request: Any) -> None:
        shown = f"{request.headers['Authorization']} {request.headers['X-Amz-Security-Token']}"
        signature = shown.partition("Signature=")[2].partition(" ")[0]
        s3_kit.error(400, "Odd", f"{s3_kit.KEY} {s3_kit.TOKEN} {signature}")(request)

    with s3_kit.Stub(reply) as server:
        error = failure(BackendError, make(server, session_token=s3_kit.TOKEN).read, "x", 0, 1)
        assert "400 Odd: ... ... ..." in str(error)


@pytest.mark.parametrize("status, code, headers", [
    (301, "PermanentRedirect", {"X_Amz_Bucket_Region": "eu-west-1"}), (307, "TemporaryRedirect", {}),
    (302, "", {}), (400, "AuthorizationHeaderMalformed", {}),
])  # fmt: skip
def test_redirects_are_told_and_not_followed(
    make: Make, s3_kit: ModuleType, failure: Any, status: int, code: str, headers: Any
) -> None:
    with s3_kit.Stub(s3_kit.objects(DATA)) as other:
        extra = f"<Endpoint>{other.endpoint}</Endpoint><Region>eu-west-1</Region>"
        reply = s3_kit.error(status, code, extra=extra, Location=f"http://{other.endpoint}/images/x", **headers)
        with s3_kit.Stub(reply) as server:
            error = failure(BackendError, make(server).read, "x", 0, 1)
            assert not error.retryable
            assert "set region to 'eu-west-1'" in str(error)
            assert len(server.requests) == 1
            assert "set region to 'eu-west-1'" in str(failure(BackendError, make(server).stat, "x"))
            assert len(server.requests) == 3
        assert not other.requests


# --- the way there --------------------------------------------------------------------------------------


def test_nobody_there(make: Make, failure: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = failure(BackendError, make(f"127.0.0.1:{port}").read, "x", 0, 1)
    assert error.retryable
    assert f"cannot connect to 127.0.0.1:{port}: Connection refused" in str(error)


def test_a_name_that_nobody_knows(make: Make, failure: Any) -> None:
    error = failure(BackendError, make("nosuchhost.invalid:9000").read, "x", 0, 1)
    assert error.retryable
    assert "the name of nosuchhost.invalid:9000 cannot be resolved" in str(error)


def test_a_host_that_does_not_answer(make: Make, failure: Any) -> None:
    with socket.socket() as full:  # the queue of one is taken: further connections hang
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        error = failure(BackendError, make(f"127.0.0.1:{full.getsockname()[1]}").read, "x", 0, 1)
        for one in waiting:
            one.close()
    assert error.retryable
    assert "within 1 s" in str(error)


@pytest.mark.parametrize("fields, url, path", [
    ({"endpoint": "s3.example.com"}, "https://s3.example.com", "https://s3.example.com/images/x"),
    ({"endpoint": "oss.example.com", "path_style": False}, None, "https://images.oss.example.com/x"),
    ({"endpoint": "host:9000", "scheme": "http"}, None, "http://host:9000/images/x"),
    ({}, None, "https://s3.amazonaws.com/images/x"),
    ({"region": "eu-west-1"}, None, "https://s3.eu-west-1.amazonaws.com/images/x"),
    ({"region": "eu-west-1", "path_style": False}, None, "https://images.s3.eu-west-1.amazonaws.com/x"),
    ({"region": "cn-north-1"}, None, "https://s3.cn-north-1.amazonaws.com.cn/images/x"),
])  # fmt: skip
def test_endpoints(
    s3_kit: ModuleType, monkeypatch: pytest.MonkeyPatch, fields: Any, url: str | None, path: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere.example.com")  # the configuration is what counts
    asked = []

    def send(self: Any, request: Any) -> None:
        asked.append(request.url)
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr("botocore.httpsession.URLLib3Session.send", send)
    config = S3(
        **({"bucket_name": "images", "access_key_id": s3_kit.KEY, "access_key_secret": s3_kit.SECRET} | fields)
    )
    with pytest.raises(BackendError):
        S3Client(config, 1).read("x", 0, 1)
    assert asked == [path]


def test_forward_proxy(make: Make, s3_kit: ModuleType, failure: Any) -> None:
    with s3_kit.Stub(s3_kit.objects(DATA)) as proxy:
        url = f"http://user:{s3_kit.SECRET.replace('/', '%2F')}@{proxy.endpoint}"
        assert make("nosuchhost.invalid", proxy=Proxy(url=url)).read("x", 3, 9) == DATA[3:12]
        assert proxy.requests[0].path == "http://nosuchhost.invalid/images/x"
        assert proxy.requests[0].headers["Proxy-Authorization"]
    error = failure(BackendError, make("nosuchhost.invalid", proxy=Proxy(url=url)).read, "x", 3, 9)
    assert "user" not in str(error)
    assert f"cannot connect to {proxy.endpoint}" in str(error)


# --- TLS ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def test_tls(make: Make, s3_kit: ModuleType, failure: Any, authority: trustme.CA, tmp_path: Path) -> None:
    files = [str(tmp_path / "other.pem"), str(tmp_path / "ours.pem")]
    trustme.CA().cert_pem.write_to_path(files[0])
    authority.cert_pem.write_to_path(files[1])
    with s3_kit.Stub(s3_kit.objects(DATA), tls(authority, "127.0.0.1")) as server:
        for fields in ({"ca_cert_files": files}, {"skip_verify": True}):
            client = make(server, scheme="https", **fields)
            with ThreadPoolExecutor(4) as pool:
                assert all(pool.map(lambda number, c=client: c.read("x", number, 9) == DATA[number : number + 9],
                                    range(16)))  # fmt: skip
        for untrusting in ({}, {"ca_cert_files": files[:1]}):
            error = failure(BackendError, make(server, scheme="https", **untrusting).read, "x", 0, 1)
            assert not error.retryable
            assert "certificate is not trusted" in str(error)
            assert "ca_cert_files" in str(error)
            assert "skip_verify" in str(error)
        error = failure(BackendError, make(server).read, "x", 0, 1)  # http spoken to an https server
        assert server.endpoint in str(error)


def test_tls_of_another_host(
    make: Make, s3_kit: ModuleType, failure: Any, authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with s3_kit.Stub(s3_kit.objects(DATA), tls(authority, "other.example.com")) as server:
        client = make(server, scheme="https", ca_cert_files=[str(tmp_path / "ca.pem")])
        error = failure(BackendError, client.read, "x", 0, 1)
        assert not error.retryable
        assert "certificate is not trusted" in str(error)


def test_https_spoken_to_an_http_server(make: Make, s3_kit: ModuleType, failure: Any) -> None:
    with s3_kit.Stub(s3_kit.objects(DATA)) as server:
        error = failure(BackendError, make(server, scheme="https").read, "x", 0, 1)
        assert not error.retryable
        assert "does the server speak https?" in str(error)


def test_unusable_ca_files(make: Make, failure: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for name, said in (("empty.pem", "no certificate in PEM form"), ("missing.pem", "No such file")):
        client = make("127.0.0.1:1", scheme="https", ca_cert_files=[str(tmp_path / name)])
        assert said in str(failure(BackendError, client.read, "x", 0, 1))
