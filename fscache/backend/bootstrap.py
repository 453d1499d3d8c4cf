"""Fetching a published bootstrap: whole, in parallel pieces, and checked against every digest that is known."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ...erofs import merkle, verity
from ...erofs.errors import BackendError, BlobNotFoundError, CorruptError, FormatError
from ..config.backend import Registry, Remote
from .base import Client, ObjectInfo
from .files import mapped, write_all
from .registry import oci
from .registry.client import Manifest, RegistryClient
from .registry.layer import extract_bootstrap
from .resilient import Resilient

MAX_BOOTSTRAP = 2 << 30  # bytes, as in nydusd
_PIECE, _PARALLEL = 4 << 20, 4  # bytes in one request, requests at a time
_SUFFIX = ".meta"


def fetch_bootstrap(
    backend: Resilient, config: Remote, name: str, fd: int, *, known: str = "", digest: str = ""
) -> str:
    """Fetch the bootstrap published as ``name`` (an object, a tag or a digest) into an empty file.

    Args:
        known: version that need not be fetched again.
        digest: identity that it must have, if one is demanded.

    Returns:
        The version that the server has under the name; with the known one, the file stays empty.

    Raises:
        BackendError: it cannot be had.
        CorruptError: it is not what the server, its digest tree or ``digest`` says.
        FormatError: what has this name is no Nydus image.
    """
    if isinstance(config, Registry):
        version, claimed = _from_registry(backend, config, name, fd, known)
    else:
        version, claimed = _from_object(backend, name, fd, known)
    if version == known and known:
        return version
    with mapped(fd) as data:
        identity = merkle.identity(data)
    for what, wanted in (("its digest tree", claimed), ("what is demanded", digest)):
        if wanted and identity != wanted:
            raise CorruptError(
                f"{backend.label}: bootstrap {name} has the digest {identity}, not {wanted} as {what} says"
            )
    return version


def _from_object(backend: Resilient, name: str, fd: int, known: str) -> tuple[str, str]:
    """(version, identity that the digest tree beside it claims)."""
    name, info = find_object(backend, name)
    version = f"{info.etag} {info.size}" if info.etag else ""
    if version and version == known:
        return version, ""
    _check_size(backend, name, info.size)
    with ThreadPoolExecutor(1) as beside:
        beside_it = beside.submit(fetch_tree, backend, name)
        _download(backend, name, info.size, fd)
        if backend.stat(name).etag != info.etag:
            raise BackendError(f"{backend.label}: {name} was replaced while it was fetched", hint="mount it again")
        tree = beside_it.result()
        return version, tree.identity if tree else ""


def find_object(backend: Resilient, name: str) -> tuple[str, ObjectInfo]:
    """The object that a name means: with .meta, or as it is."""
    if not name.endswith(_SUFFIX):
        try:
            return name + _SUFFIX, backend.stat(name + _SUFFIX)
        except BlobNotFoundError:
            pass
    return name, backend.stat(name)


def _check_size(backend: Resilient, name: str, size: int) -> None:
    if not 0 < size <= MAX_BOOTSTRAP:
        raise FormatError(f"{backend.label}: {name} of {size} bytes is no bootstrap")


def _download(backend: Resilient, name: str, size: int, fd: int) -> None:
    def piece(offset: int) -> None:
        write_all(fd, backend.read(name, offset, min(_PIECE, size - offset)), offset)

    with ThreadPoolExecutor(_PARALLEL) as pool:
        for done in [pool.submit(piece, offset) for offset in range(0, size, _PIECE)]:
            done.result()


def fetch_tree(backend: Resilient, name: str) -> verity.Tree | None:
    """The digest tree published beside a bootstrap; None when there is none. CorruptError when it is damaged."""
    tree = name + verity.SUFFIX
    try:
        size = backend.stat(tree).size
    except BlobNotFoundError:
        return None
    if not 0 < size <= verity.MAX_TREE_FILE:
        raise CorruptError(f"{backend.label}: {tree} of {size} bytes is no digest tree")
    try:
        return verity.parse_tree(backend.read(tree, 0, size))
    except FormatError as error:
        raise CorruptError(f"{backend.label}: {tree}: {error.message}") from None


def _from_registry(backend: Resilient, config: Registry, name: str, fd: int, known: str) -> tuple[str, str]:
    """(digest of the manifest, identity that the digest tree in the bootstrap layer claims)."""
    image, version = _manifest(backend, f"{config.host}/{config.repo}", name)
    if version == known:
        return version, ""
    layer = image.bootstrap
    with open(os.memfd_create("layer", os.MFD_CLOEXEC), "w+b") as file:
        _check_size(backend, layer.digest, layer.size)
        _download(backend, layer.digest, layer.size, file.fileno())
        with mapped(file.fileno()) as data:
            if f"sha256:{hashlib.sha256(data).hexdigest()}" != layer.digest:
                raise CorruptError(f"{backend.label}: layer {layer.digest} does not have this digest")
        file.seek(0)
        with open(fd, "wb", closefd=False) as out:
            tree = extract_bootstrap(file, out, MAX_BOOTSTRAP)
    return version, verity.parse_tree(tree).identity if tree else ""


def _manifest(backend: Resilient, repo: str, name: str) -> tuple[oci.NydusImage, str]:
    """The image of a tag or digest, through an index if need be, and the digest of its manifest."""
    shown = f"{repo}{'@' if ':' in name else ':'}{name}"
    for _ in range(2):
        found = backend.call(partial(_get_manifest, name=name))
        image = oci.parse_manifest(found.data, shown)
        if isinstance(image, oci.NydusImage):
            return image, found.digest
        name = image.choose().digest
    raise FormatError(f"{backend.label}: {name} is an index of indexes")


def _get_manifest(client: Client, name: str) -> Manifest:
    assert isinstance(client, RegistryClient)
    return client.manifest(name)
