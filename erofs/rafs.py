"""RAFS v6 on top of EROFS: constants and records, nothing else.

Source: the format as ``nydus-image`` v2.4 writes and checks it (docs/formats.md).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar

from .ondisk import BLOCK_SIZE, DEVICE_SLOT_SIZE, SLOT_SIZE, SUPERBLOCK_OFFSET, FeatureIncompat, SuperBlock
from .record import Record

COMPAT_RAFS_V6 = 0x40000000
INCOMPAT_RAFS_V6 = int(FeatureIncompat.CHUNKED_FILE | FeatureIncompat.DEVICE_TABLE)  # exactly these
EXT_SUPERBLOCK_OFFSET = SUPERBLOCK_OFFSET + SuperBlock.size()
DEVICE_TABLE_SLOT = 11
DEVICE_TABLE_OFFSET = DEVICE_TABLE_SLOT * DEVICE_SLOT_SIZE  # byte 1408, right behind the extended superblock
MAPPED_ALIGN = 512 * 1024  # a device's place in the flat image is a multiple of this many bytes
ROOT_NID = BLOCK_SIZE // SLOT_SIZE  # one unused block precedes the root inode

MIN_CHUNK_SIZE = 0x1000
MAX_CHUNK_SIZE = 0x1000000
DEFAULT_CHUNK_SIZE = 0x100000
MAX_BLOBS = 254
MAX_CHUNKS = (1 << 24) - 1
DIGEST_SIZE = 32  # bytes of a chunk's digest, of either algorithm
MAX_BOOTSTRAP_SIZE = 1 << 31  # what nydusd loads at most


class Flags(IntFlag):
    """``flags`` of the extended superblock."""

    COMPRESSION_NONE = 0x1
    COMPRESSION_LZ4 = 0x2
    HASH_BLAKE3 = 0x4
    HASH_SHA256 = 0x8
    EXPLICIT_UID_GID = 0x10
    HAS_XATTR = 0x20
    COMPRESSION_GZIP = 0x40
    COMPRESSION_ZSTD = 0x80
    INLINED_CHUNK_DIGEST = 0x100
    TARFS_MODE = 0x200
    ENCRYPTION_NONE = 0x0100_0000
    ENCRYPTION_AES_128_XTS = 0x0200_0000
    RESERVED_COMPAT = 0xFC00_0000


class Compression(IntEnum):
    """``compression_algo`` of a blob and ``ci_compressor``."""

    NONE = 0
    LZ4_BLOCK = 1
    GZIP = 2
    ZSTD = 3


class DigestAlgo(IntEnum):
    """``digest_algo`` of a blob."""

    BLAKE3 = 0
    SHA256 = 1


class Cipher(IntEnum):
    NONE = 0
    AES_128_XTS = 1


COMPRESSION_FLAG = {
    Compression.NONE: Flags.COMPRESSION_NONE,
    Compression.LZ4_BLOCK: Flags.COMPRESSION_LZ4,
    Compression.GZIP: Flags.COMPRESSION_GZIP,
    Compression.ZSTD: Flags.COMPRESSION_ZSTD,
}
DIGEST_FLAG = {DigestAlgo.BLAKE3: Flags.HASH_BLAKE3, DigestAlgo.SHA256: Flags.HASH_SHA256}


class BlobFeatures(IntFlag):
    """``features`` of a blob table entry and of the chunk-info header. An unknown bit of the low half is fatal."""

    ALIGNED = 0x1
    INLINED_FS_META = 0x2
    CHUNK_INFO_V2 = 0x4
    ZRAN = 0x8
    SEPARATE = 0x10
    INLINED_CHUNK_DIGEST = 0x20
    TARFS = 0x40
    BATCH = 0x80
    ENCRYPTED = 0x100
    CHUNKDICT_GENERATED = 0x200
    SEPARATED_WITH_PREFETCH_FILES = 0x400
    EXTERNAL = 0x800
    UNKNOWN_INCOMPAT = 0xF000
    HAS_TAR_HEADER = 0x1000_0000
    HAS_TOC = 0x2000_0000
    CAP_TAR_TOC = 0x4000_0000
    INTERNAL_V5 = 0x8000_0000


@dataclass(frozen=True, slots=True)
class ExtSuperBlock(Record):
    """The 256 bytes at byte 1152. Offsets and sizes are bytes of the bootstrap."""

    LAYOUT: ClassVar = struct.Struct("<QQIIQQQI204x")

    flags: int
    blob_table_offset: int
    blob_table_size: int
    chunk_size: int
    chunk_table_offset: int
    chunk_table_size: int
    prefetch_table_offset: int
    prefetch_table_size: int


assert ExtSuperBlock.size() == 256


@dataclass(frozen=True, slots=True)
class BlobEntry(Record):
    """One entry of the blob table (256 bytes). ``ci_*`` place the chunk-info array in the blob file, in bytes."""

    LAYOUT: ClassVar = struct.Struct("<64sIIIIIIQQIIQQQ32s32sQQI36x")

    raw_id: bytes
    blob_index: int
    chunk_size: int
    chunk_count: int
    compression: int
    digest_algo: int
    features: int
    compressed_size: int
    uncompressed_size: int
    toc_size: int
    ci_compression: int
    ci_offset: int
    ci_compressed_size: int
    ci_uncompressed_size: int
    toc_digest: bytes
    meta_digest: bytes
    meta_size: int
    cipher_iv: int
    cipher: int


assert BlobEntry.size() == 256


class ChunkFlags(IntFlag):
    """``flags`` of a chunk table row."""

    COMPRESSED = 0x1
    HOLE = 0x2
    ENCRYPTED = 0x4
    BATCH = 0x8
    HAS_CRC32 = 0x10


@dataclass(frozen=True, slots=True)
class ChunkRow(Record):
    """One row of the chunk table (80 bytes): the digest of a chunk and where it lies."""

    LAYOUT: ClassVar = struct.Struct("<32sIIIIQQQII")

    digest: bytes
    blob_index: int
    flags: int
    compressed_size: int
    uncompressed_size: int
    compressed_offset: int
    uncompressed_offset: int
    file_offset: int
    index: int
    crc32: int


assert ChunkRow.size() == 80
