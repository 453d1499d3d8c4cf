"""One blob: its chunk-info array and its chunks, decoded."""

from __future__ import annotations

from typing import NamedTuple

from .blob_table import check_supported
from .blobmeta import BatchContext, ChunkColumns, MetaHeader, batch_contexts, check_dense, check_header, chunk_columns
from .codec import codec
from .digest import digest_function
from .errors import FormatError
from .rafs import BlobEntry, BlobFeatures, Compression, DigestAlgo
from .record import Buffer
from .rules import Rule
from .source import Source
from .unit import COMPRESSED, Decoder, Unit, UnitColumns, find_units


class ChunkInfoArray(NamedTuple):
    """What a blob says of its chunks: the uncompressed bytes of the array, and what they say."""

    raw: Buffer
    chunks: ChunkColumns
    batches: list[BatchContext]


def read_chunk_info(entry: BlobEntry, blob: Source) -> ChunkInfoArray:
    """The chunk-info array of a blob that ``check_supported`` lets pass, in one read.

    FormatError (ci-header, ci-array) or what ``blob`` raises when it cannot be had; what must hold between the
    chunks is not looked at.
    """
    stored = entry.ci_compressed_size
    raw = memoryview(blob.read_at(entry.ci_offset, stored + MetaHeader.size()))
    header = MetaHeader.unpack(raw, stored)
    check_header(header, entry)
    try:
        array = codec(Compression(entry.ci_compression)).decompress(raw[:stored], entry.ci_uncompressed_size)
    except FormatError as error:
        raise FormatError(f"blob {entry.blob_index}: chunk info: {error.message}", rule=Rule.CI_ARRAY) from None
    batches = batch_contexts(array, header) if entry.features & BlobFeatures.BATCH else []
    return ChunkInfoArray(array, chunk_columns(array, entry.chunk_count, entry.features), batches)


class BlobReader:
    """Chunks of one blob. Not for several threads.

    Args:
        entry: the blob table's entry, as ``head.read_head`` has checked it.
        blob: the blob's bytes.

    FormatError (blob-size, ci-header, ci-array) when the chunk-info array cannot be had; what must hold between
    the chunks is for ``check_dense`` and ``find_units``.
    """

    def __init__(self, entry: BlobEntry, blob: Source) -> None:
        check_supported(entry)
        end = entry.ci_offset + entry.ci_compressed_size + MetaHeader.size()
        if blob.size() < end:
            raise FormatError(
                f"blob {entry.blob_index}: it has {blob.size()} bytes, at least {end} belong to it",
                rule=Rule.BLOB_SIZE,
            )
        self.entry, self._blob = entry, blob
        self.chunk_info_bytes, self.chunks, self._batches = read_chunk_info(entry, blob)
        self._units: UnitColumns | None = None
        digest = digest_function(DigestAlgo(entry.digest_algo))
        self._decoder = Decoder(Compression(entry.compression), digest)

    def check_dense(self) -> None:
        """FormatError (ci-dense) unless the chunks tile the blob's uncompressed space."""
        check_dense(self.chunks, self.entry)

    def find_units(self) -> UnitColumns:
        """Where the chunks are stored; FormatError (chunk-unit) unless all lie inside the blob's data."""
        if self._units is None:
            self._units = find_units(self.chunks, self._batches, self.entry)
        return self._units

    def read(self, index: int, digest: bytes | None = None) -> Buffer:
        """The uncompressed bytes of a chunk; CorruptError when they cannot be decoded or have not this digest."""
        stored, size, start, flags = (column[index] for column in self.find_units())
        unit = Unit(self.chunks.compressed_offset[index], stored, size, bool(flags & COMPRESSED))
        return self._decoder.chunk(unit, start, self.chunks.uncompressed_size[index], digest, self._blob.read_at)
