"""Opening what verbs are given: a bootstrap, and the blobs that belong to it."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from typing import Self

from ..erofs.errors import BlobNotFoundError, ConfigError
from ..erofs.ids import BlobId
from ..erofs.source import FdSource


class ImageFiles:
    """A bootstrap on disk and the blobs beside it or in a folder of their own. A context manager: it closes all.

    Args:
        bootstrap: path of the bootstrap.
        blob_dir: folder of the blobs; None for the bootstrap's own, in which a blob may be missing.
    """

    def __init__(self, bootstrap: str, blob_dir: str | None = None) -> None:
        self._bootstrap = bootstrap
        self._blob_dir = blob_dir
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def bootstrap(self) -> FdSource:
        """The bootstrap's bytes; ConfigError or OSError when it cannot be opened."""
        return self._source(self._bootstrap)

    def find_blob(self, blob: BlobId) -> FdSource | None:
        """A blob's bytes. When it is not there: None, or BlobNotFoundError if a folder for blobs was given."""
        folder = os.path.dirname(self._bootstrap) or "." if self._blob_dir is None else self._blob_dir
        try:
            return self._source(os.path.join(folder, blob))
        except FileNotFoundError:
            if self._blob_dir is None:
                return None
            raise BlobNotFoundError(f"no blob {blob} in {folder}") from None

    def _source(self, path: str) -> FdSource:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._open.callback(os.close, fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError(f"not a regular file: {path}")
        return FdSource(fd)
