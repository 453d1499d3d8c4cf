"""The part of the checker for what files and the chunk table say of chunks."""

from __future__ import annotations

from collections.abc import Iterator

from .chunk_table import row_faults
from .errors import FormatError
from .findings import Report
from .image import Bootstrap
from .inode import ChunkIndex, Inode
from .ondisk import BLOCK_BITS
from .rules import Rule


class ChunkCheck:
    """Chunk indexes of files, and the rows they need."""

    def __init__(self, bootstrap: Bootstrap, report: Report) -> None:
        self._bootstrap = bootstrap
        self._report = report

    def faults(self, inode: Inode) -> Iterator[tuple[Rule, str]]:
        """What is wrong with the chunks of a regular file."""
        bootstrap = self._bootstrap
        step, blobs = bootstrap.chunk_size, bootstrap.blobs
        # The kernel's chunks may be larger than the image's when one covers the whole file.
        one_extent = 1 << inode.chunk_bits != step
        if one_extent and inode.size > 1 << inode.chunk_bits:
            yield Rule.CHUNK_FORMAT, f"the kernel would read it in chunks of 2^{inode.chunk_bits} bytes"
            one_extent = False
        first: ChunkIndex | None = None
        for number, chunk in enumerate(bootstrap.chunk_indexes(inode)):
            self._report.chunks += 1
            first = first or chunk
            follows = (first.blob_index, first.start_block + (number * step >> BLOCK_BITS))
            if one_extent and follows != (chunk.blob_index, chunk.start_block):
                yield Rule.CHUNK_FORMAT, f"chunk {number} does not follow the one before, as the file's format says"
                one_extent = False
            try:
                bootstrap.check_chunk(chunk)
            except FormatError as error:
                if not 0 <= chunk.blob_index < len(blobs) or blobs[chunk.blob_index].sound:
                    yield error.rule, f"chunk {number}: {error.message}"
                continue
            row = bootstrap.chunk_row(chunk)
            size = min(step, inode.size - number * step)
            if row is None:
                place = f"chunk {chunk.ci_index} of blob {chunk.blob_index} at block {chunk.start_block}"
                yield Rule.CHUNK_ROW, f"chunk {number}: there is no row for {place}"
            elif row.uncompressed_size != size:
                yield Rule.CHUNK_ROW, f"chunk {number}: {size} bytes, in the chunk table {row.uncompressed_size}"

    def check_rows(self) -> None:
        """Look at every row of the chunk table; findings go to the report."""
        for number, fault in row_faults(self._bootstrap.chunk_table, self._bootstrap.blobs):
            self._report.add(Rule.CHUNK_TABLE, f"row {number}", fault)
