"""Compression of chunks and of chunk-info arrays, with output sizes bounded before any allocation."""

from __future__ import annotations

from typing import Protocol

import lz4.block
import zstandard

from .errors import FormatError, UnsupportedError
from .rafs import Compression
from .record import Buffer

DEFAULT_ZSTD_LEVEL = 3


class Codec(Protocol):
    """One compressor. Not for several threads at a time: make one object each."""

    def compress(self, data: Buffer) -> bytes: ...

    def decompress(self, data: Buffer, size: int) -> Buffer:
        """Exactly ``size`` bytes, or FormatError; no more than ``size`` bytes are ever allocated."""
        ...


class _None:
    def compress(self, data: Buffer) -> bytes:
        return bytes(data)

    def decompress(self, data: Buffer, size: int) -> Buffer:
        if len(data) != size:
            raise FormatError(f"stored chunk has {len(data)} bytes, not {size}")
        return data


class _Zstd:
    def __init__(self, level: int) -> None:
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._decompressor = zstandard.ZstdDecompressor()

    def compress(self, data: Buffer) -> bytes:
        return self._compressor.compress(data)

    def decompress(self, data: Buffer, size: int) -> Buffer:
        try:
            # The frame's own claim would size the output buffer: look at it first.
            claimed = zstandard.frame_content_size(data)
            if claimed > size:
                raise FormatError(f"zstd frame claims {claimed} bytes where {size} belong")
            out = self._decompressor.decompress(data, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError(f"zstd: {error}") from None
        if len(out) != size:
            raise FormatError(f"zstd frame holds {len(out)} bytes where {size} belong")
        return out


class _Lz4:
    def compress(self, data: Buffer) -> bytes:
        return bytes(lz4.block.compress(data, store_size=False))

    def decompress(self, data: Buffer, size: int) -> Buffer:
        try:
            out: bytes = lz4.block.decompress(data, uncompressed_size=size)
        except lz4.block.LZ4BlockError as error:
            raise FormatError(f"lz4: {error}") from None
        if len(out) != size:
            raise FormatError(f"lz4 block holds {len(out)} bytes where {size} belong")
        return out


def codec(compression: Compression, level: int | None = None) -> Codec:
    """A new codec object; ``level`` is for zstd alone (default 3, as Nydus)."""
    match compression:
        case Compression.NONE:
            return _None()
        case Compression.LZ4_BLOCK:
            return _Lz4()
        case Compression.ZSTD:
            return _Zstd(DEFAULT_ZSTD_LEVEL if level is None else level)
    raise UnsupportedError(f"compression {compression.name.lower()} is not supported yet")
