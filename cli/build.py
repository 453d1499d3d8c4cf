"""``nydus-erofs build``: options into a record, the builder's result into a line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import NoReturn

import click

from ..builder import BlobSink, BuildOptions, BuildResult, WhiteoutSpec, build, parse_time, source_date_epoch
from ..erofs.errors import ConfigError, UnsupportedError
from ..erofs.ids import printable
from ..erofs.rafs import DEFAULT_CHUNK_SIZE, Compression, DigestAlgo
from . import push
from .build_progress import progress_for
from .units import size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..fscache.config.backend import BackendConfig
    from ..fscache.push.publish import Published

_COMPRESSIONS = {c.name.lower(): c for c in (Compression.NONE, Compression.LZ4_BLOCK, Compression.ZSTD)}
_DIGESTS = {algo.name.lower(): algo for algo in DigestAlgo}
_DIRECTORY_TYPES = ("directory", "dir-rafs")
_LOG_LEVELS = ("trace", "debug", "info", "warn", "error")
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FILE = click.Path(path_type=Path)


class _Number(click.ParamType[int]):
    """A whole number, decimal or 0x hexadecimal."""

    name = "number"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else int(value, 0)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)


@click.command()
@click.argument("directory", required=False, type=_FILE)
@click.option("--source-dir", type=_FILE, help="The directory, if not given as the argument.")
@click.option("-o", "--output-dir", type=_FILE, help="Directory for NAME.meta, the blob and output.json.")
@click.option("--name", help="NAME of the image [default: the directory's].")
@click.option("-B", "--bootstrap", type=_FILE, help="File for the bootstrap.")
@click.option("-b", "--blob", type=_FILE, help="File for the blob.")
@click.option("-D", "--blob-dir", type=_FILE, help="Directory for the blob, which is named by its SHA-256.")
@click.option("-J", "--output-json", type=_FILE, help="File that says what was built, for programs.")
@click.option("--compressor", type=click.Choice(list(_COMPRESSIONS)), default="zstd", show_default=True)
@click.option("--compression-level", type=int, help="For zstd, 1 to 22 [default: 3].")
@click.option(
    "--chunk-size",
    type=_Number(),
    default=DEFAULT_CHUNK_SIZE,
    help="Bytes, a power of two from 0x1000 to 0x1000000 [default: 0x100000].",
)
@click.option("--digester", type=click.Choice(list(_DIGESTS)), default="blake3", show_default=True)
@click.option(
    "--whiteout-spec",
    type=click.Choice([spec.value for spec in WhiteoutSpec]),
    default=WhiteoutSpec.OCI.value,
    show_default=True,
    help="Whiteouts of this kind are left out; none keeps them as they are.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out what matches: a name, or with a / in it a path from DIRECTORY on. May be repeated.",
)
@click.option(
    "--mtime",
    metavar="N|DATE",
    help="Time of all files: seconds since 1970, or a date such as 2023-11-14 or 2023-11-14T22:13:20Z.",
)
@click.option("--hard-dereference", is_flag=True, help="Take names of one file (hard links) for files of their own.")
@click.option("--workers", type=int, help="Processes that read and compress [default: one per CPU, at most 8].")
@click.option("-v", "--fs-version", default="6", show_default=True, help="Version of RAFS.")
@click.option("-t", "--type", "--source-type", "source_type", default="directory", help="Kind of source: directory.")
@click.option("--batch-size", type=_Number(), default=0, help="Only 0: chunks are compressed one by one.")
@click.option("--backend-push", is_flag=True, help="Push the image once it is built; see 'nydus-erofs push'.")
@push.type_option
@push.config_option
@click.option("-l", "--log-level", type=click.Choice(_LOG_LEVELS), default="info", show_default=True)
def command(
    *,
    directory: Path | None,
    source_dir: Path | None,
    output_dir: Path | None,
    name: str | None,
    bootstrap: Path | None,
    blob: Path | None,
    blob_dir: Path | None,
    output_json: Path | None,
    compressor: str,
    compression_level: int | None,
    chunk_size: int,
    digester: str,
    whiteout_spec: str,
    exclude: tuple[str, ...],
    mtime: str | None,
    hard_dereference: bool,
    workers: int | None,
    fs_version: str,
    source_type: str,
    batch_size: int,
    backend_push: bool,
    backend_type: str | None,
    backend_file: str | None,
    log_level: str,
) -> None:
    """Build a RAFS v6 image of DIRECTORY.

    With --output-dir OUT alone the bootstrap becomes OUT/NAME.meta, the blob OUT/<its SHA-256>, and
    OUT/output.json names both. Nothing appears under its name before it is complete.

    Without --mtime, times later than the environment variable SOURCE_DATE_EPOCH (seconds since 1970) become that.

    With --backend-push and no place for the blob it is uploaded while it is built; without any place for outputs
    nothing of the image is kept here.
    """
    source = directory or source_dir
    if not source or (directory and source_dir):
        raise click.UsageError("name one directory, as the argument or with --source-dir")
    if fs_version != "6":
        raise UnsupportedError(
            f"--fs-version {fs_version}: only RAFS version 6 can be built, the kernel mounts no other"
        )
    if source_type not in _DIRECTORY_TYPES:
        raise UnsupportedError(f"--type {source_type}: only directories can be built from, for now")
    if batch_size:
        raise UnsupportedError("--batch-size: chunks cannot be batched yet", hint="leave it out, or give 0")
    if not backend_push and (backend_type or backend_file):
        raise click.UsageError("--backend-type and --backend-config-file need --backend-push")
    backend = push.target(backend_type, backend_file)[0] if backend_push else None
    streamed = backend is not None and not (output_dir or blob or blob_dir)
    passing = backend is not None and not (output_dir or bootstrap or blob_dir)
    if passing and output_json:
        raise ConfigError(
            "--output-json names the bootstrap, which has no place", hint="add --bootstrap FILE, or --output-dir DIR"
        )
    with _ended_by_signals(), ExitStack() as stack:
        if passing:
            output_dir = Path(stack.enter_context(TemporaryDirectory(prefix="nydus-erofs-")))
        options = BuildOptions(
            source=source,
            output_dir=output_dir,
            name=name,
            bootstrap=bootstrap,
            blob=blob,
            blob_dir=blob_dir,
            output_json=output_json,
            blob_sink=_sink(backend, passing) if backend is not None and streamed else None,
            chunk_size=chunk_size,
            compression=_COMPRESSIONS[compressor],
            compression_level=compression_level,
            digest=_DIGESTS[digester],
            whiteout_spec=WhiteoutSpec(whiteout_spec),
            exclude=exclude,
            mtime=None if mtime is None else parse_time(mtime),
            latest_mtime=None if mtime is not None else source_date_epoch(os.environ),
            hard_dereference=hard_dereference,
            workers=workers,
        )
        with progress_for(quiet=log_level in ("warn", "error")) as progress:
            result = build(options, progress)
        for path in result.own_outputs:
            click.echo(f"left out {path}: the image is written there", err=True)
        click.echo(_summary(result, kept=not passing))
        if backend is not None:
            click.echo(push.summary(_push(result, backend, name)))


def _push(result: BuildResult, backend: BackendConfig, name: str | None) -> Published:
    folders = [str(result.blob.parent)] if result.blob else []
    there = {result.blob_id: result.blob_size} if result.blob_id and not result.blob else {}
    path = str(result.bootstrap)
    return push.push(path, folders, backend, name or path.rpartition("/")[2], there)


def _sink(backend: BackendConfig, passing: bool) -> BlobSink | None:
    """Where a blob goes while it is built; None for a folder if it may lie in another one on its way."""
    from ..fscache.config.backend import LocalFs
    from ..fscache.push.stream import stream

    if passing and isinstance(backend, LocalFs):
        return None
    return stream(backend, lambda _: None)  # what is built is what is shown


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a request to end be one to clean up first."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        click.echo(f"nydus-erofs: ended by {signal.Signals(number).name}", err=True)
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _summary(result: BuildResult, *, kept: bool) -> str:
    """One line on a build; without places for what is not ``kept``."""
    bootstrap = printable(os.fsencode(result.bootstrap)) if kept else "bootstrap"
    blob = "no blob: no file has bytes"
    if result.blob_id:
        where = printable(os.fsencode(result.blob)) if result.blob and kept else result.blob_id
        blob = f"blob {where} ({size_text(result.blob_size)})"
    parts = [
        f"{bootstrap} ({size_text(result.bootstrap_size)}), {blob}",
        f"{result.files} files and {result.directories} directories, {size_text(result.source_size)}",
        f"{result.distinct_chunks} of {result.chunks} chunks stored",
    ]
    if result.left_out:
        parts.append(f"{result.left_out} names left out")
    return "; ".join([*parts, f"{result.seconds:.1f} s"])
