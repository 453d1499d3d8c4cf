"""Publishing an image: its blobs first, its bootstrap last, so that a name never points at missing data."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import BinaryIO, Protocol

from ...erofs import verity
from ...erofs.errors import BlobNotFoundError, FormatError
from ...erofs.head import read_head
from ...erofs.ids import BlobId
from ...erofs.source import BufferSource
from ..backend.registry import oci
from ..backend.registry.layer import pack_layer
from ..config.backend import BackendConfig, LocalFs, Registry
from .registry import RegistryWriter
from .writers import Writer, writer

_CONNECTIONS = 4
SUFFIX = ".meta"  # of a bootstrap's name


class Progress(Protocol):
    """Told how a push goes, from any thread."""

    def begin(self, what: str, size: int) -> None:
        """The next object has ``size`` bytes."""
        ...

    def advance(self, size: int) -> None:
        """So many further bytes of it are there."""
        ...


@dataclass(slots=True)
class Published:
    """What is where now. ``identity`` is what ``mount --digest`` takes; sizes in bytes."""

    where: str
    name: str
    identity: str
    uploaded: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # were there already
    bytes_uploaded: int = 0
    manifest: str = ""  # digest, in a registry


def publish(
    bootstrap: str,
    folders: Sequence[str],
    backend: BackendConfig,
    name: str,
    progress: Progress,
    there: Mapping[str, int] = MappingProxyType({}),
) -> Published:
    """Store an image in a backend.

    Args:
        bootstrap: path; the blobs that it names are looked for in ``folders`` and in its own.
        there: blobs that are in the backend already, and their bytes.
        name: of the image there: an object (``.meta`` is added where it is missing), or a registry's tag.

    Raises:
        FormatError: that is no bootstrap, or a blob is not what its name says.
        BlobNotFoundError: a blob is not in any folder.
        BackendError, OutputError: it cannot be stored. Nothing is published under ``name`` then; what is there
            already is not sent again by the next push.
    """
    push = _Push(writer(backend, _CONNECTIONS), progress)
    with open(bootstrap, "rb") as file:
        data = file.read()
    blobs = _blobs(data, [*folders, os.path.dirname(os.path.abspath(bootstrap))], there)
    tree = verity.build_tree(data)
    done = Published(push.writer.label, name, tree.identity)
    push.done = done
    if isinstance(backend, Registry):
        _to_registry(push, name, blobs, data, tree.pack(), there)
        return done
    done.name = name if name.endswith(SUFFIX) else name + SUFFIX
    for blob, path in blobs:
        if path is None:
            continue
        with open(path, "rb") as file:
            push.put(_blob_object(backend, blob), file, os.fstat(file.fileno()).st_size, _sha256(file))
    meta = _meta_object(backend, done.name)
    for key, raw in ((meta + verity.SUFFIX, tree.pack()), (meta, data)):
        push.put(key, io.BytesIO(raw), len(raw), hashlib.sha256(raw).hexdigest())
    return done


class _Push:
    """One push: what it writes to, and what it did so far."""

    def __init__(self, sink: Writer, progress: Progress) -> None:
        self.writer, self._progress = sink, progress
        self.done: Published

    def put(self, name: str, file: BinaryIO, size: int, sha256: str) -> None:
        """Store an object, unless it is there."""
        if self.writer.holds(name, size, sha256):
            self.done.skipped.append(name)
            return
        self._progress.begin(name, size)
        file.seek(0)
        self.writer.put(name, file, size, sha256, self._progress.advance)
        self.done.uploaded.append(name)
        self.done.bytes_uploaded += size


def _blob_object(backend: BackendConfig, blob: BlobId) -> str:
    return blob if isinstance(backend, LocalFs) else backend.blob_object(blob)


def _meta_object(backend: BackendConfig, name: str) -> str:
    if isinstance(backend, (LocalFs, Registry)):
        return name
    return backend.meta_object(name)


def _blobs(bootstrap: bytes, folders: Sequence[str], there: Mapping[str, int]) -> list[tuple[BlobId, str | None]]:
    """(id, path) of each blob that a bootstrap names; no path for one that is in the backend."""
    found: list[tuple[BlobId, str | None]] = []
    for blob in [entry.stored_id() for entry in read_head(BufferSource(bootstrap)).blobs]:
        if blob in there:
            found.append((blob, None))
            continue
        paths = (os.path.join(folder, blob) for folder in folders)
        path = next((path for path in paths if os.path.isfile(path)), None)
        if path is None:
            raise BlobNotFoundError(
                f"blob {blob} is not in {' or '.join(folders)}", hint="name its folder with --blob-dir"
            )
        found.append((blob, path))
    return found


def _sha256(file: io.BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _to_registry(
    push: _Push,
    tag: str,
    blobs: Sequence[tuple[BlobId, str | None]],
    bootstrap: bytes,
    tree: bytes,
    there: Mapping[str, int],
) -> None:
    registry = push.writer
    assert isinstance(registry, RegistryWriter)
    layers = []
    for blob, path in blobs:
        if path is None:
            layers.append(oci.Layer(f"sha256:{blob}", there[blob], f"sha256:{blob}"))
            continue
        with open(path, "rb") as file:
            sha256, size = _sha256(file), os.fstat(file.fileno()).st_size
            if sha256 != blob:
                raise FormatError(
                    f"blob {path} has the SHA-256 {sha256}, but a registry knows blobs by that alone",
                    hint="only blobs named by their own SHA-256 can be pushed to a registry",
                )
            push.put(f"sha256:{blob}", file, size, sha256)
            layers.append(oci.Layer(f"sha256:{blob}", size, f"sha256:{blob}"))
    with tempfile.TemporaryFile() as file:
        last = pack_layer(io.BytesIO(bootstrap), len(bootstrap), tree, file)
        push.put(last.digest, file, last.size, last.digest.removeprefix("sha256:"))
    config = _stored(push, oci.pack_config(layers, last))
    push.done.manifest = registry.put_manifest(tag, oci.pack_manifest(config, layers, last), oci.MANIFEST)


def _stored(push: _Push, raw: bytes) -> oci.Layer:
    digest = hashlib.sha256(raw).hexdigest()
    push.put(f"sha256:{digest}", io.BytesIO(raw), len(raw), digest)
    return oci.Layer(f"sha256:{digest}", len(raw), "")
