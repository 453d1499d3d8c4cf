"""The one place where a backend is put together: client, mirrors, retries, metering."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import msgspec

from ...erofs.ids import BlobId
from ..config.backend import S3, HttpProxy, Registry, Remote, describe
from ..proto.worker import Traffic
from .base import Client
from .blob import RemoteBlob
from .http.deadline import base
from .meter import Meter
from .mirrored import Mirrored
from .resilient import Resilient


def client(config: Remote, connections: int) -> Client:
    """The client of a backend, with as many connections kept open. It is loaded only when it is wanted."""
    match config:
        case S3():
            from .s3.client import S3Client

            return S3Client(config, connections)
        case Registry():
            from .registry.client import RegistryClient

            return RegistryClient(config, connections)
        case HttpProxy():
            from .httpproxy import HttpProxyClient

            return HttpProxyClient(config, connections)


def _ping(config: Remote, url: str) -> None:
    from .http.client import Http

    Http(config, 1).ping(url)


class Backends:
    """All backends in use, one client each however many images share it.

    Args:
        connections: kept open to each server: one for each thread that may ask.
        changed: called, from any thread, when there is news about traffic.
    """

    def __init__(self, connections: int, changed: Callable[[], None]) -> None:
        self._connections, self._changed = connections, changed
        self._known: dict[bytes, tuple[Resilient, Meter]] = {}
        self._lock = threading.Lock()

    def get(self, config: Remote) -> Resilient:
        """The backend of a configuration. Making the first of a kind may take a second: modules are loaded."""
        key = msgspec.json.encode(config)
        with self._lock:
            if key not in self._known:
                meter = Meter(describe(config), self._changed)
                origin = client(config, self._connections)
                made = Mirrored(origin, config.mirrors, partial(_ping, config), base(config))
                self._known[key] = Resilient(made, meter, config.retry_limit), meter
            return self._known[key][0]

    def blob(self, config: Remote, blob_id: BlobId) -> RemoteBlob:
        return RemoteBlob(self.get(config), config.blob_object(blob_id))

    def news(self) -> list[Traffic]:
        """What changed since this was asked last."""
        with self._lock:
            meters = [meter for _, meter in self._known.values()]
        return [traffic for meter in meters if (traffic := meter.news()) is not None]
