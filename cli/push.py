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
@click.option("--plain-http", is_flag=True, help="Speak http to the server, not https.")
@click.option("--insecure", is_flag=True, help="Take any TLS certificate.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bootstrap: str,
    reference: str | None,
    blob_dirs: tuple[str, ...],
    backend_type: str | None,
    backend_file: str | None,
    name: str | None,
    plain_http: bool,
    insecure: bool,
    as_json: bool,
) -> None:
    """Publish the image of a BOOTSTRAP: blobs first, the bootstrap last.

    REFERENCE is REGISTRY/REPOSITORY:TAG or s3://BUCKET/NAME; without it --backend-config-file says where. What is
    there already is not sent again, so a push that was interrupted goes on where it was. A registry of this host
    needs no --plain-http: it is found out.
    """
    backend, known = target(backend_type, backend_file, reference, plain_http=plain_http, insecure=insecure)
    if not (known or name) and backend.__struct_config__.tag == "registry":
        raise click.UsageError("name the registry's tag: with --name, or as REGISTRY/REPOSITORY:TAG")
    done = push(bootstrap, list(blob_dirs), backend, known or name or bootstrap.rpartition("/")[2])
    click.echo(to_json(asdict(done)) if as_json else summary(done))


def push(
    bootstrap: str, folders: list[str], backend: BackendConfig, name: str, there: dict[str, int] | None = None
) -> Published:
    """Publish an image, and show how far that is. ``there``: blobs that the backend has, and their bytes."""
    from ..fscache.push.publish import publish

    with _progress() as progress:
        return publish(bootstrap, folders, backend, name, progress, there or {})


def target(
    kind: str | None,
    file: str | None,
    reference: str | None = None,
    *,
    plain_http: bool = False,
    insecure: bool = False,
) -> tuple[BackendConfig, str]:
    """Where options say to push to, with credentials, and the image's name there if ``reference`` says it."""
    from ..fscache.config.backend import LocalFs
    from ..fscache.config.backend_file import load
    from ..fscache.config.completion import with_transport
    from ..fscache.credentials.docker import with_docker_credentials

    if reference:
        backend, name = _named(reference, kind, file)
    elif file:
        backend, name = load(file, kind), ""
    else:
        raise click.UsageError("say where to push to: with --backend-config-file, or a REFERENCE")
    if plain_http or insecure:
        backend = with_transport(backend, plain_http=plain_http, insecure=insecure)
    return backend if isinstance(backend, LocalFs) else with_docker_credentials(backend), name


def _named(reference: str, kind: str | None, file: str | None) -> tuple[BackendConfig, str]:
    from msgspec.structs import replace

    from ..fscache.config.backend import S3, LocalFs
    from ..fscache.config.backend_file import load
    from ..fscache.config.completion import backend_of
    from ..fscache.config.reference import BucketImage, FileImage, parse_image

    image = parse_image(reference)
    if isinstance(image, FileImage):
        raise ConfigError(
            f"{reference}: it does not begin with a registry",
            hint="say REGISTRY/REPOSITORY:TAG or s3://BUCKET/NAME; --backend-config-file can name a folder",
        )
    configured = load(file, kind, image.known) if file else None
    if isinstance(configured, LocalFs):
        raise ConfigError(f"{file} is a localfs backend, but {reference} is not there")
    backend = backend_of(image, configured)
    if isinstance(image, BucketImage):
        assert isinstance(backend, S3)
        return replace(backend, meta_prefix=""), image.key  # the name is the whole one
    if image.digest:
        raise ConfigError(f"{reference}: an image is pushed under a tag, not under a digest")
    assert backend is not None
    return backend, image.manifest


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
