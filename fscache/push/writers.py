"""What writes to which kind of backend. Each is loaded only when it is wanted: boto3 alone takes 0.35 s."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, Protocol

from ...erofs.errors import UnsupportedError
from ..config.backend import S3, BackendConfig, HttpProxy, LocalFs, Registry


class Writer(Protocol):
    """Stores objects in one place."""

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


def writer(config: BackendConfig, connections: int) -> Writer:
    """What writes to a backend; UnsupportedError for one that can only be read."""
    match config:
        case LocalFs():
            from .localfs import LocalWriter

            return LocalWriter(config)
        case S3():
            from ..backend.s3.client import S3Client
            from .s3 import S3Writer

            return S3Writer(S3Client(config, connections))
        case Registry():
            from ..backend.registry.client import RegistryClient
            from .registry import RegistryWriter

            return RegistryWriter(RegistryClient(config, connections))
        case HttpProxy():
            raise UnsupportedError("an http-proxy backend can only be read", hint="push to what is behind it")
