"""Images that are broken piece by piece, and how: an input is the number of an image and a few changes.

Those that Nydus built are large and rich; those that are made here small and quick to read, and have what Nydus does
not write.
"""

from __future__ import annotations

import functools
import io
import random
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from nydus_erofs.erofs import blobmeta, ondisk, rafs
from nydus_erofs.erofs.blob import read_chunk_info
from nydus_erofs.erofs.errors import BlobNotFoundError
from nydus_erofs.erofs.head import read_head
from nydus_erofs.erofs.ids import BlobId
from nydus_erofs.erofs.image import Bootstrap
from nydus_erofs.erofs.source import BufferSource
from tests.kit import maker
from tests.kit.images import NYDUS_IMAGES, build

from .mutate import NUMBERS

ROW, ENTRY = rafs.ChunkRow.size(), rafs.BlobEntry.size()
PARTS = [
    "superblocks",
    "devices",
    "blob table",
    "chunk table",
    "tree",
    "chunk info",
    "header",
    "data",
    "batches",
    "root",
]
WAYS = ["flip", "add", "set", "copy", "swap", "zero", "cut", "agree"]
CHANGE = struct.Struct("<BBIQ")  # part, way, place, value
_MOST_CHANGES = 8
_SMALL = 5  # images, the first ones, that are small
_LARGE = 100_000  # bytes of a bootstrap
_FROZEN = b"\xffimage\n"  # instead of a number: the image itself follows


@dataclass(frozen=True)
class Sample:
    """An image, and the parts of bootstrap and first blob that are changed: (is of the blob, start, end, unit)."""

    boot: bytes
    blobs: dict[BlobId, bytes]
    parts: dict[str, tuple[bool, int, int, int]]

    def open(self, name: BlobId) -> BufferSource:
        if name not in self.blobs:
            raise BlobNotFoundError(f"no blob {name}")
        return BufferSource(self.blobs[name])


def sample(boot: bytes, blobs: dict[BlobId, bytes]) -> Sample:
    """An image whose first blob has its chunk info uncompressed, so that single fields of it can be changed."""
    head = read_head(BufferSource(boot))
    blobs = dict(blobs)
    name, entry, _ = head.blobs[0]
    blob, (raw, _, _) = blobs[name], read_chunk_info(entry, BufferSource(blobs[name]))
    plain: dict[str, Any] = {"ci_compression": 0, "ci_compressed_size": len(raw)}
    at = entry.ci_offset + entry.ci_compressed_size
    header = replace(blobmeta.MetaHeader.unpack(blob, at), **plain)
    blobs[name] = blob[: entry.ci_offset] + bytes(raw) + header.pack() + blob[at + blobmeta.MetaHeader.size() :]
    changed, table = bytearray(boot), head.ext.blob_table_offset
    changed[table : table + ENTRY] = replace(entry, **plain).pack()
    rows, count = head.chunk_rows
    infos = entry.ci_offset + blobmeta.entry_size(entry.features) * entry.chunk_count
    end = entry.ci_offset + len(raw)
    parts = {
        "superblocks": (False, 1024, 1216, 4),
        "devices": (False, 1408, 1408 + 128 * len(head.devices), 128),
        "blob table": (False, table, table + ENTRY * len(head.blobs), ENTRY),
        "chunk table": (False, rows, rows + ROW * count, ROW),
        "tree": (False, head.area.start + ondisk.BLOCK_SIZE, head.area.end, ondisk.SLOT_SIZE),
        "chunk info": (True, entry.ci_offset, infos, blobmeta.entry_size(entry.features)),
        "header": (True, end, end + 64, 8),
        "data": (True, 0, entry.ci_offset, 64),
    }
    root = Bootstrap(BufferSource(boot)).lookup(b"")
    parts["root"] = (False, root.offset, min(root.offset + 64 + root.size % 4096, head.area.end), 4)
    if infos < end:
        parts["batches"] = (True, infos, end, blobmeta.CONTEXT_SIZE)
    return Sample(bytes(changed), blobs, parts)


def _nydus() -> Iterator[Sample]:
    tar_bytes = zstandard.ZstdDecompressor().stream_reader(NYDUS_IMAGES.read_bytes()).read()
    with tarfile.open(fileobj=io.BytesIO(tar_bytes)) as tar:
        files = {member.name.removeprefix("./"): member for member in tar.getmembers() if member.isfile()}

        def read(name: str) -> bytes:
            found = tar.extractfile(files[name])
            assert found is not None
            return found.read()

        merge = [(f"merge/{name}.boot", "merge/pb/") for name in ("d1", "p1")]
        single = [(f"{name}/boot", f"{name}/blobs/") for name in ("plain", "none-sha256", "batch")]
        for boot, folder in single + merge:
            yield sample(
                read(boot), {BlobId(name[len(folder) :]): read(name) for name in files if name.startswith(folder)}
            )


def _small() -> Iterator[Sample]:
    linked = maker.regular(b"hard" * 100)
    tree = maker.folder(
        {
            b"a": maker.folder({b"b": maker.folder({b"c1": maker.regular(bytes(range(250)) * 40)})}),
            b"h1": linked,
            b"h2": linked,
            b"l1": maker.symlink(b"x" * 50),
            b"long1": maker.symlink(b"y" * 4090),
            b"null": maker.Node(0o020644, rdev=259),
            b"tags": maker.regular(b"q", xattrs={b"user.a": b"1", b"security.capability": b"zz"}),
        }
    )
    names = maker.folder(
        {b"file%03d" % number: maker.regular(b"%d" % number * (number % 3)) for number in range(150)}
    )
    for root, options in [(tree, {}), (tree, {"compact": True}), (names, {}), (maker.folder({b"1": linked}), {})]:
        made = maker.Maker(root, **options).make()
        yield sample(made.boot, made.blobs)


def _built() -> Sample:
    """What the builder makes of a small tree: several chunks a file, compressed and not."""
    rng = random.Random(3)
    with tempfile.TemporaryDirectory(prefix="ne.fuzz") as work:
        tree, out = Path(work, "tree"), Path(work, "image")
        (tree / "a" / "b").mkdir(parents=True)
        (tree / "a" / "text").write_bytes(b"".join(b"line %d\n" % number for number in range(2000)))
        (tree / "a" / "b" / "noise").write_bytes(rng.randbytes(9000))
        (tree / "a" / "both").write_bytes(rng.randbytes(4096) + bytes(6000) + rng.randbytes(10))
        (tree / "link").symlink_to("a/text")
        (tree / "hard").hardlink_to(tree / "a" / "both")
        built = build(tree, out, "--chunk-size", "0x1000", "--compressor", "zstd", "--mtime", "7")
        return sample(built.bootstrap.read_bytes(), {BlobId(built.blob.name): built.blob.read_bytes()})


@functools.cache
def samples() -> list[Sample]:
    """The images that inputs name, small ones first."""
    return [*_small(), _built(), *_nydus()]


def read_input(data: bytes) -> Sample:
    """The image that an input means."""
    if data.startswith(_FROZEN):
        boot, blobs = msgspec.msgpack.decode(
            zlib.decompress(data[len(_FROZEN) :]), type=tuple[bytes, dict[str, bytes]]
        )
        return Sample(boot, {BlobId(name): blob for name, blob in blobs.items()}, {})
    image = samples()[(data[0] if data else 0) % len(samples())]
    for at in range(1, min(len(data), _MOST_CHANGES * CHANGE.size) - CHANGE.size + 1, CHANGE.size):
        part, way, place, value = CHANGE.unpack_from(data, at)
        image = changed(image, PARTS[part % len(PARTS)], WAYS[way % len(WAYS)], place, value)
    return image


def freeze(data: bytes) -> bytes:
    """An input with the image itself, that does not depend on how images are made and changed."""
    if data.startswith(_FROZEN):
        return data
    image = read_input(data)
    return _FROZEN + zlib.compress(msgspec.msgpack.encode((image.boot, image.blobs)), 9)


def seeds() -> Iterator[bytes]:
    for number in range(len(samples())):
        yield bytes([number])


def mutate_input(data: bytes, rng: random.Random) -> bytes:
    """Another change, one less, or one changed."""
    if data.startswith(_FROZEN) or not data:
        return bytes([rng.randrange(len(samples()))])
    changes = [data[at : at + CHANGE.size] for at in range(1, len(data), CHANGE.size)]
    number = data[0]
    match rng.choice(["add", "add", "add", "change", "change", "less", "image", "agree"]):
        case "change" if changes:
            at = rng.randrange(len(changes))
            part, way, place, value = CHANGE.unpack(changes[at].ljust(CHANGE.size, b"\0"))
            new = _change(rng)
            pick = [rng.choice(pair) for pair in zip((part, way, place, value), CHANGE.unpack(new), strict=True)]
            changes[at] = CHANGE.pack(*pick)
        case "less" if changes:
            del changes[rng.randrange(len(changes))]
        case "image":
            number = rng.randrange(len(samples()))
        case "agree":
            changes.append(CHANGE.pack(0, WAYS.index("agree"), rng.randrange(4), 0))
        case _:
            changes.append(_change(rng))
    if len(samples()[number % len(samples())].boot) > _LARGE and rng.random() < 0.9:
        number = rng.randrange(_SMALL)  # these take a hundred times longer
    return bytes([number]) + b"".join(changes[-_MOST_CHANGES + 1 :])


def _change(rng: random.Random) -> bytes:
    value = rng.choice(NUMBERS) if rng.random() < 0.6 else rng.getrandbits(rng.choice([3, 8, 16, 64]))
    return CHANGE.pack(rng.randrange(len(PARTS)), rng.randrange(len(WAYS) - 1), rng.getrandbits(24), value)


def changed(image: Sample, part: str, way: str, place: int, value: int) -> Sample:
    """An image with one change; numbers are cut to what there is."""
    if way == "agree":
        return agreeing(image, place)
    if part not in image.parts:
        return image
    of_blob, start, end, unit = image.parts[part]
    name = next(iter(image.blobs))
    out = bytearray(image.blobs[name] if of_blob else image.boot)
    start, end = min(start, len(out)), min(end, len(out))
    if end - start < unit:
        return image
    units = (end - start) // unit
    here, there = start + place % units * unit, start + value % units * unit
    width = 1 << place % 4 if way in ("add", "set") else 1
    at = start + place % (end - start)
    at = min(at - at % width, end - width)
    match way:
        case "flip":
            out[at] ^= 1 << value % 8
        case "add" | "set":
            old = int.from_bytes(out[at : at + width], "little") if way == "add" else 0
            out[at : at + width] = ((old + value) % (1 << 8 * width)).to_bytes(width, "little")
        case "copy":
            out[here : here + unit] = out[there : there + unit]
        case "swap":
            out[here : here + unit], out[there : there + unit] = out[there : there + unit], out[here : here + unit]
        case "zero":
            out[here : here + unit] = bytes(unit)
        case "cut":
            del out[at:]
    if of_blob:
        return replace(image, blobs={**image.blobs, name: bytes(out)})
    return replace(image, boot=bytes(out))


def agreeing(image: Sample, place: int) -> Sample:
    """What is said twice, said the same: device slots as blob table entries, headers of chunk info too or these
    as those, so that what was changed gets past the reader's first look."""
    _, start, end, _ = image.parts["blob table"]
    _, devices, devices_end, _ = image.parts["devices"]
    boot, blobs = bytearray(image.boot), dict(image.blobs)
    if max(end, devices_end) > len(boot):
        return image
    for number in range((end - start) // ENTRY):
        entry = rafs.BlobEntry.unpack(boot, start + number * ENTRY)
        slot = devices + 128 * number
        if place % 2 == 0 and entry.uncompressed_size >> 12 < 1 << 32:
            old = ondisk.DeviceSlot.unpack(boot, slot)
            boot[slot : slot + 128] = replace(old, tag=entry.raw_id, blocks=entry.uncompressed_size >> 12).pack()
        name = list(blobs)[number] if number < len(blobs) else BlobId("")
        at = entry.ci_offset + entry.ci_compressed_size
        if place < 2 and name and at + blobmeta.MetaHeader.size() <= len(blobs[name]):
            header = blobmeta.MetaHeader.unpack(blobs[name], at)
            if place == 0:
                wanted = blobmeta.header_for(entry)
                kept = {key: getattr(header, key) for key in ("context_offset", "context_size", "context_count")}
                packed = replace(wanted, **kept).pack()
                blobs[name] = blobs[name][:at] + packed + blobs[name][at + len(packed) :]
            else:
                said = {key: getattr(header, key) for key in ("ci_compression", "ci_uncompressed_size")}
                said["chunk_count"] = header.ci_entries
                boot[start + number * ENTRY : start + (number + 1) * ENTRY] = replace(entry, **said).pack()
    return replace(image, boot=bytes(boot), blobs=blobs)
