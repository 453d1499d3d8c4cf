"""Loading early what a backend needs: without privilege the program's own files may be out of reach."""

from __future__ import annotations

import importlib

_CLIENTS = {"s3": "s3.client", "registry": "registry.client", "http-proxy": "httpproxy"}


def preload(kind: str) -> None:
    """Load all that a kind of client will need."""
    from ..backend import lazy  # noqa: F401

    "server".encode("idna")  # looked up by each connection
    importlib.import_module(f"..backend.{_CLIENTS[kind]}", __package__)
    if kind == "s3":
        from ..backend.s3 import connect

        connect.preload()
