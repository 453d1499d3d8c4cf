"""fs-verity's Merkle tree: SHA-256 over blocks of 4 KiB, no salt. Only hashing, whatever the bytes are.

Source: Documentation/filesystems/fsverity.rst, "Merkle tree" and "fs-verity descriptor". The fs-verity digest of a
bootstrap (of the descriptor, hence of size and root) is the image's *identity*: what ``fsverity digest FILE`` prints.
"""

from __future__ import annotations

import struct
from hashlib import sha256

from .record import Buffer

BLOCK, HASH = 4096, 32  # bytes
FANOUT = BLOCK // HASH
_DESCRIPTOR = struct.Struct("<BBBBIQ64s32s144x")  # struct fsverity_descriptor
assert _DESCRIPTOR.size == 256


def hashes(view: memoryview) -> bytes:
    """The hashes of all blocks, the last one filled up with zeros."""
    whole = len(view) - len(view) % BLOCK
    found = [sha256(view[at : at + BLOCK]).digest() for at in range(0, whole, BLOCK)]
    if whole < len(view):
        found.append(sha256(bytes(view[whole:]).ljust(BLOCK, b"\0")).digest())
    return b"".join(found)


def build(view: memoryview) -> tuple[bytes, tuple[bytes, ...]]:
    """Root and levels (whole blocks of hashes, the leaves first) of the tree over some bytes."""
    levels: list[bytes] = []
    found = hashes(view)
    while len(found) > HASH:
        found += bytes(-len(found) % BLOCK)
        levels.append(found)
        found = hashes(memoryview(found))
    return found or bytes(HASH), tuple(levels)


def identity_of(size: int, root: bytes) -> str:
    """``sha256:`` and the fs-verity digest in hex, of ``size`` bytes under this root."""
    descriptor = _DESCRIPTOR.pack(1, 1, BLOCK.bit_length() - 1, 0, 0, size, root, b"")
    return f"sha256:{sha256(descriptor).hexdigest()}"


def identity(data: Buffer) -> str:
    """The identity of a bootstrap."""
    view = memoryview(data).cast("B")
    return identity_of(len(view), build(view)[0])
