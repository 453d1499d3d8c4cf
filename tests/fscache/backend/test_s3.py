"""The S3 client reads from versitygw."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nydus_erofs.erofs.errors import BackendError, BlobNotFoundError, DeniedError
from nydus_erofs.fscache.backend.s3.client import S3Client
from nydus_erofs.fscache.push.s3 import S3Writer
from tests.kit.servers import s3

DATA = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(256)) * 8  # 64 KiB, as in conftest.py
Make = Callable[..., S3Client]


def test_stat_and_ranges(s3_gateway: S3Client, s3_blob: str) -> None:
    info = s3_gateway.stat(s3_blob)
    assert info == (len(DATA), hashlib.md5(DATA).hexdigest())
    for offset, length in ((0, 1), (0, len(DATA)), (len(DATA) - 1, 1), (4095, 4098), (1, len(DATA) - 2)):
        assert s3_gateway.read(s3_blob, offset, length) == DATA[offset : offset + length]


def test_beyond_the_end(s3_gateway: S3Client, s3_blob: str, s3_failure: Any) -> None:
    for offset, length in ((len(DATA), 1), (len(DATA) - 1, 2), (1 << 40, 4096), (0, len(DATA) + 1)):
        error = s3_failure(BackendError, s3_gateway.read, s3_blob, offset, length)
        assert not error.retryable
        assert "shorter than the image says" in error.message


def test_names_with_folders_and_odd_characters(s3_store: Any, s3_gateway: S3Client) -> None:
    for name in ("a/b/c", "sha256:abc", "with space+plus%25", "ünï"):
        assert s3_gateway.read(s3_store(s3_gateway, DATA, name), 5, 7) == DATA[5:12]


def test_reads_of_many_threads(s3_gateway: S3Client, s3_blob: str) -> None:
    def one(number: int) -> bool:
        offset = number * 1001 % (len(DATA) - 5000)
        return s3_gateway.read(s3_blob, offset, 5000) == DATA[offset : offset + 5000]

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
    s3_store: Any, s3_make: Make, s3_server: Any, s3_blob: str, s3_failure: Any, fields: Any, kind: Any, words: Any
) -> None:
    client = s3_make(s3_server, **fields)
    error = s3_failure(kind, client.read, s3_blob, 0, 1)
    assert str(error).startswith(f"object {s3_blob} of {client.label}: ")
    assert all(word in str(error) for word in words), str(error)
    assert not error.retryable
    assert str(s3_failure(kind, client.stat, s3_blob)) == str(error)
    if kind is DeniedError:
        s3_failure(DeniedError, s3_store, client, DATA)


def test_a_wrong_clock(s3_gateway: S3Client, s3_blob: str, s3_failure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3_gateway.read(s3_blob, 0, 1) == DATA[:1]
    wrong = datetime.now(UTC) - timedelta(hours=2)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: wrong.replace(tzinfo=None))
    error = s3_failure(DeniedError, s3_gateway.read, s3_blob, 0, 1)
    assert "(RequestTimeTooSkewed)" in str(error)
    assert "synchronize it" in str(error)


def test_missing_object(s3_gateway: S3Client, s3_writer: S3Writer, s3_failure: Any) -> None:
    assert "404" in str(s3_failure(BlobNotFoundError, s3_gateway.read, "nothing", 0, 1))
    assert "404" in str(s3_failure(BlobNotFoundError, s3_gateway.stat, "nothing"))
    assert not s3_writer.holds("nothing", 1, "0" * 64)


def test_repr_holds_no_credentials(s3_gateway: S3Client, s3_server: Any) -> None:
    assert repr(s3_gateway) == f"S3Client(s3 http://{s3_server.endpoint}/{s3.BUCKET})"


def test_constructing_loads_nothing() -> None:
    code = (
        "import sys; from nydus_erofs.fscache.config.backend import S3;"
        "from nydus_erofs.fscache.backend.s3.client import S3Client; S3Client(S3(bucket_name='b'), 1);"
        "assert not {'boto3', 'botocore', 'urllib3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_home_and_environment(s3_server: Any, s3_blob: str) -> None:
    code = (
        "import sys; from nydus_erofs.fscache.config.backend import S3;"
        "from nydus_erofs.fscache.backend.s3.client import S3Client;"
        "_, where, bucket, key, secret, name = sys.argv;"
        "c = S3Client(S3(bucket_name=bucket, endpoint=where, scheme='http', access_key_id=key,"
        " access_key_secret=secret), 1); assert len(c.read(name, 1, 99)) == 99"
    )
    values = s3_server.endpoint, s3.BUCKET, s3.KEY, s3.SECRET, s3_blob
    subprocess.run([sys.executable, "-c", code, *values], env={}, check=True, timeout=60)
