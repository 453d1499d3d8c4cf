"""The invariants of an image, by name: what the reader relies on and what ``check`` reports."""

from __future__ import annotations

from enum import StrEnum


class Rule(StrEnum):
    """One invariant each. The values are part of the command's output: add to them, do not rename them."""

    # the file and its fixed parts
    FILE_SIZE = "file-size"  # whole blocks, at least superblocks and tables, at most what Nydus loads
    MAGIC = "magic"  # an EROFS superblock that says RAFS v6
    SUPERBLOCK = "superblock"  # every other field has its one legal value, or lies in its range
    EXT_SUPERBLOCK = "ext-superblock"  # flags known and one-hot, chunk size a power of two
    TABLE_BOUNDS = "table-bounds"  # tables lie inside the file, aligned, in whole entries
    TABLE_OVERLAP = "table-overlap"  # tables and the metadata area do not overlap
    DEVICE_TABLE = "device-table"  # slots agree with the blob table and do not overlap in the flat image
    BLOB_TABLE = "blob-table"  # each entry is well-formed
    PREFETCH_TABLE = "prefetch-table"  # names inodes of the tree
    TOTALS = "totals"  # the superblock's counts of inodes and blocks

    # inodes
    INODE_BOUNDS = "inode-bounds"  # header, xattrs, chunk indexes and blocks lie in the metadata area
    INODE_FORMAT = "inode-format"  # known version, file type, and the layout of that type
    INODE_SIZE = "inode-size"  # a size the file type can have
    INODE_TIME = "inode-time"  # nanoseconds below 1e9
    INLINE_TAIL = "inline-tail"  # an inline tail lies in one block
    XATTR = "xattr"  # entries fill their area, names are known, unique and in range
    SYMLINK = "symlink"  # a target without NUL bytes
    NLINK = "nlink"  # link counts are the numbers of names, for directories 2 + subdirectories
    METADATA_OVERLAP = "metadata-overlap"  # no byte of metadata belongs to two inodes

    # directories
    DIRENT_FORMAT = "dirent-format"  # offsets inside the block, rising
    DIRENT_NAME = "dirent-name"  # 1..255 bytes without "/" and NUL
    DIRENT_ORDER = "dirent-order"  # strict byte order through the whole directory
    DIRENT_DOTS = "dirent-dots"  # "." is the directory, ".." its parent
    DIRENT_TYPE = "dirent-type"  # the type that the inode has
    DIRECTORY_LOOP = "directory-loop"  # every directory has one name
    PATH_LENGTH = "path-length"  # paths end

    # chunks
    CHUNK_FORMAT = "chunk-format"  # the kernel's chunk size finds the same bytes as the image's
    CHUNK_INDEX = "chunk-index"  # blob, CI index and block exist
    CHUNK_ROW = "chunk-row"  # the chunk table has a row for every referenced chunk
    CHUNK_TABLE = "chunk-table"  # each row is well-formed, and no two are for one chunk

    # blobs
    BLOB_MISSING = "blob-missing"
    BLOB_SIZE = "blob-size"  # the blob file holds what the blob table says
    CI_HEADER = "ci-header"  # the chunk-info header agrees with the blob table
    CI_ARRAY = "ci-array"  # the chunk-info array can be decoded
    CI_DENSE = "ci-dense"  # chunks tile the uncompressed space
    CHUNK_UNIT = "chunk-unit"  # what is stored of a chunk or batch lies inside the data and has sizes it can have
    CHUNK_INFO = "chunk-info"  # chunk-info entry and chunk table row agree
    CHUNK_DIGEST = "chunk-digest"  # a chunk's bytes have its digest
    TOC = "toc"  # the table of contents is well-formed and has its digest

    FORMAT = "format"  # anything else that is not what it claims to be
    UNSUPPORTED = "unsupported"  # not broken, but beyond this version: not checked
