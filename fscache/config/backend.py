"""Where an image's objects are kept: one typed record for each kind of backend.

Field names are nydusd's (its ``backend`` configuration, both styles), with the names that older S3 configurations
use beside them. Types hold the bounds, the comments are the meanings in docs/configuration.md
(``scripts/configuration_page.py``).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ...erofs.errors import ConfigError, UnsupportedError

Seconds = Annotated[float, Meta(gt=0, le=3600)]
Patience = Annotated[float, Meta(ge=0, le=3600)]
Retries = Annotated[int, Meta(ge=0, le=100)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Filled = Annotated[str, Meta(min_length=1)]
Scheme = Literal["http", "https"]

_HOST = re.compile(r"[^/@?#\s]+")
_ENDPOINT = re.compile(r"[^/@?#\s]+(/[^/@?#\s]+)*")
_MOST = 6000  # bytes of a backend's JSON: eight of them go into one message to a worker


class Proxy(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """An HTTP proxy before the server: a forward proxy, or Dragonfly's."""

    url: str  # http(s)://[user:password@]host[:port]
    ping_url: str = ""  # asked whether a proxy that failed is back; without it a request finds out
    fallback: bool = True  # go to the server itself while the proxy does not answer
    check_interval: Count = 5  # seconds that a proxy that failed is left alone
    check_pause_elapsed: int = 300  # accepted without effect: nobody looks while nothing is asked for
    use_http: bool = False  # speak plain HTTP to the proxy for an https server: it does the TLS
    dragonfly_scheduler_endpoint: str = ""  # refused: name Dragonfly's proxy with url

    def __repr__(self) -> str:  # the URL may hold a password
        return "<proxy>"


class Mirror(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Another server with the same objects, asked before the origin."""

    host: str  # http(s)://host[:port], for s3 with the path of its endpoint
    headers: dict[str, str] = {}  # of each request to it
    ping_url: str = ""  # asked whether a mirror that failed is back; without it a request finds out
    health_check_interval: Count = 5  # seconds that a mirror that failed is left alone
    failure_limit: Count = 5  # failures in a row until it is left alone

    def __repr__(self) -> str:  # headers may hold a token
        return f"<mirror {self.host.rpartition('@')[2]}>"


class _Remote(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What all backends behind a network share."""

    skip_verify: bool = False  # TLS: take any certificate
    ca_cert_files: list[str] = []  # TLS: files of certificates that are trusted besides the system's
    timeout: Seconds = 5.0  # seconds to the first byte of an answer, and between two pieces of it
    connect_timeout: Seconds = 5.0  # seconds until a connection is made
    deadline: Patience = 0.0  # seconds for all of a request and 1 for each 16 KiB; 0: 3 * (connect_timeout + timeout)
    retry_limit: Retries = 3  # times that a failed request is sent again at once
    proxy: Proxy | None = None  # a proxy before the server
    mirrors: list[Mirror] = []  # servers with the same objects, asked in this order before the origin
    readahead: bool = False  # accepted without effect: nydusd's
    readahead_sec: int = 0  # accepted without effect: nydusd's

    def __repr__(self) -> str:  # records end up in tracebacks: no credential of theirs may
        return f"<{describe(self)}>" if isinstance(self, (S3, Registry, HttpProxy)) else "<backend>"


class LocalFs(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True, tag_field="type", tag="localfs"):
    """Folders; the first non-empty file counts."""

    dir: str = ""  # the folder of the blobs
    alt_dirs: list[str] = []  # further ones
    blob_file: str = ""  # refused: name the folder with dir
    readahead: bool = False  # accepted without effect: nydusd's
    readahead_sec: int = 0  # accepted without effect: nydusd's

    @property
    def directories(self) -> list[str]:
        return [path for path in (self.dir, *self.alt_dirs) if path]


class S3(_Remote, forbid_unknown_fields=True, kw_only=True, frozen=True, tag_field="type", tag="s3"):
    """A bucket behind the S3 protocol. Without keys they come from the environment, a profile or the instance."""

    bucket_name: Filled  # the bucket; the image's name may say it
    endpoint: Filled = "s3.amazonaws.com"  # host[:port][/path], without scheme
    scheme: Scheme = "https"  # how the endpoint is spoken to
    region: str = ""  # us-east-1 if nothing else says it
    access_key_id: str = ""  # without keys they are looked for where the AWS tools look
    access_key_secret: str = ""  # goes with access_key_id
    session_token: str = ""  # of temporary keys
    profile: str = ""  # of the AWS configuration files
    object_prefix: str = ""  # of blobs; the same as blob_prefix
    blob_prefix: str = ""  # of blobs, before the blob id
    meta_prefix: str = ""  # of bootstraps, before NAME.meta
    path_style: bool = True  # scheme://endpoint/bucket/key instead of scheme://bucket.endpoint/key; false for oss

    def blob_object(self, blob_id: str) -> str:
        return (self.blob_prefix or self.object_prefix) + blob_id

    def meta_object(self, name: str) -> str:
        return self.meta_prefix + name


class Registry(_Remote, forbid_unknown_fields=True, kw_only=True, frozen=True, tag_field="type", tag="registry"):
    """One repository of an OCI registry."""

    host: Filled  # host[:port]; the image's name may say it
    repo: Filled  # the repository; the image's name may say it
    scheme: Scheme | Literal[""] = ""  # empty: https; on this host any certificate will do, or http if it has no TLS
    auth: str = ""  # base64 of user:password; without it docker's configuration is asked
    registry_token: str = ""  # a bearer token, as it is
    blob_url_scheme: Scheme | Literal[""] = ""  # instead of the one of the redirects to blobs
    blob_redirected_host: str = ""  # host[:port] instead of the one of the redirects to blobs

    @property
    def finds_scheme(self) -> bool:
        """Whether only trying tells: as docker and containerd do it with registries of this host."""
        return not self.scheme and is_loopback(self.host)

    def blob_object(self, blob_id: str) -> str:
        return f"sha256:{blob_id}"


class HttpProxy(_Remote, forbid_unknown_fields=True, kw_only=True, frozen=True, tag_field="type", tag="http-proxy"):
    """A server of plain files: ``addr + path/<blob id>``."""

    addr: str  # http(s)://[user:password@]host[:port], or the absolute path of a unix socket
    path: str = ""  # before the blob id

    def blob_object(self, blob_id: str) -> str:
        return f"{self.path.rstrip('/')}/{blob_id}"

    def meta_object(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"


Remote = S3 | Registry | HttpProxy
BackendConfig = LocalFs | Remote


def check(config: BackendConfig, path: str = "$") -> BackendConfig:
    """The record in its plainest form, if its values make sense; ConfigError naming the one that does not."""
    match config:
        case LocalFs():
            if config.blob_file:
                raise UnsupportedError(f"{path}.blob_file is not supported", hint="name the folder with 'dir'")
            if not config.directories:
                raise ConfigError(f"{path}.dir: localfs needs the folder of the blobs")
            return config
        case S3():
            config = msgspec.structs.replace(config, endpoint=config.endpoint.rstrip("/"))
            _plain_host(config.endpoint, _ENDPOINT, f"{path}.endpoint", "host[:port][/path]")
            if bool(config.access_key_id) != bool(config.access_key_secret):
                raise ConfigError(f"{path}: access_key_id and access_key_secret go together")
            for name in ("object_prefix", "blob_prefix", "meta_prefix"):
                if {".", ".."} & set(getattr(config, name).split("/")):
                    raise ConfigError(f"{path}.{name}: . and .. are no parts of an object's name")
            if config.blob_prefix and config.object_prefix not in ("", config.blob_prefix):
                raise ConfigError(f"{path}: blob_prefix and object_prefix say different things")
        case Registry():
            _plain_host(config.host, _HOST, f"{path}.host", "host[:port]")
        case HttpProxy():
            if not config.addr.startswith(("http://", "https://", "/")):
                raise ConfigError(f"{path}.addr: neither http(s)://HOST nor the absolute path of a unix socket")
            for name in ("proxy", "mirrors", "skip_verify", "ca_cert_files") if config.addr.startswith("/") else ():
                if getattr(config, name):
                    raise ConfigError(f"{path}.{name}: a unix socket (addr) has none")
    _check_transport(config, path)
    return config


def _check_transport(config: Remote, path: str) -> None:
    if len(msgspec.json.encode(config)) > _MOST:
        raise ConfigError(f"{path}: more than {_MOST} bytes of configuration")
    if config.proxy is not None and config.proxy.dragonfly_scheduler_endpoint:
        raise UnsupportedError(
            f"{path}.proxy.dragonfly_scheduler_endpoint is not supported", hint="name Dragonfly's proxy with 'url'"
        )
    if config.proxy is not None and not config.proxy.url.startswith(("http://", "https://")):
        raise ConfigError(f"{path}.proxy.url: it must begin with http:// or https://")
    for number, mirror in enumerate(config.mirrors):
        where = f"{path}.mirrors[{number}].host"
        if not mirror.host.startswith(("http://", "https://")):
            raise ConfigError(f"{where}: it must begin with http:// or https://")
        if "@" in mirror.host:
            raise ConfigError(f"{where}: it takes no user:password@", hint="put an Authorization into its headers")


def _plain_host(host: str, pattern: re.Pattern[str], path: str, form: str) -> None:
    scheme, colon, rest = host.partition("://")
    if colon:
        raise ConfigError(f"{path}: must be {form} without scheme", hint=f"say {rest!r}, and scheme {scheme!r}")
    if not pattern.fullmatch(host) or {".", ".."} & set(host.split("/")):
        raise ConfigError(f"{path}: {host!r} is not {form}")


def is_loopback(host: str) -> bool:
    """Whether ``host[:port]`` is this host, by its name: localhost, 127.0.0.0/8, [::1]."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) and not host.endswith("]") else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def server(config: Remote) -> str:
    """The server that a backend asks: what it does not answer concerns all of it."""
    match config:
        case S3():
            return config.endpoint
        case Registry():
            return config.host
        case HttpProxy():
            return config.addr


def describe(config: Remote) -> str:
    """One line for people that tells where a backend is, without any credential."""
    match config:
        case S3():
            return f"s3 {config.scheme}://{config.endpoint}/{config.bucket_name}"
        case Registry():
            scheme = "" if config.finds_scheme else f"{config.scheme or 'https'}://"
            return f"registry {scheme}{config.host}/{config.repo}"
        case HttpProxy():
            return f"http-proxy {config.addr.partition('@')[2] or config.addr}{config.path}"
