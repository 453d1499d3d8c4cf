"""What a client of a remote backend offers: single requests for objects by name.

A client makes one attempt per call, with time-outs; retries, mirrors and metering are wrapped around it
(``assemble.py``). Clients are safe for several threads and keep one pool of connections.

Errors, all BackendError: BlobNotFoundError (404), DeniedError (401, 403, rejected signature); ``retryable`` tells
whether another try may help, ``retry_after`` (seconds) when the server asked for a pause. Messages name server and
object and never a credential (also not one inside a URL, a signed query for instance).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, NamedTuple, Protocol

from ...erofs.record import Buffer


class ObjectInfo(NamedTuple):
    """What a server says of an object: bytes, and its ETag or digest (empty when it gives none)."""

    size: int
    etag: str


class Client(Protocol):
    """Reads objects of one server."""

    label: str  # for people: kind, server, bucket or repository; no credential

    def stat(self, name: str) -> ObjectInfo:
        """Whether an object is there, and its size."""
        ...

    def read(self, name: str, offset: int, length: int) -> Buffer:
        """Exactly ``length`` bytes (at least 1) from byte ``offset``: an answer of another length is an error."""
        ...


class Writer(Protocol):
    """Stores objects."""

    label: str

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Whether the very object is there already, as far as that can be told without its bytes being read."""
        ...

    def put(self, name: str, file: BinaryIO, size: int, sha256: str, progress: Callable[[int], None]) -> None:
        """Store ``size`` bytes of a seekable file under a name, all or nothing, verified by the server's checksum.

        Args:
            sha256: hex digest of the bytes.
            progress: called with the number of further bytes that are there (from any thread, under a lock).
        """
        ...
