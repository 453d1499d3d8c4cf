"""What an image's name means, and what it adds to a backend's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.erofs.errors import ConfigError, UnsupportedError
from nydus_erofs.fscache.config.backend import S3, HttpProxy, LocalFs, Mirror, Proxy, Registry, is_loopback
from nydus_erofs.fscache.config.backend_file import load
from nydus_erofs.fscache.config.completion import backend_of, with_transport
from nydus_erofs.fscache.config.reference import BucketImage, FileImage, RegistryImage, parse_image

HEX = "ab" * 32
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "expected", "manifest"),
    [
        ("hub.example.com/team/app:v1", ("hub.example.com", "team/app", "v1", ""), "v1"),
        ("registry://hub.example.com/app:v1", ("hub.example.com", "app", "v1", ""), "v1"),
        ("localhost:5000/app", ("localhost:5000", "app", "", ""), "latest"),
        ("localhost/app", ("localhost", "app", "", ""), "latest"),
        ("[::1]:5000/app", ("[::1]:5000", "app", "", ""), "latest"),
        (f"127.0.0.1:5000/a/b/c@{DIGEST}", ("127.0.0.1:5000", "a/b/c", "", DIGEST), DIGEST),
        (f"h.io/a:tag@{DIGEST}", ("h.io", "a", "tag", DIGEST), DIGEST),
        ("docker.io/alpine:3", ("docker.io", "library/alpine", "3", ""), "3"),
        ("registry-1.docker.io/alpine", ("registry-1.docker.io", "library/alpine", "", ""), "latest"),
        ("docker.io/me/app", ("docker.io", "me/app", "", ""), "latest"),
    ],
)
def test_in_a_registry(text: str, expected: tuple[str, str, str, str], manifest: str) -> None:
    image = parse_image(text)
    assert image == RegistryImage(*expected)
    assert image.manifest == manifest


@pytest.mark.parametrize("text", ["s3://images/app.meta", "s3://images/a/b/app.meta", "s3://my.bucket/x"])
def test_in_a_bucket(text: str) -> None:
    assert parse_image(text) == BucketImage(*text.removeprefix("s3://").split("/", 1))


@pytest.mark.parametrize(
    "text", ["", "app.meta", "/images/app.meta", "./h.io/app", "../h.io/app", "out/app.meta", "alpine", "team/app:v1",
             "/a:b/c", "images.d"],
)  # fmt: skip
def test_a_file(text: str) -> None:
    assert parse_image(text) == FileImage(text)


@pytest.mark.parametrize(
    "text",
    ["h.io/", "h.io/UP", "h.io/a:", "h.io/a:b c", "h.io/a@", "h.io/a@sha256:12", "h.io/../a", "h i.o/a",
     "user:pw@h.io/a", "h.io/" + "a" * 300, "h.io/a:" + "t" * 200, "registry://alpine", "s3://", "s3://bucket",
     "s3://bucket/", "s3:///x", "s3://bucket/a/../b", "https://h.io/app:v1", "docker://h.io/app:v1", "oss://b/x"],
)  # fmt: skip
def test_no_image(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_image(text)
    assert "\n" not in str(caught.value)
    assert text[:100] in str(caught.value)


@given(st.text(max_size=40) | st.from_regex(r"[a-z.:/@-]{0,30}", fullmatch=True))
def test_any_name(text: str) -> None:
    try:
        image = parse_image(text)
    except ConfigError:
        return
    assert not isinstance(image, FileImage) or image.path == text


def test_this_host() -> None:
    for host in ("localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000", "[::1]"):
        assert is_loopback(host), host
        assert Registry(host=host, repo="a").finds_scheme
        assert not Registry(host=host, repo="a", scheme="https").finds_scheme
    for host in ("h.io", "h.io:5000", "localhost.h.io", "10.0.0.1:5000", "[2001:db8::1]:5000", "127.0.0.1.h.io"):
        assert not is_loopback(host), host


# --- completion -----------------------------------------------------------------------------------------

HUB = Registry(
    host="hub.local:5000", repo="base", scheme="http", auth="dTpw", skip_verify=True, timeout=7, retry_limit=1,
    proxy=Proxy(url="http://p"), mirrors=[Mirror(host="http://m", headers={"Authorization": "x"})],
    ca_cert_files=["/ca"], blob_redirected_host="elsewhere",
)  # fmt: skip


T = TypeVar("T", S3, Registry, HttpProxy)


def of(kind: type[T], remote: object) -> T:
    """What is of this kind."""
    assert isinstance(remote, kind)
    return remote


def test_the_same_registry() -> None:
    remote = of(Registry, backend_of(parse_image("hub.local:5000/team/app:v1"), HUB, auth="eDp5"))
    assert (remote.repo, remote.auth, remote.scheme, remote.mirrors) == ("team/app", "dTpw", "http", HUB.mirrors)
    hub = Registry(host="docker.io", repo="x/y", registry_token="token")
    remote = of(Registry, backend_of(parse_image("index.docker.io/me/app"), hub, auth="eDp5"))
    assert (remote.host, remote.auth, remote.registry_token) == ("index.docker.io", "", "token")


def test_another_registry_gets_nothing_of_it_but_the_way() -> None:
    remote = backend_of(parse_image("evil.local/team/app:v1"), HUB)
    way: dict[str, Any] = {"timeout": 7, "retry_limit": 1, "proxy": HUB.proxy, "ca_cert_files": ["/ca"]}
    assert remote == Registry(host="evil.local", repo="team/app", **way)
    assert of(Registry, backend_of(parse_image("evil.local/team/app:v1"), HUB, auth="eDp5")).auth == "eDp5"


def test_nothing_configured() -> None:
    assert backend_of(parse_image("h.io/a:v1"), None, auth="eDp5") == Registry(host="h.io", repo="a", auth="eDp5")
    assert backend_of(parse_image("s3://b/x"), None) == S3(bucket_name="b")
    assert backend_of(parse_image("/x.meta"), None) is None


def test_a_bucket_and_a_file() -> None:
    bucket = S3(bucket_name="images", endpoint="e", access_key_id="K", access_key_secret="S")
    assert of(S3, backend_of(parse_image("s3://other/x"), bucket)).bucket_name == "other"
    assert of(S3, backend_of(parse_image("s3://other/x"), bucket)).access_key_id == "K"
    assert backend_of(parse_image("/x.meta"), bucket) == bucket


def test_another_kind() -> None:
    with pytest.raises(ConfigError, match=r"the configured backend is registry .*, but the image's name says s3"):
        backend_of(parse_image("s3://b/x"), HUB)
    with pytest.raises(ConfigError, match="says registry"):
        backend_of(parse_image("h.io/a"), S3(bucket_name="b"))


def test_options_of_the_transport() -> None:
    image = parse_image("h.io/a:v1")
    assert of(Registry, backend_of(image, None, plain_http=True)).scheme == "http"
    assert of(Registry, backend_of(image, None, insecure=True)).skip_verify
    assert of(Registry, backend_of(image, None, insecure=True)).scheme == ""
    assert of(S3, backend_of(parse_image("s3://b/x"), None, plain_http=True)).scheme == "http"
    assert of(HttpProxy, with_transport(HttpProxy(addr="https://h"), plain_http=False, insecure=True)).skip_verify
    for backend in (None, LocalFs(dir="/x"), HttpProxy(addr="https://h"), HttpProxy(addr="/sock")):
        with pytest.raises(ConfigError):
            with_transport(backend, plain_http=True, insecure=True)


def test_what_the_name_says_need_not_be_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "backend.json"
    path.write_text(json.dumps({"endpoint": "e", "scheme": "http"}))
    known = parse_image("s3://images/app.meta").known
    assert load(str(path), known=known) == S3(bucket_name="images", endpoint="e", scheme="http")
    path.write_text(json.dumps({"bucket_name": "other", "endpoint": "e"}))
    assert of(S3, load(str(path), "s3", known)).bucket_name == "other"
    path.write_text(json.dumps({"auth": "dTpw"}))
    assert load(str(path), known=parse_image("h.io/a").known) == Registry(host="h.io", repo="a", auth="dTpw")
    with pytest.raises(ConfigError, match="type is missing"):
        load(str(path))
    path.write_text(json.dumps({"type": "localfs", "dir": "/x"}))
    assert load(str(path), known=known) == LocalFs(dir="/x")
    with pytest.raises(ConfigError, match="is a localfs backend, not s3"):
        load(str(path), "s3", known)
    path.write_text(json.dumps({"type": "nonsense"}))
    with pytest.raises(UnsupportedError, match="nonsense"):
        load(str(path), known=known)
