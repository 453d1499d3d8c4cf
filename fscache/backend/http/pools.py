"""Connections: TLS, time-outs, pools to servers, through a proxy, over a unix socket."""

from __future__ import annotations

import os
import ssl
from typing import Any, TypeVar
from urllib.parse import unquote

import urllib3
from urllib3.exceptions import InsecureRequestWarning

from ....erofs.errors import ConfigError
from ...config.backend import Remote
from .sockets import HttpPool, HttpsPool, TlsSocket, unix_pool

M = TypeVar("M", bound=urllib3.PoolManager)

_BUNDLES = (  # of the distributions
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)  # fmt: skip


class Pools:
    """Makes the pools of one backend: all have its time-outs and its view of whom to trust.

    Args:
        connections: kept open to each server.
        bundle: file of the certificates to trust instead of the system's.
    """

    def __init__(self, config: Remote, connections: int, bundle: str = "") -> None:
        self._common: dict[str, Any] = {
            "maxsize": connections,
            "timeout": urllib3.Timeout(connect=config.connect_timeout, read=config.timeout),
            "retries": False,
        }
        self._tls = _tls(config, bundle)

    def direct(self) -> urllib3.PoolManager:
        return _bounded(urllib3.PoolManager(ssl_context=self._tls, **self._common))

    def proxy(self, url: str) -> urllib3.ProxyManager:
        """Plain requests go to the proxy as they are, those of TLS through a tunnel."""
        parts = urllib3.util.parse_url(url)
        credentials = urllib3.make_headers(proxy_basic_auth=unquote(parts.auth)) if parts.auth else {}
        return _bounded(
            urllib3.ProxyManager(
                parts._replace(auth=None).url,
                proxy_headers=credentials,
                ssl_context=self._tls,
                proxy_ssl_context=self._tls,
                **self._common,
            )
        )

    def unix(self, path: str) -> urllib3.PoolManager:
        """Every http URL means the server behind a unix socket."""
        return _UnixManager(path, self._common)


def _bounded(manager: M) -> M:
    """With connections that know their deadline."""
    manager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}
    return manager


class _UnixManager(urllib3.PoolManager):
    """One pool, whatever the URL's host."""

    def __init__(self, path: str, common: dict[str, Any]) -> None:
        super().__init__()
        self._pool = unix_pool(path, common)

    def connection_from_host(self, *_: Any, **__: Any) -> urllib3.HTTPConnectionPool:
        return self._pool


def _tls(config: Remote, bundle: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if bundle else _system())
    context.sslsocket_class = TlsSocket
    for path in (*([bundle] if bundle else []), *config.ca_cert_files):
        try:
            context.load_verify_locations(cafile=path)
        except OSError as error:  # ssl.SSLError is one
            what = "holds no certificate in PEM form" if isinstance(error, ssl.SSLError) else error.strerror
            hint = "the service's own user must be able to read it" if isinstance(error, PermissionError) else None
            raise ConfigError(f"ca_cert_files: {path}: {what}", hint=hint) from None
    if config.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        urllib3.disable_warnings(InsecureRequestWarning)  # it is what was asked for
    return context


def _system() -> str | None:
    """The distribution's file of certificates, where this Python's OpenSSL looks for them elsewhere."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile or paths.capath:
        return None
    return next((path for path in _BUNDLES if os.access(path, os.R_OK)), None)
