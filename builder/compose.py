"""The composition: source -> listings -> metadata area and batches -> blob -> bootstrap -> published outputs.

The walk, the layout of the metadata and the compression of files overlap: a listing is laid out and its files
are queued at once, while workers are busy with earlier ones. Results are taken in the order of the tree, so
deduplication and everything after it give the same bytes whatever the number of workers.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nydus_erofs import __version__

from ..erofs.errors import ConfigError, UnsupportedError
from ..erofs.ids import printable
from ..erofs.ondisk import CHUNK_INDEX
from .blob import BlobWriter, Run
from .bootstrap import assemble
from .descent import Files, Root
from .exclude import exclude_test
from .holes import extents
from .known import KnownDigests
from .metadata import FileToFill, MetadataArea
from .options import BuildOptions, default_workers
from .output import Outputs
from .paths import shown, source_error
from .pieces import Request, batch_size
from .pool import Pool
from .times import time_rule
from .walk import DirectorySource
from .whiteout import whiteout_test
from .worker import Worker

_FS_VERSION = "6"
_STEP = 64  # directories between two looks at what the workers have done
_MAX_WAITING = 32 << 20  # bytes of requests: how far the walk may run ahead of the workers


class Progress(Protocol):
    """Told now and then how far a build is."""

    def update(self, *, files: int, done: int, found: int, walked: bool) -> None:
        """``done`` of ``found`` bytes of ``files`` files; ``found`` is final once ``walked``."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildResult:
    """What was built. Sizes in bytes."""

    bootstrap: Path
    bootstrap_size: int
    blob: Path | None  # None: nothing in the source has bytes
    blob_id: str | None
    blob_size: int
    files: int  # names that are not directories
    directories: int
    source_size: int  # of all regular files, names of one file counted once
    chunks: int  # of all files
    distinct_chunks: int
    left_out: int  # names passed over: whiteouts, excludes
    own_outputs: tuple[str, ...]  # paths passed over because the build writes there
    seconds: float


class _Feed:
    """Files in, batches out, results to the blob: the traffic between this process and its pool."""

    def __init__(self, pool: Pool[list[Run]], blob: BlobWriter, files: Files, chunk_size: int) -> None:
        self.files = 0
        self.found = 0  # bytes
        self.done = 0  # bytes
        self._pool = pool
        self._blob = blob
        self._files = files
        self._chunk_size = chunk_size
        self._limit = batch_size(chunk_size)
        self._request = Request()
        self._runs: list[Run] = []

    def add(self, file: FileToFill) -> None:
        """Queue a file's bytes."""
        node = file.node
        self.files += 1
        self.found += node.size
        if not node.sparse:
            self._add_data(file, 0, node.size)
            return
        for offset, length, hole in extents(self._files, node, self._chunk_size):
            if hole:
                self._runs.append(Run(self._index(file, offset), offset, length, True))
            else:
                self._add_data(file, offset, length)

    def _add_data(self, file: FileToFill, offset: int, length: int) -> None:
        path, stamp = file.node.path, file.node.stamp
        assert stamp
        end = offset + length
        while offset < end:
            length = min(end - offset, self._limit)
            if self._request.full(path, length, self._limit):
                self.flush()
            self._request.add(path, stamp, offset, length)
            self._runs.append(Run(self._index(file, offset), offset, length))
            offset += length

    def _index(self, file: FileToFill, offset: int) -> int:
        return file.indexes + offset // self._chunk_size * CHUNK_INDEX.size

    def flush(self) -> None:
        """Give the batch under construction to the pool, and take what results there are."""
        self._pool.put(self._request.pack(), self._runs)
        self._request, self._runs = Request(), []
        self.take(wait=self._pool.waiting_size > _MAX_WAITING)

    def take(self, *, wait: bool) -> None:
        """Move finished batches to the blob; ``wait`` for one at least."""
        for runs, slot in self._pool.results(wait=wait):
            self._blob.add(runs, slot.read_reply(), slot.data)
            self.done += sum(run.length for run in runs)


def build(options: BuildOptions, progress: Progress) -> BuildResult:
    """Build an image from a directory.

    Raises:
        ConfigError: the source is not a directory, or options contradict it.
        SourceError: something in the source cannot be read, changed or vanished meanwhile.
        OutputError: an output cannot be written.
        UnsupportedError: the source does not fit into the format.
    Whatever is raised, KeyboardInterrupt included, no output is there that was not there before.
    """
    with _without_cycles():
        return _build(options, progress)


@contextmanager
def _without_cycles() -> Iterator[None]:
    """No search for cyclic garbage: a build makes millions of small objects, and no cycles."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _build(options: BuildOptions, progress: Progress) -> BuildResult:
    started = time.monotonic()
    known = KnownDigests()
    workers = options.workers or default_workers()
    with (
        _opened(options.source) as root,
        closing(Files(root)) as files,
        Pool[list[Run]](workers, options.chunk_size, Worker(options, files, known).run) as pool,
        Outputs(options, Path(os.fsdecode(root.path))) as outputs,
    ):
        source = DirectorySource(
            root,
            whiteout=whiteout_test(options.whiteout_spec),
            excluded=exclude_test(options.exclude),
            own_outputs=outputs.identities(),
            chunk_size=options.chunk_size,
            time_rule=time_rule(options),
            links=not options.hard_dereference,
        )
        area = MetadataArea(source.root(), options.chunk_size)
        blob = BlobWriter(options, known, outputs.blob, area.data)
        feed = _Feed(pool, blob, files, options.chunk_size)
        with closing(source.listings()) as listings:
            for listing in listings:
                for file in area.add(listing):
                    feed.add(file)
                if area.directories % _STEP == 0:
                    feed.take(wait=False)
                    progress.update(files=feed.files, done=feed.done, found=feed.found, walked=False)
        feed.flush()
        while pool.busy:
            feed.take(wait=True)
            progress.update(files=feed.files, done=feed.done, found=feed.found, walked=True)
        entry, chunk_table = blob.close()
        for part in assemble(options, area, entry, chunk_table):
            outputs.bootstrap.write(part)
        blob_id = entry.raw_id.decode() if entry else None
        blob_path = outputs.publish_blob(blob_id) if blob_id else None
        result = BuildResult(
            bootstrap=outputs.bootstrap_path(),
            bootstrap_size=outputs.bootstrap.size,
            blob=blob_path,
            blob_id=blob_id,
            blob_size=outputs.blob.size,
            files=area.files,
            directories=area.directories,
            source_size=feed.found,
            chunks=blob.references,
            distinct_chunks=blob.chunks,
            left_out=source.left_out,
            own_outputs=tuple(map(printable, source.own_outputs_met)),
            seconds=time.monotonic() - started,
        )
        outputs.publish(report(options, result))
        return result


@contextmanager
def _opened(source: Path) -> Iterator[Root]:
    """The source, which may be named by a symlink. ConfigError unless it is a directory."""
    try:
        process = os.readlink(b"/proc/self")
    except OSError:
        raise UnsupportedError("a build needs /proc, which is not mounted", hint="mount -t proc proc /proc") from None
    try:
        path = os.path.realpath(os.fsencode(source), strict=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise ConfigError(f"{shown(source)} is not a directory") from None
    except PermissionError as error:
        raise source_error(error, os.fsencode(source)) from None
    except OSError as error:
        raise ConfigError(f"{shown(source)}: {error.strerror}") from None
    try:
        yield Root(fd, path, b"/proc/%b/fd/" % process)
    finally:
        os.close(fd)


def report(options: BuildOptions, result: BuildResult) -> bytes:
    """The JSON that ``nydus-image`` leaves for other programs, with the same keys."""
    record = {
        "version": __version__,
        "bootstrap": os.fspath(result.bootstrap),
        "blobs": [result.blob_id] if result.blob_id else [],
        "external_bootstrap": "",
        "external_blobs": [],
        "trace": {
            "consumed_time": {"total_build": round(result.seconds, 3)},
            "registered_events": {
                "blob_compressed_size": result.blob_size,
                "blob_decompressed_size": result.source_size,
                "files": result.files,
                "directories": result.directories,
                "chunks": result.chunks,
                "distinct_chunks": result.distinct_chunks,
            },
        },
        "fs_version": _FS_VERSION,
        "compressor": options.compression.name.lower(),
    }
    return json.dumps(record, indent=2).encode() + b"\n"
