"""Pushed and mounted by name, with as little configuration as people give: no scheme, no kind, no file at all."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.kit.command import cli
from tests.kit.engines import Engine
from tests.kit.images import Built
from tests.kit.reading import compare
from tests.kit.servers import distribution, s3
from tests.kit.servers.s3 import Gateway
from tests.kit.service import MakeService, Service


def run(tmp_path: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command of somebody whose docker knows nothing."""
    return cli(*arguments, env={"DOCKER_CONFIG": str(tmp_path / "no-docker")}, **options)


def bucket_file(tmp_path: Path, s3_server: Gateway, **fields: Any) -> Path:
    """What describes a bucket, without its kind and its name."""
    file = tmp_path / "bucket.json"
    document = {"endpoint": s3_server.endpoint, "access_key_id": s3.KEY, "access_key_secret": s3.SECRET}
    file.write_text(json.dumps({**document, **fields}))
    return file


def test_a_registry_of_this_host(
    registry_make: Callable[..., distribution.Registry], built: Built, tmp_path: Path
) -> None:
    registry = registry_make()
    done = run(tmp_path, "push", built.bootstrap, f"localhost:{registry.port}/team/app:v1", check=True)
    assert "v1 published" in done.stdout
    again = run(tmp_path, "push", built.bootstrap, f"{registry.host}/team/app:v2", "--plain-http")
    assert "3 were there" in again.stdout, again.stderr


def unknown(registry_make: Callable[..., distribution.Registry], tmp_path: Path) -> distribution.Registry:
    """A registry with a certificate of an authority that nobody knows."""
    issued, chain, key = trustme.CA().issue_cert("127.0.0.1"), tmp_path / "chain", tmp_path / "key"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return registry_make("", (chain, key))


def test_a_certificate_that_nobody_knows(
    registry_make: Callable[..., distribution.Registry], built: Built, tmp_path: Path
) -> None:
    registry, config = unknown(registry_make, tmp_path), tmp_path / "backend.json"
    image = f"{registry.host}/team/app:v1"
    config.write_text(json.dumps({"scheme": "https"}))  # said, so that it is not found out
    arguments = ["push", built.bootstrap, image, "--backend-config-file", config]
    done = run(tmp_path, *arguments)
    assert done.returncode == 6
    assert "--insecure" in done.stderr
    assert run(tmp_path, *arguments, "--insecure").returncode == 0
    assert run(tmp_path, "push", built.bootstrap, image).returncode == 0


def test_a_bucket(s3_server: Gateway, built: Built, tmp_path: Path) -> None:
    file = bucket_file(tmp_path, s3_server, blob_prefix="by-name/blobs/", meta_prefix="not/this/")
    image = f"s3://{s3.BUCKET}/by-name/app"
    arguments = ["push", built.bootstrap, image, "--backend-config-file", file]
    done = run(tmp_path, *arguments)
    assert done.returncode == 6
    assert "--plain-http" in done.stderr
    run(tmp_path, *arguments, "--plain-http", check=True)
    assert (s3_server.bucket / "by-name" / "app.meta").read_bytes() == built.bootstrap.read_bytes()
    assert (s3_server.bucket / "by-name" / "blobs" / built.blob.name).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["s3://images/app"], "TLS"),
        (["app.meta"], "does not begin with a registry"),
        (["https://h.io/app:v1"], "no image is named by https://"),
        (["--plain-http"], "there is none"),
        (["--insecure"], "there is none"),
        (["h.io/app:v1"], "is not there"),
    ],
)
def test_what_makes_no_sense(
    arguments: list[str], said: str, s3_server: Gateway, built: Built, tmp_path: Path
) -> None:
    file = bucket_file(tmp_path, s3_server)
    if not arguments[0].startswith("s3"):
        file.write_text(json.dumps({"type": "localfs", "dir": str(tmp_path)}))
    done = run(tmp_path, "push", built.bootstrap, *arguments, "--backend-config-file", file)
    assert done.returncode != 0
    assert said in done.stderr


# --- mounting -------------------------------------------------------------------------------------------


@pytest.fixture
def service(make_service: MakeService, engine: Engine) -> Service:
    return make_service(engine)


def mounted(service: Service, tmp_path: Path, *arguments: object) -> Path:
    """The mountpoint of an image that `mount` was asked for in these words."""
    target = tmp_path / "mnt"
    target.mkdir()
    run(tmp_path, "mount", *arguments, target, "--run-dir", service.run, check=True)
    return target


@pytest.mark.root
def test_mounted_from_a_registry_of_this_host(
    registry_make: Callable[..., distribution.Registry], built: Built, service: Service, tmp_path: Path
) -> None:
    image = f"localhost:{registry_make().port}/team/app:v1"
    run(tmp_path, "push", built.bootstrap, image, check=True)
    compare(built.tree, mounted(service, tmp_path, image))


@pytest.mark.root
def test_mounted_from_a_bucket(s3_server: Gateway, built: Built, service: Service, tmp_path: Path) -> None:
    file = bucket_file(tmp_path, s3_server, blob_prefix="mounted/")
    words = [f"s3://{s3.BUCKET}/mounted/app", "--backend-config-file", file, "--plain-http"]
    run(tmp_path, "push", built.bootstrap, *words, check=True)
    compare(built.tree, mounted(service, tmp_path, *words))


@pytest.mark.root
def test_mounted_with_any_certificate(
    registry_make: Callable[..., distribution.Registry], built: Built, service: Service, tmp_path: Path
) -> None:
    registry, config = unknown(registry_make, tmp_path), tmp_path / "backend.json"
    config.write_text(json.dumps({"scheme": "https"}))
    words = [f"{registry.host}/team/app:v1", "--backend-config-file", config, "--insecure"]
    run(tmp_path, "push", built.bootstrap, *words, check=True)
    compare(built.tree, mounted(service, tmp_path, *words))
