"""Publishing into a local folder: every file appears under its name when it is complete and on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from typing import BinaryIO

from ...erofs.errors import OutputError, SourceError
from ..config.backend import LocalFs

_PIECE = 4 << 20  # bytes


class LocalWriter:
    """Writes into the first folder of a configuration."""

    def __init__(self, config: LocalFs) -> None:
        self._folder = config.directories[0]
        self.label = f"localfs {self._folder}"

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """True for a file of that size which is named by its content; any other is written again."""
        try:
            return name == sha256 and os.stat(os.path.join(self._folder, name)).st_size == size
        except FileNotFoundError:
            return False

    def put(self, name: str, file: BinaryIO, size: int, sha256: str, progress: Callable[[int], None]) -> None:
        """As of ``Writer``; OutputError when it cannot be written."""
        try:
            fd, new = tempfile.mkstemp(dir=self._folder, prefix=".new-")
            try:
                with open(fd, "wb") as out:
                    _copy(name, file, out, sha256, progress)
                    os.fchmod(out.fileno(), 0o644)
                    out.flush()
                    os.fsync(out.fileno())
                os.replace(new, os.path.join(self._folder, name))
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(new)
                raise
        except OSError as error:
            raise OutputError(f"{self.label}: {name}: {error.strerror}") from None


def _copy(name: str, file: BinaryIO, out: BinaryIO, sha256: str, progress: Callable[[int], None]) -> None:
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
        out.write(piece)
        progress(len(piece))
    if digest.hexdigest() != sha256:
        raise SourceError(f"{name}: the file changed while it was copied")
