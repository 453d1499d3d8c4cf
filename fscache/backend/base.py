"""What a client of a remote backend offers: single requests for objects by name.

A client makes one attempt per call, with time-outs; mirrors, retries and metering are wrapped around it
(``assemble.py``), while a proxy is the affair of its connections. Clients are safe for several threads and keep one
pool of connections.

Errors, all BackendError: BlobNotFoundError (404), DeniedError (401, 403, rejected signature); ``retryable`` tells
whether another try may help, ``retry_after`` (seconds) when the server asked for a pause. Messages name server and
object and never a credential (also not one inside a URL, a signed query for instance).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ...erofs.record import Buffer
from ..config.backend import Mirror


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

    def at(self, mirror: Mirror) -> Client:
        """A client of the same objects on a mirror, past any proxy. Credentials go there if they are safe there."""
        ...
