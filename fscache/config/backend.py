"""Where an image's objects are kept: one typed record for each kind of backend.

Field names are nydusd's (its ``backend`` configuration, both styles), with the names that older S3 configurations
use beside them. An unknown key is an error that names its JSON path.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ...erofs.errors import ConfigError, UnsupportedError


class Proxy(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """An HTTP proxy before the server: a forward proxy, or Dragonfly's."""

    url: str
    ping_url: str = ""
    fallback: bool = True  # to the server itself while the proxy does not answer
    check_interval: int = 5  # seconds between looks at ``ping_url``
    check_pause_elapsed: int = 300  # seconds without a request after which nobody looks any more
    use_http: bool = False  # speak plain HTTP to the proxy for an https server: it does the TLS
    dragonfly_scheduler_endpoint: str = ""

    def __repr__(self) -> str:  # the URL may hold a password
        return "<proxy>"


class Mirror(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Another server with the same objects, asked before the origin."""

    host: str  # with its scheme
    headers: dict[str, str] = {}
    ping_url: str = ""
    health_check_interval: int = 5  # seconds
    failure_limit: int = 5  # failures in a row until it is left alone for a while

    def __repr__(self) -> str:  # headers may hold a token
        return f"<mirror {self.host.rpartition('@')[2]}>"


class _Remote(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What all backends behind a network share."""

    skip_verify: bool = False  # TLS: take any certificate
    ca_cert_files: list[str] = []  # TLS: trusted besides the system's
    timeout: float = 5.0  # seconds to the first byte of an answer, and between two pieces of it
    connect_timeout: float = 5.0  # seconds
    retry_limit: int = 3  # times a failed request is sent again at once
    proxy: Proxy | None = None
    mirrors: list[Mirror] = []
    readahead: bool = False  # accepted and ignored, as the next
    readahead_sec: int = 0

    def __repr__(self) -> str:  # records end up in tracebacks: no credential of theirs may
        return f"<{describe(self)}>" if isinstance(self, (S3, Registry, HttpProxy)) else "<backend>"


class LocalFs(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True, tag_field="type", tag="localfs"):
    """Folders; the first non-empty file counts."""

    dir: str = ""
    alt_dirs: list[str] = []
    blob_file: str = ""
    readahead: bool = False
    readahead_sec: int = 0

    @property
    def directories(self) -> list[str]:
        return [path for path in (self.dir, *self.alt_dirs) if path]


class S3(_Remote, forbid_unknown_fields=True, kw_only=True, frozen=True, tag_field="type", tag="s3"):
    """A bucket behind the S3 protocol. Without keys they come from the environment, a profile or the instance."""

    bucket_name: str
    endpoint: str = "s3.amazonaws.com"  # host[:port], without scheme
    scheme: str = "https"
    region: str = ""
    access_key_id: str = ""
    access_key_secret: str = ""
    session_token: str = ""
    profile: str = ""  # of the AWS configuration files
    object_prefix: str = ""  # of blobs; the same as blob_prefix
    blob_prefix: str = ""
    meta_prefix: str = ""  # of bootstraps
    path_style: bool = True  # scheme://endpoint/bucket/key instead of scheme://bucket.endpoint/key

    def blob_object(self, blob_id: str) -> str:
        return (self.blob_prefix or self.object_prefix) + blob_id

    def meta_object(self, name: str) -> str:
        return self.meta_prefix + name


class Registry(_Remote, forbid_unknown_fields=True, kw_only=True, frozen=True, tag_field="type", tag="registry"):
    """One repository of an OCI registry."""

    host: str
    repo: str
    scheme: str = "https"
    auth: str = ""  # base64 of user:password; without it docker's configuration is asked
    registry_token: str = ""  # a bearer token, as it is
    blob_url_scheme: str = ""  # instead of the redirect's
    blob_redirected_host: str = ""  # instead of the redirect's

    def blob_object(self, blob_id: str) -> str:
        return f"sha256:{blob_id}"


class HttpProxy(_Remote, forbid_unknown_fields=True, kw_only=True, frozen=True, tag_field="type", tag="http-proxy"):
    """A server of plain files: ``addr + path/<blob id>``."""

    addr: str  # http(s)://host[:port], or the absolute path of a unix socket
    path: str = ""

    def blob_object(self, blob_id: str) -> str:
        return f"{self.path.rstrip('/')}/{blob_id}"

    def meta_object(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"


Remote = S3 | Registry | HttpProxy
BackendConfig = LocalFs | Remote

_KINDS: dict[str, type[BackendConfig]] = {
    "localfs": LocalFs, "s3": S3, "oss": S3, "registry": Registry, "http-proxy": HttpProxy,
}  # fmt: skip
_MAX_FILE = 1 << 20  # bytes, as in nydusd
_MOST = 6000  # bytes of a backend's JSON: eight of them go into one message to a worker
_SCHEMES = ("http", "https")


def convert(kind: str, fields: dict[str, Any], path: str = "$") -> BackendConfig:
    """The record of a backend of this ``kind`` from plain JSON; ConfigError names what is wrong by JSON path.

    Args:
        path: JSON path of ``fields`` in its document, for messages.
    """
    if kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise UnsupportedError(f"{path}: backend type {kind!r} is not supported", hint=f"known: {known}")
    fields = {name: value for name, value in fields.items() if name != "type"}
    if kind == "oss":
        fields.setdefault("path_style", False)
        if "endpoint" not in fields:
            raise ConfigError(f"{path}.endpoint is missing")
    try:
        config = msgspec.convert({"type": _tag(kind), **fields}, _KINDS[kind])
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise ConfigError(f"{path}{where.rstrip('`')}: {what}") from None
    return check(config, path)


def read_file(path: str) -> bytes:
    """A configuration file; ConfigError when it cannot be read, or is too large to be one."""
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > _MAX_FILE:
        raise ConfigError(f"{path} is larger than 1 MiB", hint="is it a configuration file?")
    return raw


def load(kind: str | None, path: str) -> BackendConfig:
    """The backend that a JSON file describes: the fields of one (as nydusify takes them), or a nydusd configuration.

    Args:
        kind: of the backend; not needed where the file says it.

    Raises ConfigError naming the file, and what is wrong in it by JSON path.
    """
    try:
        document = msgspec.json.decode(read_file(path), type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON object: {error}") from None
    try:
        return _of(kind, *_backend_of(document))
    except (ConfigError, UnsupportedError) as error:
        error.message = f"{path}: {error.message}"
        raise


def _of(kind: str | None, said: str, fields: dict[str, Any], place: str) -> BackendConfig:
    if kind and said and _tag(kind) != _tag(said):
        raise ConfigError(f"{place} is a {said} backend, not {kind}")
    if not (kind or said):
        raise ConfigError("$.type is missing", hint=f"one of {', '.join(_KINDS)}")
    return convert(said or kind or "", fields, place)


def _backend_of(document: dict[str, Any]) -> tuple[str, dict[str, Any], str]:
    """(kind or nothing, fields, JSON path of these) of a document of any form."""
    try:
        if "device" in document:
            backend = document["device"]["backend"]
            return _text(backend["type"]), _object(backend["config"]), "$.device.backend.config"
        if "backend" in document:
            backend = document["backend"]
            kind = _text(backend["type"])
            return kind, _object(backend[kind]), f"$.backend.{kind}"
        return _text(document.get("type", "")), document, "$"
    except (KeyError, TypeError):
        raise ConfigError("neither the fields of a backend nor a nydusd configuration with one") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _tag(kind: str) -> str:
    return "s3" if kind == "oss" else kind


def check(config: BackendConfig, path: str = "$") -> BackendConfig:
    """The record, if its values make sense; ConfigError naming the one that does not."""
    match config:
        case LocalFs():
            if config.blob_file:
                raise UnsupportedError(f"{path}.blob_file is not supported", hint="name the folder with 'dir'")
            if not config.directories:
                raise ConfigError(f"{path}.dir: localfs needs the folder of the blobs")
            return config
        case S3():
            _plain_host(config.endpoint, f"{path}.endpoint")
            _filled(config.bucket_name, f"{path}.bucket_name")
            if bool(config.access_key_id) != bool(config.access_key_secret):
                raise ConfigError(f"{path}: access_key_id and access_key_secret go together")
            if config.blob_prefix and config.object_prefix not in ("", config.blob_prefix):
                raise ConfigError(f"{path}: blob_prefix and object_prefix say different things")
        case Registry():
            _plain_host(config.host, f"{path}.host")
            _filled(config.repo, f"{path}.repo")
        case HttpProxy():
            if not config.addr.startswith(("http://", "https://", "/")):
                raise ConfigError(f"{path}.addr: neither http(s)://HOST nor the absolute path of a unix socket")
            for name in ("proxy", "mirrors", "skip_verify", "ca_cert_files") if config.addr.startswith("/") else ():
                if getattr(config, name):
                    raise ConfigError(f"{path}.{name}: a unix socket (addr) has none")
    if not isinstance(config, HttpProxy) and config.scheme not in _SCHEMES:
        raise ConfigError(f"{path}.scheme: {config.scheme!r} is neither http nor https")
    _check_transport(config, path)
    return config


def _check_transport(config: Remote, path: str) -> None:
    if len(msgspec.json.encode(config)) > _MOST:
        raise ConfigError(f"{path}: more than {_MOST} bytes of configuration")
    for name in ("timeout", "connect_timeout"):
        if not 0 < getattr(config, name) <= 3600:
            raise ConfigError(f"{path}.{name}: not between 0 and 3600 seconds")
    if not 0 <= config.retry_limit <= 100:
        raise ConfigError(f"{path}.retry_limit: not between 0 and 100")
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


def _plain_host(host: str, path: str) -> None:
    _filled(host, path)
    if "://" in host:
        scheme, _, rest = host.partition("://")
        raise ConfigError(f"{path}: must be host[:port] without scheme", hint=f"say {rest!r}, and scheme {scheme!r}")
    if "/" in host or "@" in host or any(c.isspace() for c in host):
        raise ConfigError(f"{path}: {host!r} is not host[:port]")


def _filled(value: str, path: str) -> None:
    if not value:
        raise ConfigError(f"{path} is empty")


def describe(config: Remote) -> str:
    """One line for people that tells where a backend is, without any credential."""
    match config:
        case S3():
            return f"s3 {config.scheme}://{config.endpoint}/{config.bucket_name}"
        case Registry():
            return f"registry {config.scheme}://{config.host}/{config.repo}"
        case HttpProxy():
            return f"http-proxy {config.addr.partition('@')[2] or config.addr}{config.path}"
