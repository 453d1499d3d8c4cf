"""Images: whole ones, and the parts of blobs that are reached faster alone."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from io import BytesIO

import lz4.block
import zstandard

from nydus_erofs.erofs import blobmeta, rafs, toc, verity
from nydus_erofs.erofs.blob import read_chunk_info
from nydus_erofs.erofs.blob_table import check_supported, read_blob
from nydus_erofs.erofs.blobmeta import BatchContext, ChunkInfo, ChunkInfoFlags
from nydus_erofs.erofs.codec import codec
from nydus_erofs.erofs.errors import FormatError, NydusErofsError
from nydus_erofs.erofs.head import raise_it
from nydus_erofs.erofs.rafs import BlobFeatures, Compression
from nydus_erofs.erofs.source import BufferSource
from nydus_erofs.erofs.unit import find_units
from nydus_erofs.fscache.backend.registry.layer import extract_bootstrap, pack_layer
from tests.fuzz import mutate, objects, samples, served
from tests.fuzz.target import target


@target(samples.seeds, samples.mutate_input, freeze=samples.freeze, memory=1 << 30)
def image(data: bytes) -> object:
    """What check finds broken, is not mounted; what is mounted reads as the reader has it."""
    return served.judge(samples.read_input(data))


@target(samples.seeds, samples.mutate_input, freeze=samples.freeze, memory=1 << 30)
def image_reader(data: bytes) -> object:
    """The reader, up to the first thing that is wrong with the tree."""
    return len(served.read_all(samples.read_input(data)))


@target(samples.seeds, samples.mutate_input, freeze=samples.freeze, memory=1 << 30)
def image_objects(data: bytes) -> object:
    """What the kernel reads from its own cache: right, or EIO."""
    right, refused = objects.compare(samples.read_input(data))
    return bool(right), bool(refused)


# --- chunk info -----------------------------------------------------------------------------------------------

_V2, _BATCH, _TAR = BlobFeatures.CHUNK_INFO_V2, BlobFeatures.BATCH, BlobFeatures.CAP_TAR_TOC
_ENTRY, _HEAD = rafs.BlobEntry.size(), 72  # bytes of the input: an entry, the header's first, then the array


def _described(infos: list[ChunkInfo], batches: list[BatchContext], features: int, size: int) -> bytes:
    """An input of these chunks, where the header of chunk info lies behind data of ``size`` bytes."""
    if features & _V2:
        raw = blobmeta.pack_chunk_info_v2(infos)
    else:
        raw = blobmeta.pack_chunk_info_v1([(a, b, c, d) for a, b, c, d, _, _ in infos])
    contexts = b"".join(struct.pack("<II32x", *batch) for batch in batches)
    last = infos[-1]
    entry = rafs.BlobEntry(
        raw_id=b"ab" * 32, blob_index=0, chunk_size=1 << 16, chunk_count=len(infos), compression=Compression.ZSTD,
        digest_algo=1, features=int(features | BlobFeatures.ALIGNED | _TAR), compressed_size=size + len(raw) + 4096,
        uncompressed_size=(last.uncompressed_offset + last.uncompressed_size + 4095) & -4096, toc_size=0,
        ci_compression=Compression.NONE, ci_offset=size, ci_compressed_size=len(raw + contexts),
        ci_uncompressed_size=len(raw + contexts), toc_digest=b"", meta_digest=b"", meta_size=0, cipher_iv=0, cipher=0,
    )  # fmt: skip
    header = replace(
        blobmeta.header_for(entry), context_offset=len(raw), context_size=len(contexts), context_count=len(batches)
    )
    return entry.pack() + header.pack()[:_HEAD] + raw + contexts


def _chunk_seeds() -> Iterator[bytes]:
    plain = [ChunkInfo(number * 3000, 3000, number * 4096, 4096, 1, 0) for number in range(5)]
    yield _described(plain, [], 0, 15000)
    yield _described(plain, [], _V2, 15000)
    compressed, batched = ChunkInfoFlags.COMPRESSED.value, (ChunkInfoFlags.BATCH | ChunkInfoFlags.COMPRESSED).value
    members = [ChunkInfo(100, 0, number * 4096, 500, batched, number * 500) for number in range(4)]
    members.append(ChunkInfo(1100, 900, 4 * 4096, 4096, compressed, 0))
    yield _described(members, [BatchContext(1000, 2000)], _V2 | _BATCH, 2000)


def _array_agrees(data: bytes) -> bytes:
    """Entry and header say how long the array is, and how many chunks it has."""
    if len(data) < _ENTRY + _HEAD:
        return data
    entry = rafs.BlobEntry.unpack(data)
    header = blobmeta.MetaHeader.unpack(data[_ENTRY : _ENTRY + _HEAD].ljust(4096, b"\0"))
    array = data[_ENTRY + _HEAD :]
    unit = blobmeta.entry_size(entry.features)
    contexts = header.context_count * 40 if entry.features & _BATCH and header.context_count < 100 else 0
    count = min(max(len(array) - contexts, 0) // unit, 1 << 24)
    entry = replace(
        entry,
        blob_index=0,
        chunk_count=count,
        ci_compressed_size=len(array),
        ci_uncompressed_size=len(array),
        ci_compression=0,
    )
    told = replace(
        blobmeta.header_for(entry), context_offset=count * unit, context_size=contexts, context_count=contexts // 40
    )
    return entry.pack() + told.pack()[:_HEAD] + array


class _Sparse:
    """A large blob that is zeros but for one piece."""

    def __init__(self, at: int, piece: bytes) -> None:
        self._at, self._piece = at, piece

    def size(self) -> int:
        return self._at + len(self._piece)

    def read_at(self, offset: int, length: int) -> bytes:
        start = offset - self._at
        if start < 0 or start + length > len(self._piece):
            raise FormatError("it lies elsewhere")
        return self._piece[start : start + length]


@target(_chunk_seeds, mutate.repaired(mutate.number, _array_agrees))
def blob_meta(data: bytes) -> object:
    """Chunk info, batches and units of a blob; read column by column as entry by entry."""
    entry = rafs.BlobEntry.unpack(data)
    read_blob(0, entry, entry.chunk_size, raise_it)
    check_supported(entry)
    array = data[_ENTRY + _HEAD :]
    header = data[_ENTRY : _ENTRY + _HEAD].ljust(4092, b"\0") + struct.pack("<I", blobmeta.MAGIC)
    stored = entry.ci_compressed_size
    found = read_chunk_info(
        entry, _Sparse(entry.ci_offset, array[:stored].ljust(min(stored, 1 << 20), b"\0") + header)
    )
    rows = list(found.chunks.rows())
    assert rows == [_entry(found.raw, number, entry.features) for number in range(entry.chunk_count)]
    blobmeta.check_dense(found.chunks, entry)
    assert all(not row.uncompressed_offset % 4096 and 0 < row.uncompressed_size <= entry.chunk_size for row in rows)
    units = find_units(found.chunks, found.batches, entry)
    limit = blobmeta.compressed_data_size(entry)
    for row, stored, size, start, flags in zip(rows, *units, strict=True):
        assert row.compressed_offset + stored <= limit
        assert 0 <= start <= start + row.uncompressed_size <= size
        assert flags & 1 or stored == size
    return len(found.batches), entry.features & _V2


def _entry(raw: bytes | bytearray | memoryview, number: int, features: int) -> ChunkInfo:
    """One entry, the plain way (docs/formats.md)."""
    if features & _V2:
        u, c, data = struct.unpack_from("<QQQ", raw, 24 * number)
        return ChunkInfo(c & (1 << 40) - 1, c >> 40, (u & 0xFFFFFFFF) << 12, (u >> 32 & 0xFFFFFF) + 1, u >> 56, data)
    u, c = struct.unpack_from("<QQ", raw, 16 * number)
    usize, csize = (u >> 44 | (u & 0xF00) << 12) + 1, (c >> 44 | (c >> 20 & 0xF00000)) + 1
    return ChunkInfo(c & (1 << 40) - 1, csize, u & 0xFFFFFFFF000, usize, int(usize != csize), 0)


# --- ends of blobs --------------------------------------------------------------------------------------------


def _toc_seeds() -> Iterator[bytes]:
    entries = [
        toc.TocEntry(1, name, bytes(32), 0, 100, 100) for name in (toc.BLOB_DATA, toc.BLOB_META, toc.BLOB_META_HEADER)
    ]
    data = b"x" * 100 + toc.pack_tar_header(toc.BLOB_DATA, 100) + b"m" * 40 + toc.pack_tar_header(toc.BLOB_META, 40)
    yield data + toc.pack_toc(entries)
    yield data
    yield toc.pack_toc(entries[:1] * 28)


def _tar_checksums(data: bytes) -> bytes:
    """Each header of a blob's end, as far as they lead, has its checksum."""
    out, end = bytearray(data), len(data)
    for _ in range(8):
        if end < toc.TAR_HEADER_SIZE:
            break
        end -= toc.TAR_HEADER_SIZE
        header = out[end : end + toc.TAR_HEADER_SIZE]
        out[end + 148 : end + 156] = b"%07o\0" % (sum(header) - sum(header[148:156]) + 256)
        try:
            end -= toc.parse_tar_header(out[end : end + toc.TAR_HEADER_SIZE])[1]
        except FormatError:
            break
        if end < 0:
            break
    return bytes(out)


def _near_the_end(data: bytes, rng: random.Random) -> bytes:
    """Headers hold digits where it matters."""
    if rng.random() < 0.5 and len(data) >= 512:
        size = b"%011o" % rng.choice([0, 1, 128, 384, 40, 3584, 3585, len(data), (1 << 33) - 1])
        return data[:-388] + size + data[-377:]
    return mutate.raw(data, rng)


@target(_toc_seeds, mutate.repaired(_near_the_end, _tar_checksums))
def blob_toc(data: bytes) -> object:
    blob = BufferSource(data)
    sections = []
    with suppress(FormatError):
        sections = list(toc.tail_sections(blob))
    assert all(section.offset >= 0 and section.offset + section.size <= len(data) for section in sections)
    entries = toc.read_toc(blob)
    assert toc.pack_toc(entries)[-toc.TAR_HEADER_SIZE :]
    return len(sections), len(entries)


def _tree_seeds() -> Iterator[bytes]:
    for size in (1, 4096, 5000, 200 * 4096):
        yield verity.build_tree(bytes(size)).pack()


@target(_tree_seeds, mutate.number)
def digest_tree(data: bytes) -> object:
    """A tree that is taken is the one that was packed, and names one identity."""
    tree = verity.parse_tree(data)
    assert tree.pack()[:56] == data[:56]
    assert tree.identity.startswith("sha256:")
    with suppress(NydusErofsError):
        verity.VerifiedSource(BufferSource(bytes(min(tree.size, 1 << 16))), tree).read_at(0, min(tree.size, 1 << 16))
    return len(tree.levels)


def _packed_seeds() -> Iterator[bytes]:
    plain = bytes(range(256)) * 40
    for kind, packed in [
        (0, plain),
        (1, lz4.block.compress(plain, store_size=False)),
        (3, zstandard.compress(plain)),
    ]:
        yield bytes([kind]) + struct.pack("<I", len(plain)) + packed
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(plain)
    yield b"\3" + struct.pack("<I", len(plain)) + streamed + zstandard.compress(b"")


@target(_packed_seeds)
def decompress(data: bytes) -> object:
    """As many bytes as were promised, or none."""
    if len(data) < 5 or data[0] % 4 == 2:
        return None
    (size,) = struct.unpack_from("<I", data, 1)
    size %= 1 << (24 if data[0] & 0x80 else 16)
    assert len(codec(Compression(data[0] % 4)).decompress(memoryview(data)[5:], size)) == size
    return data[0] % 4


# --- the layer of a bootstrap ---------------------------------------------------------------------------------


def _layer_seeds() -> Iterator[bytes]:
    import gzip

    packed = BytesIO()
    pack_layer(BytesIO(b"b" * 5000), 5000, verity.build_tree(b"b" * 5000).pack(), packed)
    yield packed.getvalue()
    yield gzip.decompress(packed.getvalue())


def _layer_checksums(data: bytes) -> bytes:
    """The headers of a plain tar."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            header = out[at : at + 512]
            out[at + 148 : at + 156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
    return bytes(out)


def _layer_change(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3 and len(data) > 1024 and data[:2] != b"\x1f\x8b":
        at = rng.randrange(len(data) // 512) * 512 + rng.choice([124, 156, 345, 0])
        new = rng.choice([b"77777777777\0", b"00000000000\0", b"5", b"x", b"image/image.boot\0", b"00000011610\0"])
        return data[:at] + new + data[at + len(new) :]
    return mutate.raw(data, rng)


@target(_layer_seeds, mutate.repaired(_layer_change, _layer_checksums))
def layer(data: bytes) -> object:
    out = BytesIO()
    tree = extract_bootstrap(BytesIO(data), out, 1 << 16)
    assert 0 < len(out.getvalue()) <= 1 << 16
    return tree is None
