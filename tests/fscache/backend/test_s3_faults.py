"""The S3 client and servers that do what a real one rarely does."""

import gc
import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from nydus_erofs.erofs.errors import BackendError, BlobNotFoundError, DeniedError
from nydus_erofs.fscache.backend.http.errors import retry_after
from nydus_erofs.fscache.backend.s3.client import S3Client
from tests.kit.servers import s3
from tests.kit.servers.stub import Stub

MIB = 1 << 20
DATA = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(256)) * 8  # 64 KiB, as in conftest.py
Make = Callable[..., S3Client]


@pytest.mark.parametrize("status, code, kind, retryable, after, words", [
    (403, "AccessDenied", DeniedError, False, 0, "check the bucket's policy"),
    (403, "RequestTimeTooSkewed", DeniedError, False, 0, "this host's clock is wrong"),
    (400, "ExpiredToken", DeniedError, False, 0, "renew session_token"),
    (400, "InvalidToken", DeniedError, False, 0, "check session_token"),
    (401, "Whatever", DeniedError, False, 0, "401 Unauthorized (Whatever: a message)"),
    (404, "Whatever", BlobNotFoundError, False, 0, "404 Not Found"),
    (416, "InvalidRange", BackendError, False, 0, "shorter than the image says"),
    (429, "TooManyRequests", BackendError, True, 7, "fewer requests"),
    (503, "SlowDown", BackendError, True, 7, "fewer requests"),
    (503, "ServiceUnavailable", BackendError, True, 7, "503 Service Unavailable (ServiceUnavailable: a message)"),
    (500, "InternalError", BackendError, True, 0, "(InternalError: a message)"),
    (501, "NotImplemented", BackendError, False, 0, "501 Not Implemented"),
    (400, "Odd", BackendError, False, 0, "400 Bad Request (Odd: a message)"),
])  # fmt: skip
def test_error_answers(
    s3_make: Make, s3_failure: Any, status: int, code: str, kind: Any, retryable: bool,
    after: float, words: str,
) -> None:  # fmt: skip
    with Stub(s3.error(status, code, Retry_After="7")) as server:
        client = s3_make(server)
        error = s3_failure(kind, client.read, "x", 0, 1)
        assert (error.retryable, error.retry_after) == (retryable, after)
        assert words in str(error)
        assert len(server.requests) == 1  # it is not for the client to try again
        error = s3_failure(kind, client.stat, "x")
        assert (error.retryable, error.retry_after) == (retryable, after)


@pytest.mark.parametrize("value, seconds", [
    ("0", 0), ("5", 5), ("1.5", 1.5), ("3600", 60), ("1e999", 60), ("-4", 0), ("", 0), ("soon", 0),
    ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 21 Oct 2099 07:28:00 GMT", 60), ("Wed, 99 Oct 2015 07:28:00", 0),
])  # fmt: skip
def test_retry_after(value: str, seconds: float) -> None:
    assert retry_after(value) == seconds


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
    (lying(DATA[:500], span="bytes 0-999/65536"), "announces '500' bytes instead of 1000"),
    (lying(DATA[:2000], span="bytes 0-999/65536"), "announces '2000' bytes instead of 1000"),
    (lying(DATA[:500], sent=1000, span="bytes 0-999/65536"), "127.0.0.1"),
    (lying(DATA[:1000]), "does not say which bytes it sends"),
    (lying(DATA[:1000], span="bytes 1-1000/65536"), "sends bytes 1-1000 instead of 0-999"),
    (lying(DATA[:1000], span="bytes 0-999"), "does not say which bytes it sends"),
    (lying(DATA[:1000], span="bytes 0-" + "9" * 5000), "does not say which bytes it sends"),
    (lying(DATA[:1000], sent="many", span="bytes 0-999/65536"), "announces 'many' bytes"),  # type: ignore[arg-type]
    (reset_in_the_middle, "Connection reset by peer"),
    (stall, "sends nothing more"),
    (lambda request: time.sleep(3), "sends nothing more"),
    (lambda request: request.reset(), "127.0.0.1"),
    (lambda request: request.wfile.write(b"220 welcome to my mail server\r\n"), "broke"),
])  # fmt: skip
def test_wrong_answers_may_be_asked_for_again(s3_make: Make, s3_failure: Any, reply: Any, words: str) -> None:
    with Stub(reply) as server:
        error = s3_failure(BackendError, s3_make(server).read, "x", 0, 1000)
        assert error.retryable, str(error)
        assert words in str(error)


def test_chunked_answers(s3_make: Make, s3_failure: Any) -> None:
    def reply(request: Any) -> None:
        request.send(206, Content_Length="", Content_Range="bytes 0-999/65536", Transfer_Encoding="chunked")
        for offset in range(0, size, 100):
            request.wfile.write(b"64\r\n" + DATA[offset : offset + 100] + b"\r\n")
        request.wfile.write(b"0\r\n\r\n")

    with Stub(reply) as server:
        size = 1000
        assert s3_make(server).read("x", 0, 1000) == DATA[:1000]
        size = 900
        assert "sends 900 bytes" in str(s3_failure(BackendError, s3_make(server).read, "x", 0, 1000))
        size = 1100
        assert "sends more than 1000 bytes" in str(s3_failure(BackendError, s3_make(server).read, "x", 0, 1000))


def test_a_server_without_ranges(s3_make: Make, s3_failure: Any) -> None:
    with Stub(lambda request: request.send(200, DATA)) as server:
        client = s3_make(server)
        assert client.read("x", 0, len(DATA)) == DATA
        for offset, length in ((1, len(DATA)), (0, 1)):
            error = s3_failure(BackendError, client.read, "x", offset, length)
            assert "must know range requests" in str(error)
            assert not error.retryable


def test_the_body_of_a_wrong_answer_is_not_read(s3_make: Make, s3_failure: Any) -> None:
    hung_up = threading.Event()

    def reply(request: Any) -> None:
        try:
            request.send(200, Content_Length=1 << 40)
            for _ in range(1 << 20):
                request.wfile.write(bytes(1 << 16))
        except OSError:
            hung_up.set()

    with Stub(reply) as server:
        s3_failure(BackendError, s3_make(server).read, "x", 0, 1000)
        gc.collect()
        assert hung_up.wait(5)


@pytest.mark.parametrize("status", [200, 500])
def test_endless_texts_are_cut(s3_make: Make, s3_failure: Any, status: int) -> None:
    sent = 0

    def reply(request: Any) -> None:
        nonlocal sent
        request.send(status, Content_Length="", Content_Type="application/xml")
        while sent < 64 * MIB:
            request.wfile.write(b"<a>" * 10_000)
            sent += 30_000

    with Stub(reply) as server:
        s3_failure(BackendError, lambda: s3_make(server).call("list_multipart_uploads", "x", Prefix="x"))
    assert sent < 32 * MIB


@pytest.mark.parametrize("body", [
    b"", b"not xml", b"<Error><Code>x</Code><Code>y</Code><Message><b>deep</b></Message></Error>",
    b"<Error><Region><a/></Region></Error>", b"<html>\x1b[31m" + b"x" * 5000, b"\xff\xfe<", b"<Error/>",
    b"<Error><Message>" + b"line\n\x07" * 900 + b"</Message></Error>",
    b'<!DOCTYPE a [<!ENTITY b "xxxxxxxxxx"><!ENTITY c "&b;&b;&b;&b;">]><Error><Code>&c;</Code></Error>',
])  # fmt: skip
@pytest.mark.parametrize("status", [301, 400, 500])
def test_odd_texts(s3_make: Make, s3_failure: Any, body: bytes, status: int) -> None:
    with Stub(lambda request: request.send(status, body)) as server:
        text = str(s3_failure(BackendError, s3_make(server).read, "x", 0, 1))
        assert str(status) in text or "not understood" in text


def test_echoed_credentials_are_taken_out(s3_make: Make, s3_failure: Any) -> None:
    def reply(request: Any) -> None:
        shown = f"{request.headers['Authorization']} {request.headers['X-Amz-Security-Token']}"
        signature = shown.partition("Signature=")[2].partition(" ")[0]
        s3.error(400, "Odd", f"{s3.KEY} {s3.TOKEN} {signature}")(request)

    with Stub(reply) as server:
        error = s3_failure(BackendError, s3_make(server, session_token=s3.TOKEN).read, "x", 0, 1)
        assert "(Odd: ... ... ...)" in str(error)


@pytest.mark.parametrize("status, code, headers", [
    (301, "PermanentRedirect", {"X_Amz_Bucket_Region": "eu-west-1"}), (307, "TemporaryRedirect", {}),
    (302, "", {}), (400, "AuthorizationHeaderMalformed", {}),
])  # fmt: skip
def test_redirects_are_told_and_not_followed(
    s3_make: Make, s3_failure: Any, status: int, code: str, headers: Any
) -> None:
    with Stub(s3.objects(DATA)) as other:
        extra = f"<Endpoint>{other.endpoint}</Endpoint><Region>eu-west-1</Region>"
        reply = s3.error(status, code, extra=extra, Location=f"http://{other.endpoint}/images/x", **headers)
        with Stub(reply) as server:
            error = s3_failure(BackendError, s3_make(server).read, "x", 0, 1)
            assert not error.retryable
            assert "set region to 'eu-west-1'" in str(error)
            assert len(server.requests) == 1
            assert "set region to 'eu-west-1'" in str(s3_failure(BackendError, s3_make(server).stat, "x"))
            assert len(server.requests) == 3
        assert not other.requests
