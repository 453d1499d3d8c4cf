"""Servers that the clients of backends are tested against."""

import base64
import hashlib
import io
import json
import os
import shutil
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.erofs.errors import BackendError
from nydus_erofs.fscache.backend.s3.client import S3Client
from nydus_erofs.fscache.config.backend import S3
from nydus_erofs.fscache.push.s3 import S3Writer
from tests.kit.command import cli
from tests.kit.images import Built
from tests.kit.oracles import Oracles
from tests.kit.published import Place
from tests.kit.servers import distribution, s3
from tests.kit.servers.files import FileServer
from tests.kit.servers.relay import Relay
from tests.kit.servers.tokens import TokenServer


@pytest.fixture(scope="session")
def s3_server(oracles: Oracles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Gateway]:
    """A running versitygw with one bucket (`Gateway`), shared by the session: use names of your own."""
    gateway = s3.Gateway(tmp_path_factory.mktemp("s3"), oracles.versitygw)
    yield gateway
    gateway.close()


@pytest.fixture
def s3_no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the tester's own keys nor this machine's are found."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def s3_make(s3_no_keys: None) -> Callable[..., S3Client]:
    """`s3_make(server, **fields)`: a client of a server (or host:port), with the test's keys, of short patience."""

    def make_client(server: Any, connections: int = 8, **fields: Any) -> S3Client:
        standard = {
            "endpoint": getattr(server, "endpoint", server), "scheme": "http", "bucket_name": s3.BUCKET,
            "access_key_id": s3.KEY, "access_key_secret": s3.SECRET, "timeout": 1.0, "connect_timeout": 1.0,
        }  # fmt: skip
        return S3Client(S3(**(standard | fields)), connections)

    return make_client


@pytest.fixture
def s3_gateway(s3_make: Callable[..., S3Client], s3_server: s3.Gateway) -> S3Client:
    """A patient client of `s3_server`."""
    return s3_make(s3_server, timeout=20.0)


@pytest.fixture
def s3_writer(s3_gateway: S3Client) -> S3Writer:
    """It writes with that client."""
    return S3Writer(s3_gateway)


@pytest.fixture(scope="session")
def s3_store() -> Callable[..., str]:
    """`s3_store(client, data, name="")`: the name of a new object."""

    def store(client: S3Client, data: bytes, name: str = "") -> str:
        name = name or uuid.uuid4().hex
        S3Writer(client).put(name, io.BytesIO(data), len(data), hashlib.sha256(data).hexdigest(), lambda _: None)
        return name

    return store


@pytest.fixture
def s3_blob(s3_gateway: S3Client, s3_store: Callable[..., str]) -> str:
    """The name of an object of 64 KiB, the DATA of the tests."""
    return s3_store(s3_gateway, b"".join(hashlib.sha256(bytes([n])).digest() for n in range(256)) * 8)


@pytest.fixture
def s3_failure() -> Callable[..., BackendError]:
    """`s3_failure(kind, call, *arguments)`: the error of a call, checked for what it must not say."""

    def fail(kind: type[BackendError], call: Callable[..., object], *arguments: Any) -> BackendError:
        with pytest.raises(BackendError) as caught:
            call(*arguments)
        error = caught.value
        assert type(error) is kind, repr(error)
        everything = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
        for secret in (s3.KEY, s3.SECRET, s3.TOKEN, "Signature=", "AWS4-HMAC"):
            assert secret not in everything
        assert "\n" not in str(error)
        assert str(error).isprintable()
        assert len(str(error)) < 600
        return error

    return fail


@pytest.fixture
def registry_make(oracles: Oracles, tmp_path: Path) -> Iterator[Callable[..., distribution.Registry]]:
    """`registry_make(auth, tls)`: a running `Registry`, which ends with the test."""
    made: list[distribution.Registry] = []

    def make(auth: str | dict[str, Any] = "", tls: tuple[Path, Path] | None = None) -> distribution.Registry:
        folder = tmp_path / f"registry{len(made)}"
        folder.mkdir()
        made.append(distribution.Registry(folder, auth, tls, oracles.registry))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def registry_tokens(tmp_path: Path) -> Iterator[Callable[..., TokenServer]]:
    """`registry_tokens(**options)`: a running `TokenServer`, which ends with the test."""
    made: list[TokenServer] = []

    def make(**options: Any) -> TokenServer:
        made.append(TokenServer(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- images from afar -------------------------------------------------------------------------------------


@pytest.fixture
def file_server() -> Iterator[Callable[[Path], FileServer]]:
    """`file_server(folder)`: a running `FileServer`, which ends with the test."""
    servers: list[FileServer] = []

    def make(folder: Path) -> FileServer:
        servers.append(FileServer(folder))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def publish(
    built: Built,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., Place]]:
    """`publish(kind, delay=, **fields)`: the image `built`, pushed to a server of a kind, with further fields of the
    backend's configuration."""
    relays: list[Relay] = []

    def relay_to(port: int, delay: float) -> Relay:
        relays.append(Relay(port, delay))
        return relays[-1]

    def make(kind: str, delay: float = 0.0, **fields: Any) -> Place:
        config = tmp_path / f"{kind}.json"
        size = built.blob.stat().st_size
        if kind == "http-proxy":
            server = request.getfixturevalue("file_server")(built.bootstrap.parent)
            relay = relay_to(server.port, delay)
            document = {"addr": f"http://{relay.endpoint}", **fields}
            config.write_text(json.dumps({"type": kind, **document}))
            alone = tmp_path / built.bootstrap.name
            shutil.copy(built.bootstrap, alone)
            return Place(kind, str(alone), config, relay, size, ())
        if kind == "s3":
            server = request.getfixturevalue("s3_server")
            relay = relay_to(server.port, delay)
            prefix = uuid.uuid4().hex
            image = f"s3://{s3.BUCKET}/{prefix}/meta/{built.bootstrap.name}"
            secrets = (s3.SECRET, s3.KEY)
            document = {
                "endpoint": relay.endpoint, "scheme": "http", "bucket_name": s3.BUCKET, "region": "us-east-1",
                "access_key_id": s3.KEY, "access_key_secret": s3.SECRET,
                "meta_prefix": f"{prefix}/meta/", "blob_prefix": f"{prefix}/blobs/", **fields,
            }  # fmt: skip
            arguments: list[object] = []
        else:
            server = request.getfixturevalue("registry_make")("basic")
            relay = relay_to(server.port, delay)
            auth = base64.b64encode(f"{distribution.USER}:{distribution.PASSWORD}".encode()).decode()
            image, secrets = f"{relay.endpoint}/team/app:v1", (distribution.PASSWORD, auth)
            document = {"host": relay.endpoint, "repo": "team/app", "scheme": "http", "auth": auth, **fields}
            arguments = [image]
        config.write_text(json.dumps({"type": kind, **document}))
        cli("push", built.bootstrap, *arguments, "--backend-config-file", config, check=True)
        return Place(kind, image, config, relay, size, secrets)

    yield make
    for relay in relays:
        relay.close()


@pytest.fixture(params=["s3", "registry", "http-proxy"])
def place(request: pytest.FixtureRequest, publish: Callable[..., Place]) -> Place:
    """The image `built` on a server of each kind."""
    return publish(request.param, timeout=2.0, connect_timeout=2.0)
