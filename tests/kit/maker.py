"""A minimal image maker: everything in memory, one blob, no deduplication.

It makes what Nydus does not write (compact inodes, images without blobs) and large trees, and is independent of the
builder.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass, field, replace
from typing import Any

from nydus_erofs.erofs import blobmeta, dirent, inode, ondisk, rafs, xattr
from nydus_erofs.erofs.ids import BlobId
from nydus_erofs.erofs.image import Bootstrap, Image
from nydus_erofs.erofs.record import round_up
from nydus_erofs.erofs.source import BufferSource

BLOCK = ondisk.BLOCK_SIZE


@dataclass
class Node:
    """A file to be put into an image; `data` is its content or target, `children` makes it a directory."""

    mode: int
    data: bytes = b""
    children: dict[bytes, Node] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_nsec: int = 0
    rdev: int = 0
    nid: int = 0  # filled in by the maker
    size: int = 0
    offset: int = 0

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


def regular(data: bytes = b"", **more: Any) -> Node:
    return Node(stat.S_IFREG | 0o644, data, **more)


def folder(children: dict[bytes, Node] | None = None, **more: Any) -> Node:
    return Node(stat.S_IFDIR | 0o755, children=children or {}, **more)


def symlink(target: bytes, **more: Any) -> Node:
    return Node(stat.S_IFLNK | 0o777, target, **more)


@dataclass
class Made:
    """An image in memory."""

    boot: bytes
    blobs: dict[BlobId, bytes]

    def bootstrap(self) -> Bootstrap:
        return Bootstrap(BufferSource(self.boot))

    def image(self) -> Image:
        return Image(self.bootstrap(), lambda name: BufferSource(self.blobs[name]))


class Maker:
    """Makes one image of a tree. The same Node under several names is a hard link."""

    def __init__(self, root: Node, *, chunk_size: int = 4096, compact: bool = False) -> None:
        self.root, self.chunk_size, self.compact = root, chunk_size, compact
        self.header_size = 32 if compact else 64
        self.data = bytearray()  # chunk data of the blob
        self.infos: list[tuple[int, int, int, int]] = []
        self.rows: list[rafs.ChunkRow] = []
        self.links: dict[int, int] = {}
        self.names = 1

    def make(self) -> Made:
        order = self._order()
        has_blob = any(stat.S_ISREG(n.mode) and n.data for n in order)
        blob_table = round_up(rafs.DEVICE_TABLE_OFFSET + 128, BLOCK)
        meta = blob_table + BLOCK if has_blob else 0
        meta_bytes = self._metadata(order, meta)
        entry, blob = self._blob() if has_blob else (None, b"")
        chunk_table = meta + len(meta_bytes)
        body = bytearray(chunk_table)
        body[meta:chunk_table] = meta_bytes
        for row in sorted(self.rows, key=lambda row: row.digest):
            body += row.pack()
        rows_size = len(body) - chunk_table
        body += bytes(-len(body) % BLOCK)
        blocks = entry.uncompressed_size // BLOCK if entry else 0
        self._head(body, meta, blocks, has_blob, chunk_table, rows_size)
        if entry:
            mapped = round_up(len(body), rafs.MAPPED_ALIGN) // BLOCK
            slot = ondisk.DeviceSlot(entry.raw_id, blocks, mapped, b"")
            body[rafs.DEVICE_TABLE_OFFSET : rafs.DEVICE_TABLE_OFFSET + 128] = slot.pack()
            body[blob_table : blob_table + 256] = entry.pack()
            return Made(bytes(body), {BlobId(entry.raw_id.decode()): blob})
        return Made(bytes(body), {})

    def _order(self) -> list[Node]:
        """Every node once, a directory before its children."""
        order, stack = [], [self.root]
        while stack:
            node = stack.pop()
            self.links[id(node)] = self.links.get(id(node), 0) + 1
            if self.links[id(node)] > 1:
                continue
            order.append(node)
            self.names += len(node.children)
            stack += node.children.values()
        return order

    def _metadata(self, order: list[Node], meta: int) -> bytes:
        """Inodes from one block after `meta`; block-sized data of directories and symlinks behind them."""
        cursor = BLOCK
        for node in order:
            if node.is_dir:
                node.size = dirent.packed_size(sorted([b".", b"..", *node.children]), BLOCK)
            else:
                node.size = len(node.data)
            head = self.header_size + len(xattr.pack(node.xattrs))
            tail = 0
            if stat.S_ISREG(node.mode):
                tail = round_up(head, 8) - head + 8 * inode.chunk_count(node.size, self.chunk_size)
            elif self._layout(node) == ondisk.Layout.FLAT_INLINE:
                tail = node.size % BLOCK
                if cursor % BLOCK + head + tail > BLOCK:
                    cursor = round_up(cursor, BLOCK)
            node.offset, node.nid = cursor, cursor // 32
            cursor = round_up(cursor + head + tail, 32)
        out = bytearray(round_up(cursor, BLOCK))
        parents = {id(child): node for node in order for child in node.children.values()}
        for number, node in enumerate(order, 1):
            self._emit(out, node, parents.get(id(node), node), meta, number)
        return bytes(out)

    def _layout(self, node: Node) -> ondisk.Layout:
        if stat.S_ISREG(node.mode):
            return ondisk.Layout.CHUNK_BASED
        if node.is_dir or stat.S_ISLNK(node.mode):
            return inode.flat_layout(self.header_size, len(xattr.pack(node.xattrs)), node.size, BLOCK)
        return ondisk.Layout.FLAT_PLAIN

    def _emit(self, out: bytearray, node: Node, parent: Node, meta: int, ino: int) -> None:
        layout, attributes = self._layout(node), xattr.pack(node.xattrs)
        u, tail, padding = 0, b"", 0
        nlink = self.links[id(node)]
        if stat.S_ISREG(node.mode):
            tail = inode.pack_chunk_indexes(self._store(node.data))
            u = ondisk.CHUNK_FORMAT_INDEXES | (self.chunk_size.bit_length() - 1 - ondisk.BLOCK_BITS)
            padding = -(self.header_size + len(attributes)) % 8
        elif node.is_dir or stat.S_ISLNK(node.mode):
            data = node.data
            if node.is_dir:
                nlink = 2 + sum(child.is_dir for child in node.children.values())
                data = self._entries(node, parent)
            u = (meta + len(out)) // BLOCK
            full = node.size - node.size % BLOCK if layout == ondisk.Layout.FLAT_INLINE else node.size
            out += data[:full] + bytes(-full % BLOCK)
            tail = data[full : node.size]
        elif stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
            u = node.rdev
        header = inode.pack_inode(
            layout=layout, mode=node.mode, nlink=nlink, size=node.size, uid=node.uid, gid=node.gid,
            mtime=node.mtime, mtime_nsec=node.mtime_nsec, ino=ino, u=u, xattr_size=len(attributes),
        )  # fmt: skip
        if self.compact:
            whole = ondisk.ExtendedInode.unpack(header)
            header = ondisk.CompactInode(
                whole.format & ~1, whole.xattr_count, node.mode, nlink, node.size, 0, u, ino, node.uid, node.gid, 0
            ).pack()
        body = header + attributes + bytes(padding) + tail
        out[node.offset : node.offset + len(body)] = body

    def _entries(self, node: Node, parent: Node) -> bytes:
        children = {b".": node, b"..": parent, **node.children}
        entries = [
            dirent.Dirent(name, child.nid, ondisk.FILE_TYPE_OF_MODE[stat.S_IFMT(child.mode)])
            for name, child in sorted(children.items())
        ]
        return dirent.pack_blocks(entries, BLOCK)[0]

    def _store(self, data: bytes) -> list[inode.ChunkIndex]:
        out = []
        for start in range(0, len(data), self.chunk_size):
            chunk = data[start : start + self.chunk_size]
            index, place, where = len(self.infos), len(self.data), self._space()
            self.infos.append((place, len(chunk), where, len(chunk)))
            self.data += chunk
            digest = hashlib.sha256(chunk).digest()
            self.rows.append(rafs.ChunkRow(digest, 0, 0, len(chunk), len(chunk), place, where, start, index, 0))
            out.append(inode.ChunkIndex(0, index, where // BLOCK))
        return out

    def _space(self) -> int:
        if not self.infos:
            return 0
        _, _, offset, size = self.infos[-1]
        return round_up(offset + size, BLOCK)

    def _blob(self) -> tuple[rafs.BlobEntry, bytes]:
        array = blobmeta.pack_chunk_info_v1(self.infos)
        entry = rafs.BlobEntry(
            raw_id=b"", blob_index=0, chunk_size=self.chunk_size, chunk_count=len(self.infos),
            compression=rafs.Compression.NONE, digest_algo=rafs.DigestAlgo.SHA256,
            features=int(rafs.BlobFeatures.ALIGNED | rafs.BlobFeatures.CAP_TAR_TOC),
            compressed_size=len(self.data) + len(array) + 4096, uncompressed_size=self._space(),
            toc_size=0, ci_compression=rafs.Compression.NONE, ci_offset=len(self.data),
            ci_compressed_size=len(array), ci_uncompressed_size=len(array), toc_digest=b"", meta_digest=b"",
            meta_size=0, cipher_iv=0, cipher=0,
        )  # fmt: skip
        blob = bytes(self.data) + array + blobmeta.header_for(entry).pack()
        return replace(entry, raw_id=hashlib.sha256(blob).hexdigest().encode()), blob

    def _head(self, body: bytearray, meta: int, blocks: int, has_blob: bool, table: int, rows_size: int) -> None:
        superblock = ondisk.SuperBlock(
            magic=ondisk.SUPERBLOCK_MAGIC, checksum=0, feature_compat=rafs.COMPAT_RAFS_V6,
            block_bits=ondisk.BLOCK_BITS, ext_slots=0, root_nid=rafs.ROOT_NID, inodes=self.names,
            epoch=0, epoch_nsec=0, blocks=blocks, meta_block=meta // BLOCK, xattr_block=0, uuid=b"", volume_name=b"",
            feature_incompat=rafs.INCOMPAT_RAFS_V6, u1=0, extra_devices=int(has_blob),
            device_table_slot=rafs.DEVICE_TABLE_SLOT, reserved=b"",
        )  # fmt: skip
        flags = rafs.Flags.COMPRESSION_NONE | rafs.Flags.HASH_SHA256 | rafs.Flags.EXPLICIT_UID_GID
        ext = rafs.ExtSuperBlock(
            flags=int(flags), blob_table_offset=BLOCK, blob_table_size=256 if has_blob else 0,
            chunk_size=self.chunk_size, chunk_table_offset=table, chunk_table_size=rows_size,
            prefetch_table_offset=0, prefetch_table_size=0,
        )  # fmt: skip
        body[1024 : 1024 + 384] = superblock.pack() + ext.pack()
