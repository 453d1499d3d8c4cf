"""``nydus-erofs push``: publish a built image."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import click

from ..erofs.errors import ConfigError
from .output import to_json
from .units import size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..fscache.config.backend import BackendConfig
    from ..fscache.push.publish import Progress, Published

_LINE_SECONDS = 5.0
_FILE = click.Path(dir_okay=False)

type_option = click.option(
    "--backend-type", type=click.Choice(["localfs", "oss", "registry", "s3"]), help="Kind of backend to push to."
)
config_option = click.option(
    "--backend-config-file",
    "backend_file",
    type=_FILE,
    help="Where to push to: JSON of one backend, or a nydusd configuration.",
)


@click.command(short_help="Publish a built image in a bucket, a registry or a folder.")
@click.argument("bootstrap", type=_FILE)
@click.argument("reference", required=False)
@click.option("--blob-dir", "blob_dirs", multiple=True, type=click.Path(), help="Folder of the blobs (repeatable).")
@type_option
@config_option
@click.option("--name", help="Name of the image there, or a registry's tag [default: the bootstrap's file name].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bootstrap: str,
    reference: str | None,
    blob_dirs: tuple[str, ...],
    backend_type: str | None,
    backend_file: str | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Publish the image of a BOOTSTRAP: blobs first, the bootstrap last.

    REFERENCE is REGISTRY/REPOSITORY:TAG; without it --backend-config-file says where. What is there already is not
    sent again, so a push that was interrupted goes on where it was.
    """
    from ..fscache.config.backend import Registry

    backend, tag = (
        _registry(reference, backend_file) if reference else (load_backend(backend_type, backend_file), None)
    )
    if isinstance(backend, Registry) and not (tag or name):
        raise click.UsageError("name the registry's tag: with --name, or as REGISTRY/REPOSITORY:TAG")
    done = push(bootstrap, list(blob_dirs), backend, tag or name or bootstrap.rpartition("/")[2])
    click.echo(to_json(asdict(done)) if as_json else summary(done))


def push(
    bootstrap: str, folders: list[str], backend: BackendConfig, name: str, there: dict[str, int] | None = None
) -> Published:
    """Publish an image, and show how far that is. ``there``: blobs that the backend has, and their bytes."""
    from ..fscache.push.publish import publish

    with _progress() as progress:
        return publish(bootstrap, folders, backend, name, progress, there or {})


def load_backend(kind: str | None, file: str | None) -> BackendConfig:
    """The backend that options name; for a registry with what docker's configuration knows of it."""
    from ..fscache.config import backend as config

    if file is None:
        raise click.UsageError("say where to push to, with --backend-config-file")
    backend = config.load(kind, file)
    if isinstance(backend, config.Registry):
        return _with_credentials(backend)
    return backend


def _registry(reference: str, file: str | None) -> tuple[BackendConfig, str]:
    import msgspec

    from ..fscache.config import backend as config
    from ..fscache.config.reference import parse_reference

    found = parse_reference(reference.removeprefix("registry://"))
    if found.tag_or_digest.startswith("sha256:"):
        raise ConfigError(f"{reference}: an image is pushed under a tag, not under a digest")
    backend = config.load("registry", file) if file else config.Registry(host=found.host, repo=found.repo)
    assert isinstance(backend, config.Registry)
    if backend.host != found.host:
        backend = msgspec.structs.replace(backend, auth="", registry_token="")
    backend = msgspec.structs.replace(backend, host=found.host, repo=found.repo)
    return _with_credentials(backend), found.tag_or_digest


def _with_credentials(registry: BackendConfig) -> BackendConfig:
    import msgspec

    from ..fscache.config.backend import Registry
    from ..fscache.credentials.docker import docker_config, docker_credentials

    assert isinstance(registry, Registry)
    if registry.auth or registry.registry_token:
        return registry
    return msgspec.structs.replace(registry, auth=docker_credentials(registry.host, docker_config()))


def summary(done: Published) -> str:
    """One line on a push."""
    there = f", {len(done.skipped)} were there" if done.skipped else ""
    sent = f"{len(done.uploaded)} objects sent ({size_text(done.bytes_uploaded)}){there}"
    return f"{done.where}: {done.name} published; {sent}; digest {done.identity}"


@contextmanager
def _progress() -> Iterator[Progress]:
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Display

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Display(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as display:
        task = display.add_task("pushing", total=None)

        class Bar:
            def begin(self, what: str, size: int) -> None:
                display.reset(task, description=_short(what), total=size)

            def advance(self, size: int) -> None:
                display.advance(task, size)

        yield Bar()


class _Lines:
    """One line every few seconds; a short push has none."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _LINE_SECONDS
        self._lock = threading.Lock()
        self._what, self._size, self._done = "", 0, 0

    def begin(self, what: str, size: int) -> None:
        self._what, self._size, self._done = what, size, 0

    def advance(self, size: int) -> None:
        with self._lock:
            self._done += size
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + _LINE_SECONDS
        click.echo(f"{_short(self._what)}: {size_text(self._done)} of {size_text(self._size)}", err=True)


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:30]}..."
