"""Where an image comes from: a file or a name in a backend, and the folders of its blobs.

What is done here may wait for files of others and for programs: run it in a child (``places.py``).
"""

from __future__ import annotations

import os

import msgspec

from ...erofs.errors import BlobNotFoundError, ConfigError
from ..config import backend as backends
from ..config.backend import Registry, Remote
from ..config.service import Config

_S3 = "s3://"


class Origin(msgspec.Struct, frozen=True):
    """One image's. Blobs are looked for in ``folders`` first, then in ``remote``."""

    image: str  # as people name it
    folders: list[str]
    remote: Remote | None = None
    name: str = ""  # of the bootstrap in ``remote``: object, tag or digest; empty when ``image`` is a file here


class Given(msgspec.Struct, frozen=True):
    """What a mount was asked for, as it is kept on disk: it names a configuration file and holds nothing of it.

    ``image`` is the absolute path of a bootstrap, ``s3://BUCKET/OBJECT`` or ``REGISTRY/REPO:TAG``; ``folders`` of
    blobs come before the bootstrap's own and the configured ones; without ``backend_file`` the service's own
    backend is used.
    """

    image: str
    folders: list[str] = []
    backend_file: str = ""
    plain_http: bool = False
    insecure: bool = False


def resolve(given: Given, config: Config, auth: str = "") -> Origin:
    """What an image's name means; ConfigError for a name or a configuration that makes no sense.

    Args:
        auth: for a registry, base64 of user:password, if the backend's configuration has none.
    """
    image, folders = given.image, given.folders
    backend = backends.load(None, given.backend_file) if given.backend_file else config.backend
    if isinstance(backend, backends.LocalFs):
        folders, backend = [*folders, *backend.directories], None
    if image.startswith(_S3):
        return _in_bucket(image, folders, backend)
    if not image.startswith("/"):
        return _in_registry(image, folders, backend, auth)
    return Origin(image, [*folders, os.path.dirname(image), *config.blob_dirs], backend)


def _in_bucket(image: str, folders: list[str], backend: Remote | None) -> Origin:
    bucket, _, key = image.removeprefix(_S3).partition("/")
    if not bucket or not key:
        raise ConfigError(f"{image}: not s3://BUCKET/NAME")
    if backend is None:
        backend = backends.S3(bucket_name=bucket)
    if not isinstance(backend, backends.S3):
        raise ConfigError(f"{image}: the configured backend is {backends.describe(backend)}, not S3")
    return Origin(image, folders, msgspec.structs.replace(backend, bucket_name=bucket), key)


def _in_registry(image: str, folders: list[str], backend: Remote | None, auth: str) -> Origin:
    from ..config.reference import parse_reference
    from ..credentials.docker import docker_config, docker_credentials

    reference = parse_reference(image.removeprefix("registry://"))
    if backend is None:
        backend = Registry(host=reference.host, repo=reference.repo)
    if not isinstance(backend, Registry):
        raise ConfigError(f"{image}: the configured backend is {backends.describe(backend)}, not a registry")
    if backend.host != reference.host:  # credentials are for the host that they were given for
        backend = msgspec.structs.replace(backend, auth="", registry_token="")
    auth = backend.auth or auth
    if not auth and not backend.registry_token:
        auth = docker_credentials(reference.host, docker_config())
    remote = msgspec.structs.replace(backend, host=reference.host, repo=reference.repo, auth=auth)
    return Origin(image, folders, remote, reference.tag_or_digest)


def by_name(fsid: str, config: Config) -> Origin:
    """What a plain ``mount -t erofs -o fsid=NAME`` means: NAME.meta in a folder of blobs, or in the backend.

    Raises BlobNotFoundError when there is none.
    """
    for folder in config.blob_dirs:
        path = os.path.join(folder, f"{fsid}.meta")
        if os.path.isfile(path):
            return Origin(path, config.blob_dirs, config.backend)
    if config.backend is None:
        where = " or ".join(config.blob_dirs) or "any configured folder (blob_dirs)"
        raise BlobNotFoundError(f"no image {fsid}: there is no {fsid}.meta in {where}")
    remote = config.backend
    name = fsid if isinstance(remote, Registry) else remote.meta_object(fsid)
    return Origin(f"{backends.describe(remote)} {name}", config.blob_dirs, remote, name)
