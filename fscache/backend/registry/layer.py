"""The layer of a published image that holds its bootstrap: a gzipped tar with ``image/image.boot``.

Written the same for the same bootstrap. Read as a stream of hostile bytes: nothing but two plain files is looked at,
and neither memory nor output can grow beyond what they may have. (``tarfile`` reads extended headers into memory
whatever their size.)
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import zlib
from typing import BinaryIO

from ....erofs import verity
from ....erofs.errors import FormatError
from .oci import Layer

_BOOTSTRAP, _TREE = "image/image.boot", "image/image.boot" + verity.SUFFIX
_BLOCK = 512  # bytes of a tar's header, and what everything in it is rounded up to
_PIECE = 1 << 20  # bytes
_OTHER_MOST = 256 << 20  # bytes of all else in the layer
_OCTAL = re.compile(rb"[0-7]{1,12}")
_GZIP = b"\x1f\x8b"
_PLAIN = (b"0", b"\0")  # kinds of members that are plain files


def pack_layer(bootstrap: BinaryIO, size: int, tree: bytes, out: BinaryIO) -> Layer:
    """Write the layer of a bootstrap of ``size`` bytes and its published digest tree."""
    packed = _Hashing(out)
    with gzip.GzipFile("", "wb", 6, packed, mtime=0) as zipped:
        plain = _Hashing(zipped)
        with tarfile.open(fileobj=plain, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            folder = tarfile.TarInfo("image")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
            _add(tar, _BOOTSTRAP, size, bootstrap)
            _add(tar, _TREE, len(tree), io.BytesIO(tree))
    return Layer(f"sha256:{packed.hash.hexdigest()}", packed.size, f"sha256:{plain.hash.hexdigest()}")


def extract_bootstrap(layer: BinaryIO, out: BinaryIO, limit: int) -> bytes | None:
    """Write the bootstrap of a layer, of ``limit`` bytes at most, to ``out``; its digest tree, if there is one.

    FormatError when the layer is damaged, too large, or has no bootstrap.
    """
    gzipped = layer.read(2) == _GZIP
    layer.seek(0)
    stream = _Members(gzip.GzipFile(fileobj=layer) if gzipped else layer, limit + _OTHER_MOST)
    found, tree = False, None
    try:
        while (member := stream.header()) is not None:
            name, size, kind = member
            if name == _BOOTSTRAP and kind in _PLAIN and not found:
                if not 0 < size <= limit:
                    raise FormatError(f"a bootstrap of {size} bytes")
                found = True
                stream.copy(size, out)
            elif name == _TREE and kind in _PLAIN and size <= verity.MAX_TREE_FILE:
                tree = stream.take(size)
                stream.skip(-size % _BLOCK)
            else:
                stream.skip(size + -size % _BLOCK)
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(f"the layer of the bootstrap is damaged: {error}") from None
    if not found:
        raise FormatError(f"the layer of the bootstrap has no {_BOOTSTRAP}", hint="it is not a Nydus image")
    return tree


class _Members:
    """The members of a tar, as they come."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, limit: int) -> None:
        self._stream, self._left = stream, limit

    def header(self) -> tuple[str, int, bytes] | None:
        """(name, bytes, kind) of the next member; None at the end."""
        raw = self.take(_BLOCK, at_end=True)
        if not raw.strip(b"\0"):
            return None
        total, claimed, size = sum(raw[:148]) + 8 * 32 + sum(raw[156:]), _octal(raw[148:156]), _octal(raw[124:136])
        if claimed != total or size is None:
            raise FormatError("the layer of the bootstrap is no tar")
        name = raw[:100].rstrip(b"\0")
        if raw[257:262] == b"ustar" and (prefix := raw[345:500].rstrip(b"\0")):
            name = prefix + b"/" + name
        return name.decode(errors="replace").removeprefix("./"), size, raw[156:157]

    def take(self, size: int, *, at_end: bool = False) -> bytes:
        """Exactly ``size`` bytes; none at the end, where that may be."""
        self._left -= size
        if self._left < 0:
            raise FormatError("the layer of the bootstrap holds more than any has")
        data = self._stream.read(size)
        if len(data) != size and (data or not at_end):
            raise FormatError("the layer of the bootstrap is cut off")
        return data

    def copy(self, size: int, out: BinaryIO) -> None:
        """A member's bytes, and what follows up to the next header."""
        rest = size
        while rest:
            rest -= out.write(self.take(min(rest, _PIECE)))
        self.skip(-size % _BLOCK)

    def skip(self, size: int) -> None:
        while size > 0:
            size -= len(self.take(min(size, _PIECE)))


def _octal(field: bytes) -> int | None:
    """A number of a tar's header; None for anything else, also for those too large for these digits."""
    text = field.strip(b" \0")
    return int(text, 8) if _OCTAL.fullmatch(text) else None


def _add(tar: tarfile.TarFile, name: str, size: int, file: BinaryIO) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    tar.addfile(info, file)


class _Hashing:
    """A file to write to that remembers the SHA-256 and the number of its bytes."""

    def __init__(self, out: BinaryIO | gzip.GzipFile) -> None:
        self._out = out
        self.hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self._out.write(data)

    def flush(self) -> None:
        self._out.flush()
