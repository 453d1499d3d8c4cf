"""The blob table: what its entries must say, and which blobs can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .blobmeta import CONTEXT_SIZE, entry_size
from .errors import FormatError, UnsupportedError
from .ids import BlobId, blob_id
from .ondisk import BLOCK_BITS
from .rafs import MAX_CHUNKS, BlobEntry, BlobFeatures, Compression, DigestAlgo
from .rules import Rule

Report = Callable[[FormatError], None]

PLACEHOLDER_ID = BlobId("x" * 64)  # the id of a blob that carries this bootstrap inside: not known when it was made

_MAX_COMPRESSED = 1 << 40
_MAX_UNCOMPRESSED = 1 << 44
_CI_TAILS = BlobFeatures.BATCH | BlobFeatures.ZRAN | BlobFeatures.ENCRYPTED  # something may follow the entries
_ZRAN_DICTIONARY = 32 << 10

# Features of blobs that this version cannot read, and what people call such blobs.
_UNSUPPORTED = {
    BlobFeatures.ENCRYPTED: "encrypted blobs",
    BlobFeatures.ZRAN: "gzip layers with random access points (zran)",
    BlobFeatures.SEPARATE: "OCI layers used in place (tar-ref)",
    BlobFeatures.TARFS: "raw tars (tarfs)",
    BlobFeatures.EXTERNAL: "external blobs",
    BlobFeatures.CHUNKDICT_GENERATED: "chunk dictionaries",
}


class Blob(NamedTuple):
    """One entry of the blob table; ``sound`` is false (and ``id`` empty) when a finding was reported for it."""

    id: BlobId
    entry: BlobEntry
    sound: bool

    def stored_id(self) -> BlobId:
        """The name under which it is stored; UnsupportedError when it has none yet."""
        if self.id == PLACEHOLDER_ID:
            raise UnsupportedError(
                f"blob {self.entry.blob_index} has no id: this bootstrap was taken out of it",
                hint="merge it first: nydus-image merge puts the id of the blob in",
            )
        return self.id


def check_supported(entry: BlobEntry) -> None:
    """UnsupportedError when a blob is of a kind whose chunks cannot be read yet."""
    for feature, name in _UNSUPPORTED.items():
        if entry.features & feature:
            raise UnsupportedError(f"blob {entry.blob_index}: reading {name} is not supported yet")
    if Compression.GZIP in (entry.compression, entry.ci_compression):
        raise UnsupportedError(f"blob {entry.blob_index}: compression gzip is not supported yet")


def read_blob(index: int, entry: BlobEntry, chunk_size: int, report: Report) -> Blob:
    """Check the entry of blob ``index`` of an image; every fault (blob-table) goes to ``report``."""
    faults = list(_faults(index, entry, chunk_size))
    name = BlobId("")
    if entry.raw_id == PLACEHOLDER_ID.encode():
        name = PLACEHOLDER_ID
    else:
        try:
            name = blob_id(entry.raw_id.rstrip(b"\0").decode("ascii", "backslashreplace"))
        except FormatError as error:
            faults.append(error.message)
    for what in faults:
        report(FormatError(what, rule=Rule.BLOB_TABLE).at(f"blob {index}"))
    return Blob(BlobId("") if faults else name, entry, not faults)


def _faults(index: int, entry: BlobEntry, chunk_size: int) -> Iterator[str]:
    if entry.blob_index != index:
        yield f"it says it is blob {entry.blob_index}"
    if entry.chunk_size != chunk_size:
        yield f"chunk size {entry.chunk_size}, where the image has {chunk_size}"
    if entry.compression not in list(Compression):
        yield f"unknown compression {entry.compression}"
    if entry.ci_compression not in list(Compression):
        yield f"unknown compression {entry.ci_compression} of its chunk info"
    if entry.digest_algo not in list(DigestAlgo):
        yield f"unknown digest {entry.digest_algo}"
    if entry.features & (BlobFeatures.UNKNOWN_INCOMPAT | BlobFeatures.INTERNAL_V5):
        yield f"unknown features {entry.features:#x}"
    if not entry.features & BlobFeatures.ALIGNED:
        yield "its chunks are not aligned to blocks"
    if entry.compressed_size > _MAX_COMPRESSED or entry.uncompressed_size > _MAX_UNCOMPRESSED:
        yield f"sizes {entry.compressed_size} and {entry.uncompressed_size} are beyond the format"
    if not 1 <= entry.chunk_count <= MAX_CHUNKS + 1:
        yield f"{entry.chunk_count} chunks"
    elif entry.chunk_count << BLOCK_BITS > entry.uncompressed_size:
        yield f"{entry.chunk_count} chunks do not fit {entry.uncompressed_size} bytes"
    if not entry.features & BlobFeatures.CHUNKDICT_GENERATED:
        yield from _ci_faults(entry)


def _ci_faults(entry: BlobEntry) -> Iterator[str]:
    size, stored = entry.ci_uncompressed_size, entry.ci_compressed_size
    least = most = entry_size(entry.features) * entry.chunk_count
    if entry.features & BlobFeatures.CHUNK_INFO_V2 and entry.features & _CI_TAILS:
        most += entry.chunk_count * CONTEXT_SIZE  # no more contexts than chunks
        if entry.features & BlobFeatures.ZRAN:
            most += entry.chunk_count * _ZRAN_DICTIONARY
    if not least <= size <= most or stored > size:
        yield f"chunk info of {size} bytes ({stored} stored) for {entry.chunk_count} chunks"
