"""Uploading a blob while it is built: in pieces, before its name is known, few of them in memory at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from ...erofs.errors import UnsupportedError
from ...erofs.record import Buffer
from ..config.backend import S3, BackendConfig, Registry


class Way(Protocol):
    """How pieces get to a server."""

    piece: int  # bytes of each piece but the last
    parallel: int  # pieces that may be on their way at a time

    def send(self, number: int, data: bytes) -> None:
        """Send a piece; numbers count from 1."""
        ...

    def keep(self, sha256: str, size: int) -> None:
        """All pieces are there: give them the name of their content, unless it is there already."""
        ...

    def drop(self) -> None:
        """Forget all pieces. Raises nothing."""
        ...


class BlobStream:
    """Takes a blob as it is built. Use ``close`` in any case: what was not finished by then is gone.

    Errors of the backend are raised by the next call. Memory: ``parallel`` + 1 pieces.

    Args:
        progress: called with bytes that are there.
    """

    def __init__(self, way: Way, progress: Callable[[int], None]) -> None:
        self._way, self._progress = way, progress
        self._buffer = bytearray()
        self._sent = 0  # pieces
        self._flying: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(way.parallel)
        self._finished = False

    def write(self, data: Buffer) -> None:
        """Append all of ``data``."""
        self._buffer += data
        while len(self._buffer) >= self._way.piece:
            piece = bytes(self._buffer[: self._way.piece])
            del self._buffer[: self._way.piece]
            self._send(piece)

    def finish(self, sha256: str, size: int) -> None:
        """Keep what was written, of this digest and size, under the name of its content."""
        if self._buffer:
            self._send(bytes(self._buffer))
            self._buffer.clear()
        while self._flying:
            self._flying.popleft().result()
        self._way.keep(sha256, size)
        self._finished = True

    def close(self) -> None:
        for flying in self._flying:
            flying.cancel()
        self._pool.shutdown()
        if not self._finished:
            self._way.drop()

    def _send(self, piece: bytes) -> None:
        while len(self._flying) >= self._way.parallel:
            self._flying.popleft().result()
        self._sent += 1
        self._flying.append(self._pool.submit(self._one, self._sent, piece))

    def _one(self, number: int, piece: bytes) -> None:
        self._way.send(number, piece)
        self._progress(len(piece))


def stream(backend: BackendConfig, progress: Callable[[int], None]) -> BlobStream:
    """A stream into a backend; UnsupportedError for one that only takes files."""
    match backend:
        case S3():
            from .s3 import S3Way

            return BlobStream(S3Way(backend), progress)
        case Registry():
            from .registry import RegistryWay

            return BlobStream(RegistryWay(backend), progress)
    raise UnsupportedError(
        "only a bucket or a registry takes a blob while it is built", hint="give the blob a place with --output-dir"
    )
