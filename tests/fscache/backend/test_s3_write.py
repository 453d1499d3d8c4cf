"""The S3 client writes to versitygw."""

import hashlib
import io
import os
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from nydus_erofs.erofs.errors import BackendError, BlobNotFoundError, DeniedError, NydusErofsError
from nydus_erofs.fscache.backend.s3.client import S3Client
from nydus_erofs.fscache.config.backend import S3
from nydus_erofs.fscache.push import s3 as s3_write
from nydus_erofs.fscache.push.s3 import S3Writer
from tests.kit.servers.stub import Stub

MIB = 1 << 20
DATA = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(256)) * 8  # 64 KiB, as in conftest.py
Make = Callable[..., S3Client]


@pytest.mark.parametrize("size", [0, 1, 8 * MIB, 8 * MIB + 1, 24 * MIB])
def test_put(s3_gateway: S3Client, s3_writer: S3Writer, s3_server: Any, size: int) -> None:
    data = (DATA * (size // len(DATA) + 1))[:size]
    sha256, name, steps = hashlib.sha256(data).hexdigest(), uuid.uuid4().hex, list[int]()
    assert not s3_writer.holds(name, size, sha256)
    s3_writer.put(name, io.BytesIO(data), size, sha256, steps.append)
    assert sum(steps) == size
    assert (s3_server.bucket / name).read_bytes() == data
    assert s3_gateway.stat(name).size == size
    assert s3_writer.holds(name, size, sha256)
    assert not s3_writer.holds(name, size + 1, sha256)
    assert not s3_writer.holds(name, size, "0" * 64)


def test_object_without_metadata_is_judged_by_its_size(s3_writer: S3Writer, s3_server: Any) -> None:
    (s3_server.bucket / "placed").write_bytes(DATA)
    assert s3_writer.holds("placed", len(DATA), "0" * 64)


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
        S3Writer(client).put(name, io.BytesIO(data), len(data), hashlib.sha256(data).hexdigest(), progress)


def test_a_broken_off_upload_is_continued(s3_make: Make, s3_server: Any, s3_failure: Any) -> None:
    client, name, steps = s3_make(s3_server, connections=1, timeout=20.0), uuid.uuid4().hex, list[int]()
    data = os.urandom(28 * MIB)
    broken_off(client, name, data, after=2)
    s3_failure(BlobNotFoundError, client.stat, name)  # never half an object
    sha256 = hashlib.sha256(data).hexdigest()
    S3Writer(client).put(name, io.BytesIO(data), len(data), sha256, steps.append)
    assert steps == [16 * MIB, 8 * MIB, 4 * MIB]
    assert (s3_server.bucket / name).read_bytes() == data
    assert S3Writer(client).holds(name, len(data), sha256)
    assert not client.call("list_multipart_uploads", name, Prefix=name).get("Uploads")


def test_an_upload_of_other_bytes_is_left_alone(s3_gateway: S3Client, s3_writer: S3Writer, s3_server: Any) -> None:
    name, steps, data = uuid.uuid4().hex, list[int](), os.urandom(20 * MIB)
    broken_off(s3_gateway, name, bytes(20 * MIB), after=1)
    sha256 = hashlib.sha256(data).hexdigest()
    s3_writer.put(name, io.BytesIO(data), len(data), sha256, steps.append)
    assert sorted(steps) == [4 * MIB, 8 * MIB, 8 * MIB]
    assert (s3_server.bucket / name).read_bytes() == data
    assert s3_writer.holds(name, len(data), sha256)
    assert len(s3_gateway.call("list_multipart_uploads", name, Prefix=name)["Uploads"]) == 1


def test_an_upload_goes_on_where_lists_are_forbidden(
    s3_store: Any, s3_gateway: S3Client, s3_writer: S3Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = s3_gateway.call

    def without_lists(operation: str, name: str, **fields: Any) -> dict[str, Any]:
        if operation.startswith("list"):
            raise DeniedError("no lists")
        return call(operation, name, **fields)

    monkeypatch.setattr(s3_gateway, "call", without_lists)
    data = bytes(9 * MIB)
    assert s3_writer.holds(s3_store(s3_gateway, data), len(data), hashlib.sha256(data).hexdigest())


def test_bytes_that_arrive_changed_are_refused(
    s3_store: Any, s3_gateway: S3Client, monkeypatch: pytest.MonkeyPatch, s3_failure: Any
) -> None:
    monkeypatch.setattr(s3_write, "md5_of", lambda data: ("", "1B2M2Y8AsgTpgAmY7PhCfg=="))
    for size in (1, 9 * MIB):
        name = uuid.uuid4().hex
        error = s3_failure(BackendError, s3_store, s3_gateway, bytes(size), name)
        assert error.retryable
        assert "not what was sent" in str(error)
        s3_failure(BlobNotFoundError, s3_gateway.stat, name)


def test_a_file_that_shrinks(s3_writer: S3Writer) -> None:
    for size in (10, 17 * MIB):
        with pytest.raises(NydusErofsError, match="changed meanwhile"):
            s3_writer.put("shrunk", io.BytesIO(bytes(size - 1)), size, "0" * 64, lambda count: None)
        assert not s3_writer.holds("shrunk", size, "0" * 64)


def test_lists_of_parts_have_pages(
    s3_gateway: S3Client, s3_writer: S3Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [{"PartNumber": number} for number in range(1, 2501)]

    def call(operation: str, name: str, PartNumberMarker: int, **fields: Any) -> dict[str, Any]:  # noqa: N803
        page = parts[PartNumberMarker : PartNumberMarker + 1000]
        last = page[-1]["PartNumber"]
        return {"Parts": page, "NextPartNumberMarker": last, "IsTruncated": last < 2500}

    monkeypatch.setattr(s3_writer.client, "call", call)
    upload = s3_write._Upload(s3_writer, "", io.BytesIO(), 9 * MIB, "", print)
    assert upload._parts("an-id") == parts


def test_answers_to_uploads_that_lack_something(s3_store: Any, s3_make: Make, s3_failure: Any) -> None:
    def reply(request: Any) -> None:
        listed = b"<Upload><Key>x</Key></Upload>" if request.command == "GET" else uploaded
        request.send(200, b"<Result>" + listed + b"</Result>")

    with Stub(reply) as server:
        uploaded = b""
        assert "no UploadId" in str(s3_failure(BackendError, s3_store, s3_make(server), bytes(9 * MIB), "x"))
        uploaded = b"<UploadId>1</UploadId>"
        assert "no ETag" in str(s3_failure(BackendError, s3_store, s3_make(server), bytes(9 * MIB), "x"))
        assert "not there as it was sent" in str(s3_failure(BackendError, s3_store, s3_make(server), b"small", "x"))


def test_parts_grow_with_the_object() -> None:
    writer = S3Writer(S3Client(S3(bucket_name="images"), 1))
    for size in (1, 9 * MIB, 80_000 * MIB, 80_000 * MIB + 1, 5 << 40):
        upload = s3_write._Upload(writer, "", io.BytesIO(), size, "", print)
        assert upload._count <= 10_000
        assert sum(upload._span(number)[1] for number in (1, upload._count)[: upload._count]) <= size
        assert upload._span(upload._count)[0] + upload._span(upload._count)[1] == size
