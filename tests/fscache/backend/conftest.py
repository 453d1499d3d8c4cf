"""Servers that the clients of backends are tested against."""

import base64
import hashlib
import importlib.util
import io
import json
import os
import shutil
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from nydus_erofs.erofs.errors import BackendError
from nydus_erofs.fscache.backend.s3.client import S3Client
from nydus_erofs.fscache.config.backend import S3
from nydus_erofs.fscache.push.s3 import S3Writer

SERVERS = Path(__file__).parents[2] / "kit" / "servers"


def _load(name: str) -> ModuleType:
    """`tests/servers/NAME.py`, under a name of its own: tests are not a package."""
    spec = importlib.util.spec_from_file_location(f"servers_{name}", SERVERS / f"{name}.py")
    assert spec and spec.loader
    if spec.name not in sys.modules:
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[spec.name]


@pytest.fixture(scope="session")
def s3_kit(oracles: Any) -> ModuleType:
    """`tests/servers/s3.py`."""
    os.environ["VERSITYGW"] = str(oracles.versitygw)
    return _load("s3")


@pytest.fixture(scope="session")
def s3_server(s3_kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running versitygw with one bucket (`Gateway`), shared by the session: use names of your own."""
    gateway = s3_kit.Gateway(tmp_path_factory.mktemp("s3"))
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
def s3_make(s3_kit: ModuleType, s3_no_keys: None) -> Callable[..., S3Client]:
    """`s3_make(server, **fields)`: a client of a server (or host:port), with the test's keys, of short patience."""

    def make_client(server: Any, connections: int = 8, **fields: Any) -> S3Client:
        standard = {
            "endpoint": getattr(server, "endpoint", server), "scheme": "http", "bucket_name": s3_kit.BUCKET,
            "access_key_id": s3_kit.KEY, "access_key_secret": s3_kit.SECRET, "timeout": 1.0, "connect_timeout": 1.0,
        }  # fmt: skip
        return S3Client(S3(**(standard | fields)), connections)

    return make_client


@pytest.fixture
def s3_gateway(s3_make: Callable[..., S3Client], s3_server: Any) -> S3Client:
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
def s3_failure(s3_kit: ModuleType) -> Callable[..., BackendError]:
    """`s3_failure(kind, call, *arguments)`: the error of a call, checked for what it must not say."""

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


@pytest.fixture(scope="session")
def registry_kit(oracles: Any) -> ModuleType:
    """`tests/servers/registry.py`, and in it `tokens`, `proxy` and `stub`: the other modules of servers."""
    os.environ["REGISTRY"] = str(oracles.registry)
    kit = _load("registry")
    kit.tokens, kit.proxy, kit.stub = _load("tokens"), _load("proxy"), _load("s3")  # type: ignore[attr-defined]
    return kit


@pytest.fixture
def registry_make(registry_kit: ModuleType, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`registry_make(auth, tls)`: a running `Registry`, which ends with the test."""
    made = []

    def make(auth: Any = "", tls: Any = None) -> Any:
        folder = tmp_path / f"registry{len(made)}"
        folder.mkdir()
        made.append(registry_kit.Registry(folder, auth, tls))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def registry_tokens(registry_kit: ModuleType, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`registry_tokens(**options)`: a running `TokenServer`, which ends with the test."""
    made = []

    def make(**options: Any) -> Any:
        made.append(registry_kit.tokens.TokenServer(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- images from afar -------------------------------------------------------------------------------------


class Place(NamedTuple):
    """An image that is published on a server behind a relay."""

    kind: str
    image: str  # what to mount
    config: Path  # of the backend
    relay: Any
    blobs: int  # bytes
    secrets: tuple[str, ...]

    def mount(self, service: Any, **fields: Any) -> Path:
        return Path(service.mount_image(self.image, backend_file=str(self.config), **fields))


@pytest.fixture(scope="session")
def relay_kit() -> ModuleType:
    """`tests/servers/relay.py`."""
    return _load("relay")


@pytest.fixture
def file_server() -> Iterator[Callable[[Path], Any]]:
    """`file_server(folder)`: a running `FileServer`, which ends with the test."""
    servers = []

    def make(folder: Path) -> Any:
        servers.append(_load("files").FileServer(folder))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def publish(
    built: Any,
    relay_kit: ModuleType,
    service_kit: ModuleType,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., Place]]:
    """`publish(kind, delay=, **fields)`: the image `built`, pushed to a server of a kind, with further fields of the
    backend's configuration."""
    relays = []

    def relay_to(port: int, delay: float) -> Any:
        relays.append(relay_kit.Relay(port, delay))
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
            s3_kit, server = request.getfixturevalue("s3_kit"), request.getfixturevalue("s3_server")
            relay = relay_to(server.port, delay)
            prefix = uuid.uuid4().hex
            image = f"s3://{s3_kit.BUCKET}/{prefix}/meta/{built.bootstrap.name}"
            secrets = (s3_kit.SECRET, s3_kit.KEY)
            document = {
                "endpoint": relay.endpoint, "scheme": "http", "bucket_name": s3_kit.BUCKET, "region": "us-east-1",
                "access_key_id": s3_kit.KEY, "access_key_secret": s3_kit.SECRET,
                "meta_prefix": f"{prefix}/meta/", "blob_prefix": f"{prefix}/blobs/", **fields,
            }  # fmt: skip
            arguments: list[object] = []
        else:
            kit = request.getfixturevalue("registry_kit")
            server = request.getfixturevalue("registry_make")("basic")
            relay = relay_to(server.port, delay)
            auth = base64.b64encode(f"{kit.USER}:{kit.PASSWORD}".encode()).decode()
            image, secrets = f"{relay.endpoint}/team/app:v1", (kit.PASSWORD, auth)
            document = {"host": relay.endpoint, "repo": "team/app", "scheme": "http", "auth": auth, **fields}
            arguments = [image]
        config.write_text(json.dumps({"type": kind, **document}))
        service_kit.cli("push", built.bootstrap, *arguments, "--backend-config-file", config, check=True)
        return Place(kind, image, config, relay, size, secrets)

    yield make
    for relay in relays:
        relay.close()


@pytest.fixture(params=["s3", "registry", "http-proxy"])
def place(request: pytest.FixtureRequest, publish: Callable[..., Place]) -> Place:
    """The image `built` on a server of each kind."""
    return publish(request.param, timeout=2.0, connect_timeout=2.0)
