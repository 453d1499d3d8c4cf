"""Names that people give to images: files, objects of buckets, references of registries, fsids and domains."""

from __future__ import annotations

import re
from typing import NamedTuple

from ...erofs.errors import ConfigError

_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_REPO = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9.-]+(?::\d{1,5})?|\[[0-9a-fA-F:]+\](?::\d{1,5})?")
_FORMS = "s3://BUCKET/NAME, REGISTRY/REPOSITORY:TAG"
HUB_HOSTS = ("docker.io", "index.docker.io", "registry-1.docker.io")
# Longer or other names can crash some kernels (fsid of 253 bytes in a domain), or never be looked up ("/").
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,63}")


class FileImage(NamedTuple):
    """A bootstrap that is a file here; its blobs may be elsewhere."""

    path: str

    @property
    def known(self) -> dict[str, str]:
        """The fields of a backend's configuration that the image's name tells."""
        return {}


class BucketImage(NamedTuple):
    """A bootstrap that is an object of a bucket."""

    bucket: str
    key: str

    @property
    def known(self) -> dict[str, str]:
        """As of ``FileImage``."""
        return {"type": "s3", "bucket_name": self.bucket}


class RegistryImage(NamedTuple):
    """An image of a registry; ``tag`` and ``digest`` may be empty."""

    host: str
    repo: str
    tag: str
    digest: str

    @property
    def known(self) -> dict[str, str]:
        """As of ``FileImage``."""
        return {"type": "registry", "host": self.host, "repo": self.repo}

    @property
    def manifest(self) -> str:
        """What the registry is asked for: the digest counts."""
        return self.digest or self.tag or "latest"


ImageReference = FileImage | BucketImage | RegistryImage


def parse_image(text: str) -> ImageReference:
    """What an image's name means, by its looks alone (a file of that name, if there is one, goes first).

    ``s3://BUCKET/KEY``; ``[registry://]REGISTRY/REPOSITORY[:TAG][@DIGEST]`` where the first part has a dot or a
    colon or is localhost; else a path. ConfigError for a name that is none of these.
    """
    scheme, colon, rest = text.partition("://")
    if colon and scheme == "registry":
        return _registry(rest, text)
    if colon and scheme == "s3":
        return _bucket(rest, text)
    if colon and scheme.isalnum():
        raise ConfigError(
            f"{text[:200]}: no image is named by {scheme[:20]}://", hint=f"say {_FORMS}, or the path of a file"
        )
    first, slash, _ = text.partition("/")
    if slash and first.strip(".") and ("." in first or ":" in first or first == "localhost"):
        return _registry(text, text)
    return FileImage(text)


def _bucket(rest: str, text: str) -> BucketImage:
    bucket, _, key = rest.partition("/")
    if not bucket or not key or {".", ".."} & set(key.split("/")) or not _is_utf8(text):
        raise ConfigError(f"{text[:200]}: not s3://BUCKET/NAME")
    return BucketImage(bucket, key)


def _is_utf8(text: str) -> bool:
    """Not so of what a terminal or a file system gave as other bytes: they go into no request and no message."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _registry(rest: str, text: str) -> RegistryImage:
    host, _, path = rest.partition("/")
    path, at, digest = path.partition("@")
    repo, colon, tag = path.partition(":")
    if host in HUB_HOSTS and "/" not in repo:
        repo = f"library/{repo}"
    parts = [(_HOST, host), (_REPO, repo), *([(_TAG, tag)] if colon else []), *([(_DIGEST, digest)] if at else [])]
    if len(repo) > 255 or not all(pattern.fullmatch(part) for pattern, part in parts):
        raise ConfigError(f"{text[:200]}: not REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@sha256:DIGEST")
    return RegistryImage(host, repo, tag, digest)


def registry_host(host: str) -> str:
    """Where the registry of that name answers: ``docker.io`` is a name only."""
    return "registry-1.docker.io" if host in HUB_HOSTS else host


def check_name(what: str, name: str) -> str:
    """An fsid or a domain that is safe on every kernel; ConfigError otherwise."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{what} {name[:80]!r}: 1 to 63 letters, digits, '.', '_', ':' or '-' are allowed")
    return name
