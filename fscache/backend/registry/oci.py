"""Nydus images in registries: references, manifests and the layer that holds a bootstrap. Bytes in, records out.

Source: the OCI image specification 1.1 (manifest, index, config), and Nydus's media types and annotations.
"""

from __future__ import annotations

import json
import platform
import re
from typing import Any, NamedTuple

import msgspec

from ....erofs.errors import FormatError, UnsupportedError
from ...decoding import decoded
from .foreign import kind_of

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_BLOB_LAYER = "application/vnd.oci.image.layer.nydus.blob.v1"
_BOOTSTRAP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_IS_BLOB = "containerd.io/snapshot/nydus-blob"
_IS_BOOTSTRAP = "containerd.io/snapshot/nydus-bootstrap"
_FS_VERSION = "containerd.io/snapshot/nydus-fs-version"
_NYDUS_FEATURE = "nydus.remoteimage.v1"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}  # the specification's names are Go's
_DIGEST = re.compile("sha256:[0-9a-f]{64}")


# --- manifests ----------------------------------------------------------------------------------------------


class Platform(msgspec.Struct, rename={"os_features": "os.features"}):
    """What an image of an index is for."""

    architecture: str = ""
    os: str = ""
    os_features: list[str] = []


class Descriptor(msgspec.Struct, omit_defaults=True, rename={"media_type": "mediaType"}):
    """One layer, or one image of an index."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    platform: Platform | None = None


class NydusImage(NamedTuple):
    """A manifest: the layer with the bootstrap, and those that are blobs (named by their digests)."""

    bootstrap: Descriptor
    blobs: list[Descriptor]


class Index(NamedTuple):
    """Images for several platforms."""

    images: list[Descriptor]

    def choose(self) -> Descriptor:
        """The image for this machine, Nydus's rather than another; UnsupportedError when there is none."""
        machine = _MACHINES.get(platform.machine(), platform.machine())
        fitting = [image for image in self.images if _fits(image.platform, machine)]
        if not fitting:
            raise UnsupportedError(f"the image index has nothing for linux/{machine}")
        return max(fitting, key=lambda image: bool(image.platform and _NYDUS_FEATURE in image.platform.os_features))


def _fits(wanted: Platform | None, machine: str) -> bool:
    return wanted is None or (wanted.os in ("", "linux") and wanted.architecture in ("", machine))


class _Config(msgspec.Struct, rename={"media_type": "mediaType"}):
    media_type: str = ""


class _Document(msgspec.Struct, rename="camel"):
    """A manifest has ``layers``, an index has ``manifests``; docker's first form had ``fsLayers``."""

    layers: list[Descriptor] | None = None
    manifests: list[Descriptor] | None = None
    fs_layers: list[Any] | None = None
    artifact_type: str = ""
    config: _Config = msgspec.field(default_factory=_Config)


_DOCUMENT = msgspec.json.Decoder(_Document)


def parse_manifest(raw: bytes, image: str) -> NydusImage | Index:
    """A manifest or an index; FormatError when it is neither, or not that of a Nydus image.

    Args:
        raw: its bytes, of bounded size, whose digest was checked.
        image: its name, for messages.
    """
    try:
        document = decoded(_DOCUMENT, raw)
    except msgspec.DecodeError as error:
        raise FormatError(f"not a manifest: {error}") from None
    found = document.manifests if document.layers is None else document.layers
    if document.fs_layers is not None:
        raise FormatError(
            f"not a Nydus image: {image} is one of docker's first form (schema 1)",
            hint="pull and push it again first",
        )
    if found is None:
        raise FormatError("not a manifest: it has neither layers nor manifests")
    for descriptor in found:
        if not _DIGEST.fullmatch(descriptor.digest) or descriptor.size < 0:
            raise FormatError(f"the manifest names {descriptor.digest[:80]!r} of {descriptor.size} bytes")
    if document.layers is None:
        return Index(found)
    return _nydus(document, document.layers, image)


def _nydus(document: _Document, layers: list[Descriptor], image: str) -> NydusImage:
    *blobs, last = layers or [Descriptor("", "", 0)]
    annotations = last.annotations or {}
    if annotations.get(_IS_BOOTSTRAP) != "true":
        known = [(layer.media_type, layer.annotations or {}) for layer in layers]
        kind, convertible = kind_of(document.artifact_type, document.config.media_type, known)
        raise FormatError(
            f"not a Nydus image: {image} is {kind}", hint=_conversion(image) if convertible else "name an image"
        )
    if annotations.get(_FS_VERSION, "6") != "6":
        raise UnsupportedError(
            f"{image} is a Nydus image of RAFS version {annotations[_FS_VERSION][:20]}, which no kernel mounts",
            hint="convert the image that it was made of again, with nydusify convert --fs-version 6",
        )
    return NydusImage(last, [blob for blob in blobs if blob.media_type == _BLOB_LAYER])


def _conversion(image: str) -> str:
    """The command of Nydus's own tools: this project has none yet."""
    target = image.partition("@")[0] + ("-nydus" if "@" not in image else ":nydus")
    return f"convert it: nydusify convert --fs-version 6 --source {image} --target {target}"


# --- publishing ---------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A layer to publish: its digest, bytes, and the digest of what it holds uncompressed."""

    digest: str
    size: int
    diff_id: str


def pack_config(blobs: list[Layer], bootstrap: Layer) -> bytes:
    """The image's configuration, for this machine's platform; the same input gives the same bytes."""
    history = [{"created_by": "nydus-erofs", "comment": "Nydus Blob Layer"} for _ in blobs]
    history.append({"created_by": "nydus-erofs", "comment": "Nydus Bootstrap Layer"})
    return _json(
        {
            "architecture": _MACHINES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "os.features": [_NYDUS_FEATURE],
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in (*blobs, bootstrap)]},
            "history": history,
        }
    )


def pack_manifest(config: Layer, blobs: list[Layer], bootstrap: Layer) -> bytes:
    """The manifest of an image whose blobs and bootstrap layer are published."""
    layers = [_layer(_BLOB_LAYER, blob, {_IS_BLOB: "true"}) for blob in blobs]
    layers.append(_layer(_BOOTSTRAP_LAYER, bootstrap, {_IS_BOOTSTRAP: "true", _FS_VERSION: "6"}))
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": _CONFIG, "digest": config.digest, "size": config.size},
            "layers": layers,
        }
    )


def _layer(media_type: str, layer: Layer, annotations: dict[str, str]) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": layer.digest, "size": layer.size, "annotations": annotations}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
