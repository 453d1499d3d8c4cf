"""Digests of chunks that are in the blob already, where workers can see them: a chunk found here need not be
compressed again.

A table in shared memory with one place per digest: the parent process writes, workers read, without a lock.
A digest that was overwritten by another costs one needless compression. A reader that looks while the parent
writes sees bytes of two digests; that these be the whole digest looked for would take a collision of half
of one, and the parent looks up every digest again in its own complete table.
"""

from __future__ import annotations

import mmap

from ..erofs.rafs import DIGEST_SIZE

_PLACES = 1 << 18


class KnownDigests:
    """Create before workers are forked."""

    def __init__(self) -> None:
        self._table = mmap.mmap(-1, _PLACES * DIGEST_SIZE)

    def add(self, digest: bytes) -> None:
        at = int.from_bytes(digest[:4], "little") % _PLACES * DIGEST_SIZE
        self._table[at : at + DIGEST_SIZE] = digest

    def __contains__(self, digest: bytes) -> bool:
        at = int.from_bytes(digest[:4], "little") % _PLACES * DIGEST_SIZE
        return self._table[at : at + DIGEST_SIZE] == digest
