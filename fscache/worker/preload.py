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
        _preload_botocore()


def _preload_botocore() -> None:
    """Read all of its data that a client may need."""
    from ..backend.s3 import connect, errors  # noqa: F401

    session = connect.new_session("")
    for service in ("s3", "sts", "sso", "sso-oidc"):
        session.create_client(service, "us-east-1", aws_access_key_id="-", aws_secret_access_key="-")  # noqa: S106
