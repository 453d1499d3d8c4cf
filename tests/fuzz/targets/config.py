"""What administrators and users write: configuration files, docker's, and names of images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from unittest import mock

import msgspec

from nydus_erofs.erofs.errors import ConfigError, NydusErofsError, UnsupportedError
from nydus_erofs.fscache.config import backend_file as backend_files
from nydus_erofs.fscache.config.backend import (
    S3,
    HttpProxy,
    Mirror,
    Proxy,
    Registry,
    Remote,
    describe,
    is_loopback,
    server,
)
from nydus_erofs.fscache.config.completion import backend_of
from nydus_erofs.fscache.config.load import load
from nydus_erofs.fscache.config.reference import parse_image
from nydus_erofs.fscache.config.service import Config
from nydus_erofs.fscache.credentials import basic, docker
from tests.fuzz import mutate
from tests.fuzz.target import target

from .records import encode, put

_BACKENDS: list[Remote] = [
    S3(
        bucket_name="b",
        endpoint="h:9000/x",
        access_key_id="a",
        access_key_secret="s",
        mirrors=[Mirror(host="http://m")],
    ),
    Registry(host="localhost:5000", repo="a/b", auth=basic.encode("u", "p"), proxy=Proxy(url="http://p:1")),
    HttpProxy(addr="http://u:p@host", path="/p"),
]


def _backend_seeds() -> Iterator[bytes]:
    for backend in _BACKENDS:
        yield encode(backend)
    yield b'{"type": "localfs", "dir": "/blobs", "alt_dirs": ["/more"]}'
    yield b'{"type": "oss", "bucket_name": "b", "endpoint": "h"}'
    yield b'{"device": {"backend": {"type": "registry", "config": {"host": "h", "repo": "r"}}}}'
    yield b'{"version": 2, "backend": {"type": "s3", "s3": {"bucket_name": "b", "scheme": "http"}}}'


@target(_backend_seeds, mutate.document, refusals=(ConfigError, UnsupportedError))
def backend_file(data: bytes) -> object:
    """A file of a backend; what is taken has a name, and can be told to a worker."""
    backend = backend_files.load(put("backend.json", data))
    kind = type(backend)
    if kind in (S3, Registry, HttpProxy):
        describe(backend)  # type: ignore[arg-type]
        is_loopback(server(backend))  # type: ignore[arg-type]
        assert msgspec.json.decode(encode(backend), type=kind) == backend
    return kind.__name__


_TOML_WORDS = [b"[backend]\n", b"[", b"]", b"=", b'"', b"'''", b"\n", b"#", b"{", b"}", b",", b"true",
               b"1979-05-27", b"inf", b"segment_size", b"state_dir", b"blob_dirs", b"engine", b"backend", b"type",
               b'"s3"', b"threads", b"nan", b"\\u0000", b"\\ud800", b"\xff", b"patience", b"worker_uid", b"1",
               b"[[", b"]]", b".", b"0x10"]  # fmt: skip


def _config_seeds() -> Iterator[bytes]:
    yield b'state_dir = "/s"\nblob_dirs = ["/a"]\nthreads = 4\n[backend]\ntype = "s3"\nbucket_name = "b"\n'
    lines = [
        f"{name} = {json.dumps(value)}" for name, value in msgspec.to_builtins(Config()).items() if value is not None
    ]
    yield "\n".join(lines).encode()
    yield (
        b'{"device": {"backend": {"type": "registry", "config": {"host": "h", "repo": "r", "scheme": "http"}},'
        b' "cache": {"type": "blobcache", "config": {"work_dir": "/w"}}}, "mode": "direct",'
        b' "fs_prefetch": {"enable": true, "bandwidth_rate": 1048576}}'
    )


def _either(data: bytes, rng: object) -> bytes:
    change = mutate.document if data[:1] == b"{" else mutate.text(_TOML_WORDS)
    return change(data, rng)  # type: ignore[arg-type]


@target(_config_seeds, _either, refusals=(ConfigError, UnsupportedError))
def config_file(data: bytes) -> object:
    """The service's configuration in either form; what is taken can be told to another process."""
    config = load(put("config", data))
    assert msgspec.json.decode(encode(config), type=Config) == config
    assert not {config.worker_uid, config.prepare_uid} & {0}
    return type(config.backend).__name__, config.engine


def _docker_seeds() -> Iterator[bytes]:
    entry = {"auth": basic.encode("user", "password")}
    yield json.dumps({"auths": {"host": entry, "https://host/v2/": {"identitytoken": "t"}}}).encode()
    yield json.dumps({"auths": {"host": {"username": "u", "password": "p"}}, "credHelpers": {"other": "x"}}).encode()
    yield json.dumps({"credsStore": "no/name", "HttpHeaders": {"a": ["b"]}, "auths": {}}).encode()


@target(_docker_seeds, mutate.document, refusals=(ConfigError,))
def docker_config(data: bytes) -> object:
    """docker's configuration. No helper that it may name is found."""
    with mock.patch.dict(os.environ, PATH="/nonexistent"):
        found = docker.docker_credentials("host", put("docker.json", data))
    if found:
        basic.decode(found)
    return bool(found)


def _answer_seeds() -> Iterator[bytes]:
    yield b'{"ServerURL": "https://host", "Username": "user", "Secret": "secret"}'
    yield b'{"Username": "<token>", "Secret": "t"}'


@target(_answer_seeds, mutate.document, refusals=(ConfigError,))
def docker_helper(data: bytes) -> object:
    """What a credential helper answers."""
    found = docker.understood(data, "docker-credential-x")
    if found:
        basic.decode(found)
    return bool(found)


_NAME_WORDS = [b"s3://", b"registry://", b":", b"/", b"@", b"sha256:" + b"a" * 64, b"localhost", b"..", b".",
               b"host.io", b"docker.io", b"[::1]", b"a", b"-", b"_", b"\0", b"\n", b"\xff", b"latest", b"A",
               b"://"]  # fmt: skip


def _name_seeds() -> Iterator[bytes]:
    yield from [
        b"s3://bucket/a/b",
        b"host.io:5000/repo/x:tag",
        b"registry://[::1]:80/r@sha256:" + b"a" * 64,
        b"/a/b.meta",
    ]


@target(_name_seeds, mutate.text(_NAME_WORDS), refusals=(ConfigError,))
def image_name(data: bytes) -> object:
    """A name, and the backend that it means together with each that may be configured."""
    name = parse_image(data.decode(errors="surrogateescape"))
    for configured in (None, *_BACKENDS):
        with suppress(NydusErofsError):
            remote = backend_of(name, configured, auth="x", plain_http=len(data) % 2 == 0)
            assert remote is None or describe(remote)
    return type(name).__name__
