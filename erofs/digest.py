"""Chunk digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import blake3

from .rafs import DigestAlgo
from .record import Buffer

DigestFunction = Callable[[Buffer], bytes]


def _blake3(data: Buffer) -> bytes:
    return blake3.blake3(data).digest()


def _sha256(data: Buffer) -> bytes:
    return hashlib.sha256(data).digest()


_FUNCTIONS: dict[DigestAlgo, DigestFunction] = {DigestAlgo.BLAKE3: _blake3, DigestAlgo.SHA256: _sha256}


def digest_function(algo: DigestAlgo) -> DigestFunction:
    """The function from a chunk's uncompressed, unpadded bytes to its 32-byte digest. It releases the GIL."""
    return _FUNCTIONS[algo]
