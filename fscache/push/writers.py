"""What writes to which kind of backend. Each is loaded only when it is wanted: boto3 alone takes 0.35 s."""

from __future__ import annotations

from ...erofs.errors import UnsupportedError
from ..backend.base import Writer
from ..config.backend import S3, BackendConfig, HttpProxy, LocalFs, Registry


def writer(config: BackendConfig, connections: int) -> Writer:
    """What writes to a backend; UnsupportedError for one that can only be read."""
    match config:
        case LocalFs():
            from .localfs import LocalWriter

            return LocalWriter(config)
        case S3():
            from ..backend.s3.client import S3Client

            return S3Client(config, connections)
        case Registry():
            from ..backend.registry.client import RegistryClient

            return RegistryClient(config, connections)
        case HttpProxy():
            raise UnsupportedError("an http-proxy backend can only be read", hint="push to what is behind it")
