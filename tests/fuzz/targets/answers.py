"""Parts of servers' answers, which are reached faster alone."""

from __future__ import annotations

from collections.abc import Iterator

from nydus_erofs.erofs.errors import FormatError, UnsupportedError
from nydus_erofs.fscache.backend.http.errors import one_line, retry_after, server_text
from nydus_erofs.fscache.backend.registry import oci
from nydus_erofs.fscache.backend.registry.challenges import parse_challenges
from tests.fuzz import mutate
from tests.fuzz.target import target

from .servers import CHALLENGE, DIGEST, INDEX, LAYER, MANIFEST, SECRET


def _manifest_seeds() -> Iterator[bytes]:
    yield MANIFEST
    yield INDEX
    yield oci._json({"schemaVersion": 1, "fsLayers": [{"blobSum": DIGEST}]})
    config = {"mediaType": "application/vnd.docker.container.image.v1+json"}
    yield oci._json(
        {"config": config, "layers": [LAYER | {"annotations": {"containerd.io/snapshot/stargz/toc.digest": "x"}}]}
    )


@target(_manifest_seeds, mutate.document, refusals=(FormatError, UnsupportedError))
def manifest(data: bytes) -> object:
    found = oci.parse_manifest(data, "host/repo:tag")
    if isinstance(found, oci.Index):
        return found.choose().size >= 0
    assert found.bootstrap.size >= 0
    return len(found.blobs)


_CHALLENGE_WORDS = [
    b"Bearer ",
    b"Basic ",
    b"realm=",
    b'"',
    b",",
    b"=",
    b"\\",
    b'"x"',
    b"service",
    b"scope",
    b"a",
    b" ",
    b"\xff",
    b"-",
]


def _challenge_seeds() -> Iterator[bytes]:
    yield CHALLENGE.partition(": ")[2].encode()
    yield b'Basic realm="a\\"b", Bearer realm=x,service="y"'


@target(_challenge_seeds, mutate.text(_CHALLENGE_WORDS), refusals=(), seconds=5.0)
def challenge(data: bytes) -> object:
    """As long as a client takes it."""
    found = parse_challenges(data[:8192].decode("latin-1"))
    return [one.scheme in ("basic", "bearer") for one in found[:4]]


_ERROR_WORDS = [b'{"errors": [', b'{"code": "x"}', b"]}", b"<Code>", b"</Code>", b"<html", b"hushhush", b"\xff",
                b"1e5", b"\n", b"Mon, 01 Jan 2026 00:00:00 GMT", b" -9999", b" +2400", b"Jan", b":", b"-",
                b"9" * 30, b"\x1b[1m", b"[", b'{"a":']  # fmt: skip


def _error_seeds() -> Iterator[bytes]:
    yield b'{"errors": [{"code": "DENIED", "message": "no"}, {}]}'
    yield b"<Error><Code>NoSuchKey</Code></Error>"
    yield b"Mon, 01 Jan 2026 00:00:00 GMT"


@target(_error_seeds, mutate.text(_ERROR_WORDS), refusals=())
def error_text(data: bytes) -> object:
    """What is shown of a server's words, and what its Retry-After means."""
    text = server_text(data, [SECRET, ""], signed=len(data) % 2 == 0)
    assert text.isprintable()
    assert SECRET not in text
    assert 0 <= retry_after(data.decode("latin-1")) <= 60
    return one_line(text) == text, len(text) > 100
