"""What the name of an image means, with each configuration."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from nydus_erofs.erofs.errors import BlobNotFoundError, ConfigError, ServiceError
from nydus_erofs.fscache.config.backend import S3, Registry
from nydus_erofs.fscache.config.service import Config
from nydus_erofs.fscache.keeper.images.origin import ImageRequest, by_name, resolve
from nydus_erofs.fscache.keeper.images.places import arrive

BUCKET = S3(bucket_name="images", endpoint="127.0.0.1:9", access_key_id="K", access_key_secret="S", meta_prefix="m/")
HUB = Registry(host="hub.local:5000", repo="base", auth="dTpw")


def test_a_file_here(tmp_path: Path) -> None:
    origin = resolve(ImageRequest(str(tmp_path / "app.meta")), Config())
    assert (origin.remote, origin.name, origin.folders) == (None, "", [str(tmp_path)])


def test_no_mountpoint_is_not_the_working_directory(tmp_path: Path) -> None:
    image = tmp_path / "app.meta"
    image.touch()
    with pytest.raises(ServiceError, match="does not exist"):
        asyncio.run(arrive(ImageRequest(str(image)), Config(), target=""))


def test_a_file_here_with_blobs_elsewhere(tmp_path: Path) -> None:
    origin = resolve(ImageRequest(str(tmp_path / "app.meta")), Config(backend=BUCKET))
    assert (origin.name, origin.remote, origin.folders) == ("", BUCKET, [str(tmp_path)])


def test_in_a_bucket() -> None:
    origin = resolve(ImageRequest("s3://other/m/app.meta"), Config(backend=BUCKET))
    assert origin.name == "m/app.meta"
    assert isinstance(origin.remote, S3)
    assert (origin.remote.bucket_name, origin.remote.access_key_id) == ("other", "K")
    assert resolve(ImageRequest("s3://b/x"), Config()).remote == S3(bucket_name="b")


@pytest.mark.parametrize("name", ["s3://", "s3://bucket", "s3://bucket/", "s3:///x"])
def test_half_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match="s3://BUCKET/NAME"):
        resolve(ImageRequest(name), Config())


def test_in_a_registry() -> None:
    origin = resolve(ImageRequest("hub.local:5000/team/app:v1"), Config(backend=HUB))
    assert isinstance(origin.remote, Registry)
    assert (origin.remote.repo, origin.remote.auth, origin.name) == ("team/app", "dTpw", "v1")


def test_credentials_are_not_given_to_another_registry() -> None:
    origin = resolve(ImageRequest("evil.local/team/app:v1"), Config(backend=HUB))
    assert isinstance(origin.remote, Registry)
    assert (origin.remote.host, origin.remote.auth) == ("evil.local", "")
    own = resolve(ImageRequest("evil.local/team/app:v1"), Config(backend=HUB), "eDp5").remote
    assert isinstance(own, Registry)
    assert own.auth == "eDp5"


def test_the_configured_backend_is_another_kind() -> None:
    with pytest.raises(ConfigError, match=r"s3://b/x: the configured backend is registry .* says s3"):
        resolve(ImageRequest("s3://b/x"), Config(backend=HUB))
    with pytest.raises(ConfigError, match="says registry"):
        resolve(ImageRequest("hub.local/a:b"), Config(backend=BUCKET))


def test_a_configuration_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "backend.json"
    path.write_text(json.dumps({"device": {"backend": {"type": "s3", "config": {"bucket_name": "mine"}}}}))
    origin = resolve(ImageRequest("/images/app.meta", backend_file=str(path)), Config(backend=BUCKET))
    assert origin.remote == S3(bucket_name="mine")
    path.write_text(json.dumps({"device": {"backend": {"type": "localfs", "config": {"dir": "/blobs"}}}}))
    origin = resolve(ImageRequest("/images/app.meta", backend_file=str(path)), Config(backend=BUCKET))
    assert (origin.remote, origin.folders) == (None, ["/blobs", "/images"])


def test_a_configuration_without_a_kind(tmp_path: Path) -> None:
    path = tmp_path / "backend.json"
    path.write_text(json.dumps({"endpoint": "127.0.0.1:9", "scheme": "http"}))
    origin = resolve(ImageRequest("s3://images/app.meta", backend_file=str(path)), Config())
    assert (origin.remote, origin.name) == (
        S3(bucket_name="images", endpoint="127.0.0.1:9", scheme="http"),
        "app.meta",
    )
    with pytest.raises(ConfigError, match="type is missing"):
        resolve(ImageRequest("/app.meta", backend_file=str(path)), Config())


def test_plain_http_and_insecure() -> None:
    remote = resolve(ImageRequest("h.io/app:v1", plain_http=True, insecure=True), Config()).remote
    assert isinstance(remote, Registry)
    assert (remote.scheme, remote.skip_verify) == ("http", True)
    with pytest.raises(ConfigError, match=r"/app.meta: .* there is none"):
        resolve(ImageRequest("/app.meta", plain_http=True), Config())


def test_by_name(tmp_path: Path) -> None:
    (tmp_path / "app.meta").touch()
    config = Config(blob_dirs=[str(tmp_path)], backend=BUCKET)
    assert by_name("app", config).name == ""
    assert by_name("other", config).name == "m/other"
    with pytest.raises(BlobNotFoundError, match="no image other"):
        by_name("other", Config(blob_dirs=[str(tmp_path)]))
    assert by_name("v1", Config(backend=HUB)).name == "v1"
