"""Images of registries that are not Nydus's: what they are, in people's words.

Source: the OCI image specification 1.1, and the annotations that the snapshotters of containerd look for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_ORDINARY = {  # media type of the configuration -> whose image
    "application/vnd.oci.image.config.v1+json": "OCI",
    "application/vnd.docker.container.image.v1+json": "docker",
}
_MARKS = {  # annotation of a layer -> what the layers are
    "containerd.io/snapshot/stargz/toc.digest": "eStargz",
    "io.github.containers.zstd-chunked.manifest-checksum": "zstd:chunked",
    "containerd.io/snapshot/overlaybd/blob-digest": "overlaybd",
}


def kind_of(
    artifact_type: str, config_type: str, layers: Sequence[tuple[str, Mapping[str, str]]]
) -> tuple[str, bool]:
    """What an image is, and whether it is one of files that can be converted.

    Args:
        artifact_type: that the manifest says, if any.
        config_type: media type of its configuration.
        layers: media type and annotations of each.
    """
    whose = _ORDINARY.get(config_type)
    if artifact_type or whose is None or any("in-toto" in media_type for media_type, _ in layers):
        return f"an artifact ({_shown(artifact_type or config_type or 'of no type')}), no image of files", False
    count = f"{len(layers)} layer" + "s" * (len(layers) != 1)
    special = next((name for _, notes in layers for mark, name in _MARKS.items() if mark in notes), "")
    if not special and any("erofs" in media_type for media_type, _ in layers):
        special = "EROFS"
    return f"an ordinary {whose} image of {count}" if not special else f"an image of {count} in {special}", True


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:80])
