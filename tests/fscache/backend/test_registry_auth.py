"""Docker's configuration, credential helpers, and what registries say they want."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.erofs.errors import ConfigError
from nydus_erofs.fscache.backend.registry.challenges import Challenge, parse_challenges
from nydus_erofs.fscache.backend.registry.client import RegistryClient
from nydus_erofs.fscache.config import backend as config
from nydus_erofs.fscache.config.reference import registry_host
from nydus_erofs.fscache.credentials import docker as registry_auth
from nydus_erofs.fscache.credentials.basic import decode, encode
from nydus_erofs.fscache.credentials.docker import docker_credentials, with_docker_credentials
from tests.kit.servers import distribution


@pytest.fixture
def docker(tmp_path: Path) -> Callable[..., Any]:
    """`docker(document)`: the path of a configuration file."""

    def write(document: Any) -> str:
        path = tmp_path / "config.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return str(path)

    return write


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`helper(script)`: docker-credential-fake on PATH."""

    def write(script: str) -> None:
        path = tmp_path / "docker-credential-fake"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return write


def test_auths(docker: Callable[..., Any]) -> None:
    one = base64.b64encode(b"me:pass:word").decode()
    path = docker({
        "auths": {"plain.example:5000": {"auth": one}, "https://tls.example": {"auth": one}, "empty.example": {},
                  "named.example": {"username": "u", "password": "p"},
                  "token.example": {"auth": one, "identitytoken": "refresh"}, "old.example": {"auth": one + "AAAA"}},
        "HttpHeaders": {"User-Agent": "x"},
    })  # fmt: skip
    assert decode(docker_credentials("plain.example:5000", path)) == ("me", "pass:word")
    assert decode(docker_credentials("tls.example", path)) == ("me", "pass:word")
    assert decode(docker_credentials("named.example", path)) == ("u", "p")
    assert decode(docker_credentials("token.example", path)) == ("<token>", "refresh")
    for host in ("empty.example", "plain.example", "other.example", "docker.io"):
        assert docker_credentials(host, path) == ""


@pytest.mark.parametrize(
    "key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"]
)
def test_docker_hub(docker: Callable[..., Any], key: str) -> None:
    path = docker({"auths": {key: {"auth": encode("me", "word")}}})
    for host in ("docker.io", "registry-1.docker.io"):
        assert docker_credentials(host, path) == encode("me", "word")
    assert docker_credentials("example.org", path) == ""


def test_names() -> None:
    assert registry_host("docker.io") == "registry-1.docker.io"
    assert registry_host("example.org:5000") == "example.org:5000"


def test_no_configuration(tmp_path: Path, docker: Callable[..., Any]) -> None:
    assert docker_credentials("h", str(tmp_path / "none.json")) == ""
    for wrong in ("", "[]", '{"auths": 3}', '{"auths": {"h": {"auth": "se-cret"}}}', '{"credsStore": "../se-cret"}'):
        with pytest.raises(ConfigError, match="docker configuration") as info:
            docker_credentials("h", docker(wrong))
        assert "se-cret" not in str(info.value)
    with pytest.raises(ConfigError):
        docker_credentials("h", docker('{"auths": {}}' + " " * (1 << 20)))


ANSWER = """test "$1" = get && read -r host
printf '{"ServerURL":"%s","Username":"me","Secret":"for-%s"}' "$host" "$host" """


def test_helper(docker: Callable[..., Any], helper: Callable[..., Any]) -> None:
    helper(ANSWER)
    store = docker({"credsStore": "fake"})
    assert decode(docker_credentials("a.example:5000", store)) == ("me", "for-a.example:5000")
    assert decode(docker_credentials("docker.io", store)) == ("me", "for-https://index.docker.io/v1/")
    own = docker({"credHelpers": {"a.example": "fake"}, "auths": {"b.example": {"auth": encode("b", "c")}}})
    assert decode(docker_credentials("a.example", own)) == ("me", "for-a.example")
    assert decode(docker_credentials("b.example", own)) == ("b", "c")


def test_helper_knows_nothing(docker: Callable[..., Any], helper: Callable[..., Any]) -> None:
    helper('echo "credentials not found in native keychain"; exit 1')
    path = docker({"credsStore": "fake", "auths": {"a.example": {"auth": encode("b", "c")}}})
    assert docker_credentials("a.example", path) == encode("b", "c")
    assert docker_credentials("x.example", path) == ""


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo secret-word; exit 3", "status 3"),
        ("echo secret-word", "not JSON"),
        ("exec 0<&-; yes secret-word", "no answer within"),
        ("sleep 30 & sleep 30", "no answer within"),
        ("exec >&-; sleep 30", "no answer within"),
    ],
)
def test_broken_helper(
    docker: Callable[..., Any], helper: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    monkeypatch.setattr(registry_auth, "_HELPER_SECONDS", 1)
    helper(script)
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=words) as info:
        docker_credentials("a.example", docker({"credsStore": "fake"}))
    assert "secret-word" not in str(info.value)
    assert time.monotonic() - begin < 5


def test_missing_helper(docker: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="docker-credential-not-there"):
        docker_credentials("a.example", docker({"credsStore": "not-there"}))


def test_helper_to_registry(
    docker: Callable[..., Any], helper: Callable[..., Any], registry_make: Callable[..., distribution.Registry]
) -> None:
    """From docker's configuration to the bytes."""
    registry = registry_make("basic")
    name = registry.add(b"0123456789")
    helper(f"""printf '{{"Username":"{distribution.USER}","Secret":"{distribution.PASSWORD}"}}'""")
    auth = docker_credentials(registry.host, docker({"credHelpers": {registry.host: "fake"}}))
    backend = config.Registry(host=registry.host, repo=distribution.REPO, scheme="http", auth=auth)
    assert RegistryClient(backend, 1).read(name, 2, 3) == b"234"


def test_only_a_registry_without_credentials_is_completed(
    tmp_path: Path, docker: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    docker({"auths": {"hub.example": {"auth": encode("me", "word")}}})
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    plain = config.Registry(host="hub.example", repo="a")
    completed = with_docker_credentials(plain)
    assert isinstance(completed, config.Registry)
    assert completed.auth == encode("me", "word")
    for known in (
        config.Registry(host="hub.example", repo="a", auth="eDp5"),
        config.Registry(host="hub.example", repo="a", registry_token="token"),
        config.Registry(host="other.example", repo="a"),
        config.S3(bucket_name="b"),
    ):
        assert with_docker_credentials(known) == known


def test_decode() -> None:
    for wrong in ("", "x", "%%%", base64.b64encode(b"no colon").decode(), base64.b64encode(b":x").decode(), "/w=="):
        with pytest.raises(ConfigError):
            decode(wrong)
    assert decode(encode("u", "a:b")) == ("u", "a:b")


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ('Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"',
         [Challenge("bearer", "https://a/t", "s", "repository:x:pull,push")]),
        ('Basic realm="Registry, of: Bearer realm=x"', [Challenge("basic", "Registry, of: Bearer realm=x", "", "")]),
        ('bearer realm="r" , Basic realm=plain',
         [Challenge("bearer", "r", "", ""), Challenge("basic", "plain", "", "")]),
        (r'Bearer realm="a\"b",error="invalid_token"', [Challenge("bearer", 'a"b', "", "")]),
        ("Negotiate, Basic", [Challenge("negotiate", "", "", ""), Challenge("basic", "", "", "")]),
        ("", []),
        ('="', []),
    ],
)  # fmt: skip
def test_challenges(header: str, challenges: list[Challenge]) -> None:
    assert parse_challenges(header) == challenges


def test_challenges_of_an_enemy() -> None:
    begin = time.monotonic()
    for part in ("a ", 'a="', "a,", '\\"', "a=,", " ", '"'):
        parse_challenges(part * (8192 // len(part)))
    assert time.monotonic() - begin < 2
