"""Writing a blob: chunks in the order they come, each once, then the chunk-info array and its header."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, repeat
from typing import NamedTuple

from ..erofs.blobmeta import MetaHeader, header_for, pack_chunk_info_v1
from ..erofs.codec import codec
from ..erofs.digest import digest_function
from ..erofs.errors import NydusErofsError, UnsupportedError
from ..erofs.ondisk import BLOCK_SIZE, CHUNK_INDEX
from ..erofs.rafs import MAX_CHUNKS, BlobEntry, BlobFeatures, ChunkFlags, ChunkRow, Compression
from .known import KnownDigests
from .options import BuildOptions
from .output import Draft, Stream
from .pieces import ALREADY_STORED

_pack_row = ChunkRow.LAYOUT.pack
_pack_index = CHUNK_INDEX.pack_into
_DEVICE = 1  # blob index 0: the kernel counts devices from 1
_MAX_STORED = 1 << 40  # bytes: chunk info has 40 bits for an offset in the blob
_MAX_BLOCKS = (1 << 32) - 1


class Run(NamedTuple):
    """Bytes ``offset`` to ``offset + length`` of a file, in whole chunks but for the file's last one.

    ``indexes`` is where their chunk indexes go in the metadata area. The chunks of a hole are never read.
    """

    indexes: int
    offset: int
    length: int
    hole: bool = False


class BlobWriter:
    """One blob under construction. ``area`` is where chunk indexes are filled in."""

    def __init__(self, options: BuildOptions, known: KnownDigests, draft: Draft | Stream, area: bytearray) -> None:
        self.references = 0  # chunks of files, however often stored
        self._chunk_size = options.chunk_size
        self._compression = options.compression
        self._codec = codec(options.compression, options.compression_level)
        self._digest_algo = options.digest
        self._known = known
        self._draft = draft
        self._area = area
        self._stored = 0  # bytes of chunks accounted for
        self._next_block = 0
        self._numbers: dict[bytes, int] = {}  # digest -> CI index
        self._blocks = array("I")  # by CI index: first block in the uncompressed space
        self._stored_sizes = array("I")  # by CI index, like the next
        self._sizes = array("I")
        self._rows: list[bytes] = []
        self._zeros: dict[int, tuple[bytes, bytes]] = {}  # length -> digest and stored bytes

    @property
    def chunks(self) -> int:
        """Distinct chunks so far."""
        return len(self._rows)

    def add(self, runs: Iterable[Run], chunks: Iterator[tuple[int, bytes]], data: memoryview) -> None:
        """Take the chunks of some runs.

        Args:
            chunks: stored size and digest of each chunk that is not in a hole, in order.
            data: the stored bytes of those whose size is not ALREADY_STORED, back to back.
        """
        numbers, blocks, area, chunk_size = self._numbers, self._blocks, self._area, self._chunk_size
        written = position = 0
        for run in runs:
            if run.hole:
                self._draft.write(data[written:position])
                written = position
                self._add_hole(run)
                continue
            index, end = run.indexes, run.offset + run.length
            for offset in range(run.offset, end, chunk_size):
                stored, digest = next(chunks)
                number = numbers.get(digest)
                if number is None:
                    number = self._append(digest, stored, min(end - offset, chunk_size), offset)
                    position += stored
                elif stored != ALREADY_STORED:
                    # Two workers had the same chunk at the same time: the first in order counts.
                    self._draft.write(data[written:position])
                    position += stored
                    written = position
                _pack_index(area, index, number & 0xFFFF, number >> 16 << 8 | _DEVICE, blocks[number])
                index += CHUNK_INDEX.size
            self.references += (run.length + chunk_size - 1) // chunk_size
        self._draft.write(data[written:position])

    def _add_hole(self, run: Run) -> None:
        """A run of chunks of zeros: all whole, or a single one."""
        length = min(run.length, self._chunk_size)
        if length not in self._zeros:
            zeros = bytes(length)
            compressed = self._codec.compress(zeros)
            stored = compressed if len(compressed) < length else zeros
            self._zeros[length] = digest_function(self._digest_algo)(zeros), stored
        digest, stored = self._zeros[length]
        chunks = chain([(len(stored), digest)], repeat((ALREADY_STORED, digest)))
        self.add([run._replace(hole=False)], chunks, memoryview(stored))

    def _append(self, digest: bytes, stored: int, size: int, file_offset: int) -> int:
        """Account for a new chunk; its CI index."""
        if stored == ALREADY_STORED:
            raise NydusErofsError("a chunk was taken for stored that is not: this is a bug")
        number, block = len(self._rows), self._next_block
        self._numbers[digest] = number
        self._known.add(digest)
        self._blocks.append(block)
        self._stored_sizes.append(stored)
        self._sizes.append(size)
        self._rows.append(
            _pack_row(
                digest,
                0,
                ChunkFlags.COMPRESSED.value if stored != size else 0,
                stored,
                size,
                self._stored,
                block * BLOCK_SIZE,
                file_offset,
                number,
                0,
            )
        )
        self._stored += stored
        self._next_block = block + (size + BLOCK_SIZE - 1) // BLOCK_SIZE
        if number >= MAX_CHUNKS or self._stored > _MAX_STORED or self._next_block > _MAX_BLOCKS:
            raise self._too_much()
        return number

    def _too_much(self) -> UnsupportedError:
        if self.chunks > MAX_CHUNKS:
            what = f"{MAX_CHUNKS} different chunks"
        elif self._stored > _MAX_STORED:
            what = f"{_MAX_STORED >> 40} TiB of compressed data"
        else:
            what = f"{(_MAX_BLOCKS + 1) * BLOCK_SIZE >> 40} TiB of different data"
        return UnsupportedError(
            f"the source needs more than the {what} that one blob can hold",
            hint="a larger --chunk-size needs fewer chunks; else build several images",
        )

    def close(self) -> tuple[BlobEntry | None, bytes]:
        """Write what follows the chunks; the blob's table entry (None if there is no chunk) and the chunk table."""
        if not self._rows:
            return None, b""
        ci = pack_chunk_info_v1(self._chunk_info())
        compressed = self._codec.compress(ci)
        ci_compression = self._compression
        if len(compressed) >= len(ci):
            compressed, ci_compression = ci, Compression.NONE
        entry = BlobEntry(
            raw_id=b"",
            blob_index=0,
            chunk_size=self._chunk_size,
            chunk_count=self.chunks,
            compression=self._compression,
            digest_algo=self._digest_algo,
            features=BlobFeatures.ALIGNED | BlobFeatures.CAP_TAR_TOC,
            compressed_size=self._draft.size + len(compressed) + MetaHeader.size(),
            uncompressed_size=self._next_block * BLOCK_SIZE,
            toc_size=0,
            ci_compression=ci_compression,
            ci_offset=self._draft.size,
            ci_compressed_size=len(compressed),
            ci_uncompressed_size=len(ci),
            toc_digest=b"",
            meta_digest=b"",
            meta_size=0,
            cipher_iv=0,
            cipher=0,
        )
        self._draft.write(compressed)
        self._draft.write(header_for(entry).pack())
        self._rows.sort()
        return replace(entry, raw_id=self._draft.sha256().encode()), b"".join(self._rows)

    def _chunk_info(self) -> Iterator[tuple[int, int, int, int]]:
        offset = 0
        for stored, size, block in zip(self._stored_sizes, self._sizes, self._blocks, strict=True):
            yield offset, stored, block * BLOCK_SIZE, size
            offset += stored
