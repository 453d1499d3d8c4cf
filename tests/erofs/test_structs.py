"""A second opinion on every record: C declarations, written from the documented layouts, read by dissect.cstruct.

What is compared: sizes, the offset of every field, and values read from an image that Nydus built.
"""

from __future__ import annotations

from typing import Any

import pytest
from dissect.cstruct import cstruct

from nydus_erofs.erofs import blobmeta, ondisk, rafs, toc

DECLARATIONS = """
struct super_block {            // Linux 6.18 erofs_fs.h, struct erofs_super_block
    uint32 magic;
    uint32 checksum;
    uint32 feature_compat;
    uint8  blkszbits;
    uint8  sb_extslots;
    uint16 root_nid;
    uint64 inos;
    uint64 epoch;
    uint32 fixed_nsec;
    uint32 blocks_lo;
    uint32 meta_blkaddr;
    uint32 xattr_blkaddr;
    char   uuid[16];
    char   volume_name[16];
    uint32 feature_incompat;
    uint16 u1;
    uint16 extra_devices;
    uint16 devt_slotoff;
    char   rest[38];
};

struct device_slot {            // struct erofs_deviceslot
    char   tag[64];
    uint32 blocks_lo;
    uint32 uniaddr_lo;
    char   reserved[56];
};

struct inode_compact {          // struct erofs_inode_compact
    uint16 i_format;
    uint16 i_xattr_icount;
    uint16 i_mode;
    uint16 i_nb;
    uint32 i_size;
    uint32 i_mtime;
    uint32 i_u;
    uint32 i_ino;
    uint16 i_uid;
    uint16 i_gid;
    uint32 i_reserved;
};

struct inode_extended {         // struct erofs_inode_extended
    uint16 i_format;
    uint16 i_xattr_icount;
    uint16 i_mode;
    uint16 i_nb;
    uint64 i_size;
    uint32 i_u;
    uint32 i_ino;
    uint32 i_uid;
    uint32 i_gid;
    uint64 i_mtime;
    uint32 i_mtime_nsec;
    uint32 i_nlink;
    char   i_reserved2[16];
};

struct dirent {                 // struct erofs_dirent, packed
    uint64 nid;
    uint16 nameoff;
    uint8  file_type;
    uint8  reserved;
};

struct xattr_ibody_header {     // struct erofs_xattr_ibody_header
    uint32 h_name_filter;
    uint8  h_shared_count;
    char   h_reserved2[7];
};

struct xattr_entry {            // struct erofs_xattr_entry
    uint8  e_name_len;
    uint8  e_name_index;
    uint16 e_value_size;
};

struct chunk_index {            // struct erofs_inode_chunk_index
    uint16 startblk_hi;
    uint16 device_id;
    uint32 startblk_lo;
};

struct ext_super_block {        // RAFS v6
    uint64 flags;
    uint64 blob_table_offset;
    uint32 blob_table_size;
    uint32 chunk_size;
    uint64 chunk_table_offset;
    uint64 chunk_table_size;
    uint64 prefetch_table_offset;
    uint32 prefetch_table_size;
    uint32 padding;
    char   reserved[200];
};

struct blob_entry {
    char   blob_id[64];
    uint32 blob_index;
    uint32 chunk_size;
    uint32 chunk_count;
    uint32 compression_algo;
    uint32 digest_algo;
    uint32 features;
    uint64 compressed_size;
    uint64 uncompressed_size;
    uint32 blob_toc_size;
    uint32 ci_compressor;
    uint64 ci_offset;
    uint64 ci_compressed_size;
    uint64 ci_uncompressed_size;
    char   blob_toc_digest[32];
    char   blob_meta_digest[32];
    uint64 blob_meta_size;
    uint64 cipher_iv;
    uint32 cipher_algo;
    char   reserved[36];
};

struct chunk_row {
    char   digest[32];
    uint32 blob_index;
    uint32 flags;
    uint32 compressed_size;
    uint32 uncompressed_size;
    uint64 compressed_offset;
    uint64 uncompressed_offset;
    uint64 file_offset;
    uint32 index;
    uint32 crc32;
};

struct ci_header {
    uint32 magic;
    uint32 features;
    uint32 ci_compressor;
    uint32 ci_entries;
    uint64 ci_offset;
    uint64 ci_compressed_size;
    uint64 ci_uncompressed_size;
    uint64 zran_offset;
    uint64 zran_size;
    uint32 zran_count;
    char   reserved[4032];
    uint32 magic2;
};

struct toc_entry {
    uint32 flags;
    uint32 reserved;
    char   name[16];
    char   digest[32];
    uint64 compressed_offset;
    uint64 compressed_size;
    uint64 uncompressed_size;
    char   reserved2[48];
};
"""

C = cstruct()
C.load(DECLARATIONS)

# Our record, its declaration, and the declaration's fields that ours leaves out (padding).
RECORDS = [
    (ondisk.SuperBlock, C.super_block, ()),
    (ondisk.DeviceSlot, C.device_slot, ()),
    (ondisk.CompactInode, C.inode_compact, ()),
    (ondisk.ExtendedInode, C.inode_extended, ()),
    (rafs.ExtSuperBlock, C.ext_super_block, ("padding", "reserved")),
    (rafs.BlobEntry, C.blob_entry, ("reserved",)),
    (rafs.ChunkRow, C.chunk_row, ()),
    (blobmeta.MetaHeader, C.ci_header, ("reserved",)),
    (toc.TocEntry, C.toc_entry, ("reserved", "reserved2")),
]


@pytest.mark.parametrize(("ours", "theirs", "left_out"), RECORDS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_field_lies_where_the_declaration_says(ours: Any, theirs: Any, left_out: tuple[str, ...]) -> None:
    assert ours.size() == len(theirs)
    fields = [field for field in theirs.fields.values() if field.name not in left_out]
    # Bytes that differ everywhere: a field read from the wrong place has another value.
    data = bytes(i * 89 % 251 for i in range(len(theirs)))
    mine = [getattr(ours.unpack(data), name) for name in ours.__slots__]
    parsed = theirs(data)
    declared = [getattr(parsed, field.name) for field in fields]
    assert mine == declared


@pytest.mark.parametrize("ours", [record for record, _, _ in RECORDS])
def test_records_pack_what_they_unpack(ours: Any) -> None:
    data = bytearray(i * 89 % 251 for i in range(ours.size()))
    record = ours.unpack(data)
    assert ours.unpack(record.pack()) == record


@pytest.mark.parametrize(
    ("layout", "theirs"),
    [
        (ondisk.DIRENT, C.dirent),
        (ondisk.XATTR_ENTRY_HEADER, C.xattr_entry),
        (ondisk.CHUNK_INDEX, C.chunk_index),
    ],
)
def test_small_structs(layout: Any, theirs: Any) -> None:
    data = bytes(range(1, len(theirs) + 1))
    parsed = theirs(data)
    assert layout.size == len(theirs)
    assert list(layout.unpack(data)) == [getattr(parsed, name) for name in theirs.fields]


def test_places() -> None:
    assert len(C.xattr_ibody_header) == ondisk.XATTR_HEADER_SIZE
    ext = 1024 + len(C.super_block)
    assert ext == rafs.EXT_SUPERBLOCK_OFFSET
    assert ext + len(C.ext_super_block) == rafs.DEVICE_TABLE_OFFSET == 11 * len(C.device_slot)


def test_superblock_of_an_image(load: Any) -> None:
    made = load("plain")
    theirs = C.super_block(made.boot[1024 : 1024 + 128])
    head = made.bootstrap().head
    assert (theirs.magic, theirs.root_nid, theirs.inos) == (0xE0F5E1E2, 128, 1620)
    assert theirs.blocks_lo == head.superblock.blocks
    root = C.inode_extended(made.boot[theirs.meta_blkaddr * 4096 + theirs.root_nid * 32 :][:64])
    assert (root.i_mode, root.i_nlink, root.i_ino) == (0o040755, 11, 1)
