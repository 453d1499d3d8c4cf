"""Names that people give to images: references of registries, fsids and domains."""

from __future__ import annotations

import re
from typing import NamedTuple

from ...erofs.errors import ConfigError

_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_REPO = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9.-]+(?::\d{1,5})?|\[[0-9a-fA-F:]+\](?::\d{1,5})?")
HUB_HOSTS = ("docker.io", "index.docker.io", "registry-1.docker.io")
# Longer or other names can crash some kernels (fsid of 253 bytes in a domain), or never be looked up ("/").
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,63}")


class Reference(NamedTuple):
    """Where an image is published."""

    host: str
    repo: str
    tag_or_digest: str


def parse_reference(text: str) -> Reference:
    """``REGISTRY/REPOSITORY[:TAG][@DIGEST]``; the digest counts. ConfigError when it is none."""
    host, _, rest = text.partition("/")
    rest, _, digest = rest.partition("@")
    repo, _, tag = rest.partition(":")
    if "." not in host and ":" not in host and host != "localhost":
        raise ConfigError(
            f"{text[:200]}: it does not begin with a registry",
            hint="say REGISTRY/REPOSITORY:TAG, or the path of a file",
        )
    if host in ("docker.io", "index.docker.io") and "/" not in repo:
        repo = f"library/{repo}"
    parts = [(_HOST, host), (_REPO, repo), *([(_TAG, tag)] if tag else []), *([(_DIGEST, digest)] if digest else [])]
    if len(repo) > 255 or not all(pattern.fullmatch(part) for pattern, part in parts):
        raise ConfigError(f"{text[:200]}: not REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@sha256:DIGEST")
    return Reference(host, repo, digest or tag or "latest")


def registry_host(host: str) -> str:
    """Where the registry of that name answers: ``docker.io`` is a name only."""
    return "registry-1.docker.io" if host in HUB_HOSTS else host


def check_name(what: str, name: str) -> str:
    """An fsid or a domain that is safe on every kernel; ConfigError otherwise."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{what} {name[:80]!r}: 1 to 63 letters, digits, '.', '_', ':' or '-' are allowed")
    return name
