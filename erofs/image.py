"""Reading an image: the tree from the bootstrap alone, file contents with the help of the blobs.

Nothing in the bytes is trusted: whatever does not fit raises FormatError, and time and memory are bounded
by the size of the bootstrap. Paths are absolute (``b"/usr/bin"``), the root is ``b"/"``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import islice

from .blob import BlobReader
from .blob_table import Blob, Report, check_supported
from .dirent import Dirent, parse_blocks
from .errors import CorruptError, FormatError, NoSuchPathError
from .head import Head, raise_it, read_head
from .ids import BlobId, printable
from .inode import NO_BLOCK, ChunkIndex, Inode, chunk_count, parse_chunk_indexes, parse_inode
from .ondisk import BLOCK_BITS, CHUNK_INDEX, FileType, Layout
from .rafs import ChunkRow
from .record import Buffer
from .rules import Rule
from .source import Source
from .xattr import parse as parse_xattrs

MAX_PATH = 64 << 10  # bytes; far beyond what a tar or a path given to the kernel can hold

OpenBlob = Callable[[BlobId], Source]

_DOTS = (b".", b"..")


class Bootstrap:
    """A bootstrap: superblocks, tables and tree.

    Args:
        source: its bytes; they are kept in memory unless ``source`` is a buffer (an mmap) already.
        report: called for each broken invariant of superblocks and tables; the default raises it.
    """

    def __init__(self, source: Source, report: Report = raise_it) -> None:
        self.head: Head = read_head(source, report)
        self.data = memoryview(source.read_at(0, source.size()))
        self.area = self.head.area
        self._rows: dict[int, int] | None = None

    @property
    def root_nid(self) -> int:
        return self.head.superblock.root_nid

    @property
    def chunk_size(self) -> int:
        """Bytes of a chunk of this image, but for the last of each file."""
        return self.head.ext.chunk_size

    @property
    def blobs(self) -> list[Blob]:
        return self.head.blobs

    # --- tree ---

    def inode(self, nid: int) -> Inode:
        """The inode ``nid``, validated."""
        try:
            return parse_inode(self.data, nid, self.area)
        except FormatError as error:
            raise error.at(f"nid {nid}") from None

    def dirents(self, inode: Inode) -> Iterator[Dirent]:
        """All entries of a directory, ``.`` and ``..`` too, in byte order; read block by block."""
        if not inode.is_dir:
            raise FormatError(f"nid {inode.nid} is not a directory")
        try:
            yield from parse_blocks(self.blocks(inode))
        except FormatError as error:
            raise error.at(f"nid {inode.nid}") from None

    def children(self, inode: Inode, parent: int | None = None) -> Iterator[Dirent]:
        """The entries of a directory without ``.`` and ``..``, which must be there and right.

        What ``..`` should be is known only when ``parent`` is given.
        """
        dots = 0
        for entry in self.dirents(inode):
            if entry.name not in _DOTS:
                yield entry
                continue
            expected = inode.nid if entry.name == b"." else parent
            if expected not in (None, entry.nid):
                break
            dots += 1
        if dots != len(_DOTS):
            raise FormatError(f'nid {inode.nid}: wrong "." or ".."', rule=Rule.DIRENT_DOTS)

    def listdir(self, nid: int) -> list[Dirent]:
        """The entries of a directory without ``.`` and ``..``."""
        return list(self.children(self.inode(nid)))

    def readlink(self, nid: int) -> bytes:
        """The target of a symlink."""
        inode = self.inode(nid)
        if not inode.is_symlink:
            raise FormatError(f"nid {nid} is not a symlink")
        target = b"".join(self.blocks(inode))
        if b"\0" in target:
            raise FormatError(f"nid {nid}: a symlink's target with a NUL byte", rule=Rule.SYMLINK)
        return target

    def xattrs(self, nid: int) -> dict[bytes, bytes]:
        """Extended attributes by full name."""
        inode = self.inode(nid)
        try:
            return parse_xattrs(self.data[inode.xattr_offset : inode.tail_offset])
        except FormatError as error:
            raise error.at(f"nid {nid}") from None

    def lookup(self, path: bytes) -> Inode:
        """The inode of an absolute path; symlinks are not followed. NoSuchPathError when there is none."""
        inode = self.inode(self.root_nid)
        for name in filter(None, path.split(b"/")):
            entries = self.dirents(inode) if inode.is_dir else iter(())
            nid = next((entry.nid for entry in entries if entry.name == name), None)
            if nid is None:
                raise NoSuchPathError(f"no such path in the image: {printable(path)}")
            inode = self.inode(nid)
        return inode

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every name in the tree with its inode: the root first, then depth first in byte order.

        A hard-linked file comes once for each name. FormatError for loops, for directories that share
        bytes and for endless paths.
        """
        root = self.inode(self.root_nid)
        yield b"/", root
        seen = {root.nid}
        budget = self.area.end - root.size  # directories own their bytes: together they fit the file
        prefix = b"/"
        stack = [(b"", root.nid, self.children(root, root.nid))]
        while stack:
            name, parent, entries = stack[-1]
            for child, nid, file_type in entries:
                inode = self.inode(nid)
                if (file_type == FileType.DIR) != inode.is_dir:
                    raise FormatError(f"nid {nid}: not of the type its name says", rule=Rule.DIRENT_TYPE)
                path = prefix + child
                yield path, inode
                if inode.is_dir:
                    budget -= inode.size
                    if nid in seen or budget < 0:
                        raise FormatError(f"nid {nid}: the directory is reached twice", rule=Rule.DIRECTORY_LOOP)
                    if len(path) > MAX_PATH:
                        raise FormatError(f"nid {nid}: its path has {len(path)} bytes", rule=Rule.PATH_LENGTH)
                    seen.add(nid)
                    prefix = path + b"/"
                    stack.append((child, nid, self.children(inode, parent)))
                    break
            else:
                stack.pop()
                prefix = prefix[: -len(name) - 1]

    def blocks(self, inode: Inode) -> Iterator[Buffer]:
        """The data of a directory or symlink, a buffer for each block, the last cut at the size."""
        start, length = inode.blocks(self.area)
        end = start + length
        step = self.area.block_size
        for at in range(start, end, step):
            yield self.data[at : min(at + step, end)]
        if inode.layout == Layout.FLAT_INLINE:
            yield self.data[inode.tail_offset : inode.body_end(self.area)]

    # --- tables ---

    def prefetch_nids(self) -> Iterator[int]:
        """The nids of the prefetch table, up to the first 0."""
        start, count = self.head.prefetch
        for (nid,) in struct.iter_unpack("<I", self.data[start : start + count * 4]):
            if not nid:
                return
            yield nid

    # --- chunks ---

    def chunk_indexes(self, inode: Inode, first: int = 0) -> Iterator[ChunkIndex]:
        """Where a regular file's chunks from number ``first`` on lie, as they are written.

        Use ``check_chunk`` on those that are to be followed.
        """
        if not inode.is_regular:
            raise FormatError(f"nid {inode.nid} is not a regular file")
        start = inode.chunk_index_offset + first * CHUNK_INDEX.size
        return parse_chunk_indexes(self.data[start : inode.body_end(self.area)])

    def check_chunk(self, chunk: ChunkIndex) -> None:
        """FormatError (chunk-index) unless the blob, the chunk-info entry and the block exist."""
        if not 0 <= chunk.blob_index < len(self.blobs):
            raise FormatError(f"there is no blob {chunk.blob_index}", rule=Rule.CHUNK_INDEX)
        entry = self.blobs[chunk.blob_index].entry
        if chunk.ci_index >= entry.chunk_count:
            raise FormatError(
                f"chunk {chunk.ci_index} of blob {chunk.blob_index}, which has {entry.chunk_count}",
                rule=Rule.CHUNK_INDEX,
            )
        if chunk.start_block == NO_BLOCK or chunk.start_block << BLOCK_BITS >= entry.uncompressed_size:
            raise FormatError(f"block {chunk.start_block} lies behind blob {chunk.blob_index}", rule=Rule.CHUNK_INDEX)

    def chunk_row(self, chunk: ChunkIndex) -> ChunkRow | None:
        """The chunk table's row for a chunk: exactly this blob, chunk-info index and block."""
        number = self.row_number(chunk)
        if number is None:
            return None
        row = ChunkRow.unpack(self.data, self.head.chunk_rows[0] + number * ChunkRow.size())
        exact = (row.blob_index, row.index, row.uncompressed_offset) == (
            chunk.blob_index,
            chunk.ci_index,
            chunk.start_block << BLOCK_BITS,
        )
        return row if exact else None

    def row_number(self, chunk: ChunkIndex) -> int | None:
        """The place in the chunk table of a chunk's row, the last one if there are several."""
        if self._rows is None:
            self._rows = {
                _row_key(row[1], row[8], row[6] >> BLOCK_BITS): number for number, row in enumerate(self.chunk_rows())
            }
        return self._rows.get(_row_key(*chunk))

    def chunk_rows(self) -> Iterator[tuple[bytes, int, int, int, int, int, int, int, int, int]]:
        """The rows of the chunk table, as tuples in the order of ``ChunkRow``'s fields."""
        return ChunkRow.LAYOUT.iter_unpack(self.chunk_table)

    @property
    def chunk_table(self) -> Buffer:
        """The bytes of the chunk table."""
        return self.head.chunk_table(self.data)


def _row_key(blob_index: int, ci_index: int, block: int) -> int:
    return blob_index << 56 | ci_index << 32 | block


class Image:
    """File contents of an image, every chunk compared with its digest. Not for several threads.

    Args:
        bootstrap: the tree.
        open_blob: gives the bytes of a blob; called once for each blob, when it is first needed.
    """

    def __init__(self, bootstrap: Bootstrap, open_blob: OpenBlob) -> None:
        self.bootstrap = bootstrap
        self._open_blob = open_blob
        self._readers: dict[int, BlobReader] = {}
        self._last: tuple[ChunkIndex, int, Buffer] | None = None

    def read_at(self, nid: int, offset: int, length: int) -> bytes:
        """Bytes of a regular file from ``offset``; fewer than ``length`` only at its end.

        FormatError, UnsupportedError, BackendError as what is wrong; CorruptError when a chunk's digest is.
        """
        inode = self.bootstrap.inode(nid)
        end = min(offset + length, inode.size)
        if offset < 0 or offset >= end:
            return b""
        step = self.bootstrap.chunk_size
        first = offset // step
        chunks = islice(self.bootstrap.chunk_indexes(inode, first), chunk_count(end, step) - first)
        parts = []
        for number, chunk in enumerate(chunks, first):
            start = number * step
            data = memoryview(self._chunk(chunk, min(step, inode.size - start)))
            parts.append(data[max(offset - start, 0) : end - start])
        return b"".join(parts)

    def stream(self, nid: int) -> Iterator[Buffer]:
        """A regular file chunk by chunk."""
        inode = self.bootstrap.inode(nid)
        step = self.bootstrap.chunk_size
        for number, chunk in enumerate(self.bootstrap.chunk_indexes(inode)):
            yield self._chunk(chunk, min(step, inode.size - number * step))

    def reader(self, blob_index: int) -> BlobReader:
        """The reader of a blob, whose chunk info was found to be right."""
        reader = self._readers.get(blob_index)
        if reader is None:
            blob = self.bootstrap.blobs[blob_index]
            check_supported(blob.entry)
            reader = BlobReader(blob.entry, self._open_blob(blob.id))
            reader.check_dense()
            reader.find_units()
            self._readers[blob_index] = reader
        return reader

    def _chunk(self, chunk: ChunkIndex, size: int) -> Buffer:
        """The ``size`` bytes of a chunk, verified."""
        if self._last is not None and self._last[:2] == (chunk, size):
            return self._last[2]
        self.bootstrap.check_chunk(chunk)
        name = f"blob {self.bootstrap.blobs[chunk.blob_index].id}: chunk {chunk.ci_index}"
        row = self.bootstrap.chunk_row(chunk)
        if row is None:
            raise FormatError(f"{name} has no row in the chunk table", rule=Rule.CHUNK_ROW)
        reader = self.reader(chunk.blob_index)
        info = reader.chunks.row(chunk.ci_index)
        if (info.uncompressed_offset, info.uncompressed_size) != (chunk.start_block << BLOCK_BITS, size):
            raise FormatError(f"{name} lies or ends elsewhere in the blob's chunk info", rule=Rule.CHUNK_INFO)
        try:
            data = reader.read(chunk.ci_index, row.digest)
        except CorruptError as error:
            raise CorruptError(f"{name} is corrupt: {error.message}") from None
        self._last = (chunk, size, data)
        return data
