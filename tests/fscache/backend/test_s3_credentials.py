"""Where the S3 client has its credentials from."""

import hashlib
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.erofs.errors import BackendError, DeniedError
from nydus_erofs.fscache.backend.s3.client import S3Client
from tests.kit.servers import s3
from tests.kit.servers.stub import Stub

DATA = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(256)) * 8  # 64 KiB, as in conftest.py
Make = Callable[..., S3Client]


def chained(s3_make: Make, server: Any, **fields: Any) -> S3Client:
    return s3_make(server, access_key_id="", access_key_secret="", **fields)


def test_no_credentials(
    s3_make: Make, s3_server: Any, s3_blob: str, s3_failure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = chained(s3_make, s3_server)
    assert "set access_key_id" in str(s3_failure(DeniedError, client.read, s3_blob, 0, 1))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.KEY)  # and when there are some, they are used
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.SECRET)
    assert client.read(s3_blob, 0, 9) == DATA[:9]


def test_profile(s3_make: Make, s3_server: Any, s3_blob: str, s3_failure: Any, tmp_path: Path) -> None:
    text = f"[mine]\naws_access_key_id={s3.KEY}\naws_secret_access_key={s3.SECRET}\n"
    (tmp_path / "credentials").write_text(text)
    assert chained(s3_make, s3_server, profile="mine").read(s3_blob, 0, 9) == DATA[:9]
    assert "no profile other" in str(
        s3_failure(BackendError, chained(s3_make, s3_server, profile="other").stat, s3_blob)
    )


@pytest.mark.parametrize("key", ["credential_process", "role_arn = arn:aws:iam::1:role/r\nweb_identity_token_file"])
def test_a_profile_that_names_what_is_not_there(
    key: str, s3_make: Make, s3_server: Any, s3_blob: str, s3_failure: Any, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(f"[profile mine]\n{key} = {tmp_path}/none\n")
    error = s3_failure(DeniedError, chained(s3_make, s3_server, profile="mine").stat, s3_blob)
    assert f"no credentials could be had from {tmp_path}/none: No such file" in str(error)
    assert "credential_process" in (error.hint or "")


def test_container_credentials_of_a_real_server(
    s3_make: Make, s3_server: Any, s3_blob: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Stub(s3.credentials(timedelta(hours=1), token="")) as source:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://{source.endpoint}/keys")
        client = chained(s3_make, s3_server)
        for _ in range(3):
            assert client.read(s3_blob, 0, 9) == DATA[:9]
        assert len(source.requests) == 1


@pytest.mark.parametrize("kind", ["container", "instance"])
def test_expiring_credentials_are_renewed(
    s3_make: Make, monkeypatch: pytest.MonkeyPatch, kind: str, s3_failure: Any
) -> None:
    with Stub(s3.objects(DATA)) as server:
        with Stub(s3.credentials(timedelta(minutes=2))) as source:
            if kind == "container":
                monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://{source.endpoint}/keys")
            else:
                monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
                monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{source.endpoint}")
                # which would have it wait for some minutes if an instance's keys end so soon
                monkeypatch.setattr("botocore.utils.InstanceMetadataFetcher._evaluate_expiration", lambda *_: None)
            client = chained(s3_make, server)
            for _ in range(3):
                assert client.read("x", 0, 9) == DATA[:9]
        used = {request.headers["Authorization"].partition("/")[0] for request in server.requests}
        assert len(used) >= 2
        assert all(request.headers["X-Amz-Security-Token"] == s3.TOKEN for request in server.requests)


def test_web_identity(s3_make: Make, s3_failure: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = (
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
        f"<AccessKeyId>{s3.KEY}</AccessKeyId><SecretAccessKey>{s3.SECRET}</SecretAccessKey>"
        f"<SessionToken>{s3.TOKEN}</SessionToken><Expiration>2199-01-01T00:00:00Z</Expiration>"
        "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    )
    refused = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
    (tmp_path / "token").write_text("an-identity")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
    answers = [(403, refused), (200, given)]
    with (
        Stub(s3.objects(DATA)) as server,
        Stub(lambda request: request.send(answers[0][0], answers[0][1].encode())) as sts,
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://{sts.endpoint}")
        client = chained(s3_make, server)
        error = s3_failure(DeniedError, client.read, "x", 0, 9)
        assert "AssumeRoleWithWebIdentity was answered with AccessDenied" in str(error)
        del answers[0]
        assert client.read("x", 0, 9) == DATA[:9]
        assert server.requests[0].headers["X-Amz-Security-Token"] == s3.TOKEN


def test_a_source_of_credentials_that_fails_may_come_back(
    s3_make: Make, s3_server: Any, s3_blob: str, monkeypatch: pytest.MonkeyPatch, s3_failure: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{port}/keys")
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.RETRY_ATTEMPTS", 1)
    error = s3_failure(BackendError, chained(s3_make, s3_server).read, s3_blob, 0, 1)
    assert error.retryable
    assert "container-role" in str(error)
