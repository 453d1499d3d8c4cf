"""Where an image comes from: a file or a name in a backend, and the folders of its blobs.

What is done here may wait for files of others and for programs: run it in a child (``places.py``).
"""

from __future__ import annotations

import os

import msgspec

from ....erofs.errors import BlobNotFoundError, ConfigError
from ...config.backend import LocalFs, Registry, Remote, describe
from ...config.backend_file import load
from ...config.completion import backend_of
from ...config.reference import BucketImage, FileImage, RegistryImage, parse_image
from ...config.service import Config
from ...credentials.docker import with_docker_credentials


class Origin(msgspec.Struct, frozen=True):
    """One image's. Blobs are looked for in ``folders`` first, then in ``remote``."""

    image: str  # as people name it
    folders: list[str]
    remote: Remote | None = None
    name: str = ""  # of the bootstrap in ``remote``: object, tag or digest; empty when ``image`` is a file here


class ImageRequest(msgspec.Struct, frozen=True):
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


def resolve(given: ImageRequest, config: Config, auth: str = "") -> Origin:
    """What an image's name means; ConfigError for a name or a configuration that makes no sense.

    Args:
        auth: for a registry, base64 of user:password, if the backend's configuration has none.
    """
    image = parse_image(given.image)
    folders = given.folders
    backend = load(given.backend_file, known=image.known) if given.backend_file else config.backend
    if isinstance(backend, LocalFs):
        folders, backend = [*folders, *backend.directories], None
    try:
        remote = backend_of(image, backend, auth=auth, plain_http=given.plain_http, insecure=given.insecure)
    except ConfigError as error:
        error.message = f"{given.image}: {error.message}"
        raise
    match image:
        case FileImage():
            return Origin(given.image, [*folders, os.path.dirname(image.path), *config.blob_dirs], remote)
        case BucketImage():
            return Origin(given.image, folders, remote, image.key)
        case RegistryImage():
            return Origin(given.image, folders, remote and with_docker_credentials(remote), image.manifest)


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
    return Origin(f"{describe(remote)} {name}", config.blob_dirs, remote, name)
