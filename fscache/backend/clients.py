"""Which client speaks to which kind of backend. Each is loaded only when it is wanted: boto3 alone takes 0.35 s."""

from __future__ import annotations

import importlib

from ...erofs.errors import UnsupportedError
from .base import Client, Writer
from .config import S3, BackendConfig, HttpProxy, LocalFs, Registry, Remote

_MODULES = {"s3": "s3_connect", "registry": "registry", "http-proxy": "httpproxy"}


def load(kind: str) -> None:
    """Load all that a kind of client will need, while this process can still read its own program.

    A module with such needs has a function ``preload``.
    """
    from . import lazy  # noqa: F401

    "server".encode("idna")  # looked up by each connection
    module = importlib.import_module(f"{__package__}.{_MODULES[kind]}")
    if hasattr(module, "preload"):
        module.preload()


def client(config: Remote, connections: int) -> Client:
    """The client of a backend, with as many connections kept open."""
    match config:
        case S3():
            from .s3 import S3Client

            return S3Client(config, connections)
        case Registry():
            from .registry import RegistryClient

            return RegistryClient(config, connections)
        case HttpProxy():
            from .httpproxy import HttpProxyClient

            return HttpProxyClient(config, connections)


def writer(config: BackendConfig, connections: int) -> Writer:
    """What writes to a backend; UnsupportedError for one that can only be read."""
    match config:
        case LocalFs():
            from .localfs_write import LocalWriter

            return LocalWriter(config)
        case S3():
            from .s3 import S3Client

            return S3Client(config, connections)
        case Registry():
            from .registry import RegistryClient

            return RegistryClient(config, connections)
        case HttpProxy():
            raise UnsupportedError("an http-proxy backend can only be read", hint="push to what is behind it")
