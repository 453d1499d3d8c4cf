"""The backend of an image: what is configured, made complete by the image's own name."""

from __future__ import annotations

from msgspec.structs import replace

from ...erofs.errors import ConfigError
from .backend import S3, BackendConfig, HttpProxy, LocalFs, Registry, Remote, check, describe
from .reference import BucketImage, FileImage, ImageReference, RegistryImage, registry_host


def backend_of(
    image: ImageReference,
    configured: Remote | None,
    *,
    auth: str = "",
    plain_http: bool = False,
    insecure: bool = False,
) -> Remote | None:
    """Where an image and its blobs are; None for a file here with nothing else configured.

    Credentials of the configuration go to the host that they were given for, and to no other.

    Args:
        auth: for a registry that the configuration has no credentials for: base64 of user:password.
        plain_http: speak http to the server.
        insecure: take any certificate.

    Raises:
        ConfigError: the configured backend is of another kind, or has no server.
    """
    match image:
        case FileImage():
            remote = configured
        case BucketImage():
            bucket = configured or S3(bucket_name=image.bucket)
            if not isinstance(bucket, S3):
                raise _other_kind(image.known["type"], bucket)
            remote = replace(bucket, bucket_name=image.bucket)
        case RegistryImage():
            remote = _registry(image, configured, auth)
    return with_transport(remote, plain_http=plain_http, insecure=insecure) if plain_http or insecure else remote


def _registry(image: RegistryImage, configured: Remote | None, auth: str) -> Registry:
    if configured is not None and not isinstance(configured, Registry):
        raise _other_kind(image.known["type"], configured)
    own = Registry(host=image.host, repo=image.repo, auth=auth)
    if configured is None:
        return own
    if registry_host(configured.host) == registry_host(image.host):
        known = configured.auth or configured.registry_token
        return replace(configured, host=image.host, repo=image.repo, auth=configured.auth if known else auth)
    # Whom to trust, what to send, where else to ask: that was said of another registry. The way there is the same.
    return replace(
        own,
        timeout=configured.timeout,
        connect_timeout=configured.connect_timeout,
        retry_limit=configured.retry_limit,
        proxy=configured.proxy,
        ca_cert_files=configured.ca_cert_files,
    )


def _other_kind(wanted: str, configured: Remote) -> ConfigError:
    return ConfigError(f"the configured backend is {describe(configured)}, but the image's name says {wanted}")


def with_transport(backend: BackendConfig | None, *, plain_http: bool, insecure: bool) -> Remote:
    """A backend with these options put over its own; ConfigError where they could have no effect."""
    if backend is None or isinstance(backend, LocalFs):
        raise ConfigError("plain HTTP and insecure TLS are for servers, and there is none")
    if insecure:
        backend = replace(backend, skip_verify=True)
    if plain_http:
        if isinstance(backend, HttpProxy):
            raise ConfigError("an http-proxy backend has its scheme in addr")
        backend = replace(backend, scheme="http")
    check(backend)
    return backend
