"""One blob: its chunk-info array and its chunks, decoded. Nothing here compares digests."""

from __future__ import annotations

from collections.abc import Iterator

from . import blobmeta
from .blobmeta import ChunkInfo, ChunkInfoFlags, MetaHeader
from .codec import codec
from .errors import FormatError, UnsupportedError
from .rafs import BlobEntry, BlobFeatures, Compression
from .record import Buffer
from .rules import Rule
from .source import Source

# Features of blobs that this version cannot read, and what people call such blobs.
_UNSUPPORTED = {
    BlobFeatures.ENCRYPTED: "encrypted blobs",
    BlobFeatures.ZRAN: "gzip layers with random access points (zran)",
    BlobFeatures.SEPARATE: "OCI layers used in place (tar-ref)",
    BlobFeatures.TARFS: "raw tars (tarfs)",
    BlobFeatures.EXTERNAL: "external blobs",
    BlobFeatures.CHUNKDICT_GENERATED: "chunk dictionaries",
}


def check_supported(entry: BlobEntry) -> None:
    """UnsupportedError when a blob is of a kind whose chunks cannot be read yet."""
    for feature, name in _UNSUPPORTED.items():
        if entry.features & feature:
            raise UnsupportedError(f"blob {entry.blob_index}: reading {name} is not supported yet")


class BlobReader:
    """Chunks of one blob. Not for several threads.

    Args:
        entry: the blob table's entry, as ``tables.read_tables`` has checked it.
        blob: the blob's bytes.

    FormatError (blob-size, ci-header, ci-array) when the chunk-info array cannot be had; that it is dense
    is for ``check_dense``.
    """

    def __init__(self, entry: BlobEntry, blob: Source) -> None:
        check_supported(entry)
        self.entry = entry
        self._blob = blob
        stored = entry.ci_compressed_size
        end = entry.ci_offset + stored + MetaHeader.size()
        if blob.size() < end:
            raise FormatError(
                f"blob {entry.blob_index}: it has {blob.size()} bytes, at least {end} belong to it",
                rule=Rule.BLOB_SIZE,
            )
        raw = memoryview(blob.read_at(entry.ci_offset, stored + MetaHeader.size()))
        header = MetaHeader.unpack(raw, stored)
        blobmeta.check_header(header, entry)
        try:
            array = codec(Compression(entry.ci_compression)).decompress(raw[:stored], entry.ci_uncompressed_size)
        except FormatError as error:
            raise FormatError(f"blob {entry.blob_index}: chunk info: {error.message}", rule=Rule.CI_ARRAY) from None
        self._array = array
        self._batches = blobmeta.batch_contexts(array, header) if entry.features & BlobFeatures.BATCH else []
        self._codec = codec(Compression(entry.compression))
        self._data_end = blobmeta.compressed_data_size(entry)
        self._batch: tuple[int, Buffer] = (-1, b"")  # the batch decoded last: members are read in a row

    @property
    def chunk_info_bytes(self) -> Buffer:
        """The whole chunk-info array, contexts included, uncompressed."""
        return self._array

    def info(self, index: int) -> ChunkInfo:
        """Chunk-info entry ``index``, which must be below the blob's number of chunks."""
        return blobmeta.chunk_info(self._array, index, self.entry.features)

    def infos(self) -> Iterator[ChunkInfo]:
        """All entries."""
        return self._columns().rows()

    def _columns(self) -> blobmeta.ChunkColumns:
        return blobmeta.chunk_columns(self._array, self.entry.chunk_count, self.entry.features)

    def check_dense(self) -> None:
        """FormatError (ci-dense) unless the chunks tile the blob's uncompressed space."""
        blobmeta.check_dense(self._columns(), self.entry)

    def read(self, index: int) -> Buffer:
        """The uncompressed bytes of a chunk; FormatError when they cannot be decoded to the right size."""
        info = self.info(index)
        if info.flags & ChunkInfoFlags.BATCH:
            return self._member(info)
        return self._unit(
            info.compressed_offset,
            info.compressed_size,
            info.uncompressed_size,
            plain=not info.flags & ChunkInfoFlags.COMPRESSED,
        )

    def _member(self, info: ChunkInfo) -> Buffer:
        number, offset = info.data >> 32, info.data & 0xFFFF_FFFF
        if number >= len(self._batches):
            raise FormatError(f"there is no batch {number}", rule=Rule.CHUNK_INFO)
        stored, size = self._batches[number]
        if offset + info.uncompressed_size > size:
            raise FormatError(f"the chunk reaches behind batch {number}", rule=Rule.CHUNK_INFO)
        if self._batch[0] != number:
            data = self._unit(info.compressed_offset, stored, size, plain=stored == size)
            self._batch = (number, data)
        return memoryview(self._batch[1])[offset : offset + info.uncompressed_size]

    def _unit(self, offset: int, stored: int, size: int, *, plain: bool) -> Buffer:
        """One stored unit: a chunk or a batch."""
        if size > self.entry.chunk_size or stored > size:
            raise FormatError(f"a unit of {size} bytes, {stored} stored", rule=Rule.CHUNK_INFO)
        if offset + stored > self._data_end or offset + stored > self._blob.size():
            raise FormatError(f"{stored} bytes at byte {offset} lie behind the blob's data", rule=Rule.CHUNK_INFO)
        data = self._blob.read_at(offset, stored)
        if plain:
            if stored != size:
                raise FormatError(f"{stored} stored bytes for {size}", rule=Rule.CHUNK_INFO)
            return data
        return self._codec.decompress(data, size)
