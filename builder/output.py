"""Outputs that appear under their names complete, or not at all.

Everything is written to temporary files beside its final place, synced, and renamed at the end: blob first,
bootstrap last, so that whoever finds a bootstrap finds its blob. Until then nothing that was there before is
touched; after a failure the temporary files are gone.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ..erofs.errors import ConfigError, OutputError
from ..erofs.record import Buffer
from .options import BlobSink, BuildOptions
from .paths import shown

Identity = tuple[int, int]  # device, inode number

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_FLUSH = 32 << 20  # bytes
_MODE = 0o600  # what only root may read in the source is in the blob as well


class Draft:
    """A file that has no name yet: written under a temporary one, then published or discarded."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / f".nydus-erofs-{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            self._fd = os.open(self.path, _FLAGS, _MODE)
        except FileNotFoundError:
            raise OutputError(
                f"the output directory {shown(directory)} does not exist", hint="create it first"
            ) from None
        except OSError as error:
            raise OutputError(f"cannot write to {shown(directory)}: {error.strerror}") from None
        self._published = False
        self._sha256 = hashlib.sha256()
        self._flushed = 0
        self.size = 0

    def write(self, data: Buffer) -> None:
        """Append all of ``data``."""
        view = memoryview(data)
        try:
            while len(view):
                written = os.write(self._fd, view)
                self._sha256.update(view[:written])
                self.size += written
                view = view[written:]
            if self.size - self._flushed >= _FLUSH:
                # Has the kernel begin to write back, and wait for nothing: the sync at the end will be short.
                os.posix_fadvise(self._fd, self._flushed, self.size - self._flushed, os.POSIX_FADV_DONTNEED)
                self._flushed = self.size
        except OSError as error:
            raise self._failure(error) from None

    def sha256(self) -> str:
        """Of what was written, in hex."""
        return self._sha256.hexdigest()

    def publish(self, path: Path) -> None:
        """Make the file durable and give it its name, in place of whatever had it."""
        try:
            os.fsync(self._fd)
            self.path.rename(path)
            self._published = True
            _sync_directory(path.parent)
        except OSError as error:
            raise self._failure(error) from None

    def close(self) -> None:
        """Close the file; it is gone unless it was published."""
        os.close(self._fd)
        if not self._published:
            with suppress(FileNotFoundError):
                self.path.unlink()

    def identity(self) -> Identity:
        return _identity(os.fstat(self._fd))

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write to {shown(self.path.parent)}: {error.strerror}")


class Stream:
    """A blob that goes to a sink instead of a file."""

    def __init__(self, sink: BlobSink) -> None:
        self._sink = sink
        self._sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: Buffer) -> None:
        """Append all of ``data``."""
        self._sink.write(data)
        self._sha256.update(data)
        self.size += len(data)

    def sha256(self) -> str:
        """Of what was written, in hex."""
        return self._sha256.hexdigest()

    def finish(self) -> None:
        self._sink.finish(self.sha256(), self.size)

    def close(self) -> None:
        self._sink.close()


def _identity(st: os.stat_result) -> Identity:
    return st.st_dev, st.st_ino


def _remove_empty(directory: Path) -> None:
    with suppress(OSError):  # an image is in it
        directory.rmdir()


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Outputs:
    """The files of one build. Use as a context: what is not published when it is left is gone.

    ConfigError or OutputError, before any work is done, when an output has no place to go.
    """

    blob: Draft | Stream
    bootstrap: Draft

    def __init__(self, options: BuildOptions, source: Path) -> None:
        directory = self._output_dir = options.output_dir
        self._directories = [path for path in (directory, options.blob_dir) if path]
        if any(path.exists() and path.samefile(source) for path in self._directories):
            raise ConfigError(
                f"{shown(source)} cannot hold its own image", hint="choose another directory for the output"
            )
        self._blob_dir = options.blob_dir or directory
        self._blob_path = options.blob
        self._bootstrap_path = options.bootstrap
        self._json_path = options.output_json
        if directory:
            self._bootstrap_path = self._bootstrap_path or directory / f"{options.name or source.name or 'root'}.meta"
            self._json_path = self._json_path or directory / "output.json"
        paths = [path for path in (self._bootstrap_path, self._blob_path, self._json_path) if path]
        if len({os.path.abspath(path) for path in paths}) < len(paths):
            raise ConfigError("two outputs have the same path: bootstrap, blob and JSON are files of their own")
        self._sink = options.blob_sink
        self._json: Draft | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._make_directory(stack)
            if self._sink:
                self.blob = stack.enter_context(closing(Stream(self._sink)))
            else:
                self.blob = self._draft(stack, self._blob_path, self._blob_dir)
            self.bootstrap = self._draft(stack, self._bootstrap_path, self._blob_dir)
            if self._json_path:
                self._json = self._draft(stack, self._json_path, None)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stack.close()

    def _make_directory(self, stack: ExitStack) -> None:
        """Make the output directory if it is missing, and those above it; after a failure they are gone again."""
        directory = self._output_dir
        if directory is None:
            return
        missing = []
        while not directory.exists():
            missing.append(directory)
            directory = directory.parent
        for directory in reversed(missing):
            try:
                directory.mkdir()
            except OSError as error:
                raise OutputError(f"cannot create {shown(directory)}: {error.strerror}") from None
            stack.callback(_remove_empty, directory)

    @staticmethod
    def _draft(stack: ExitStack, path: Path | None, directory: Path | None) -> Draft:
        if path:
            if path.exists() and not path.is_file():
                raise ConfigError(f"the output {shown(path)} exists and is not a file")
            directory = path.parent
        assert directory
        return stack.enter_context(closing(Draft(directory)))

    def identities(self) -> dict[Identity, bool]:
        """The host's files and directories that are outputs, none of which belongs into the image.

        True for those that have a name of their own and are worth a word when they are left out.
        """
        found = {}
        for path in (*self._directories, self._bootstrap_path, self._json_path, self._blob_path):
            if path and path.exists():
                found[_identity(path.stat())] = True
        for draft in (self.blob, self.bootstrap, self._json):
            if isinstance(draft, Draft):
                found[draft.identity()] = False
        return found

    def publish_blob(self, blob_id: str) -> Path | None:
        """Name the blob; None for one that is no file. One that is there under its id already is left as it is."""
        if isinstance(self.blob, Stream):
            self.blob.finish()
            return None
        path = self._blob_path
        if not path:
            assert self._blob_dir
            path = self._blob_dir / blob_id
            with suppress(FileNotFoundError):
                if path.stat().st_size == self.blob.size:
                    return path
        self.blob.publish(path)
        return path

    def bootstrap_path(self) -> Path:
        """Where the bootstrap goes, once it is written."""
        if self._bootstrap_path:
            return self._bootstrap_path
        assert self._blob_dir
        return self._blob_dir / self.bootstrap.sha256()

    def publish(self, report: bytes) -> None:
        """Name the bootstrap, after the JSON file with ``report``."""
        if self._json:
            assert self._json_path
            self._json.write(report)
            self._json.publish(self._json_path)
        self.bootstrap.publish(self.bootstrap_path())
