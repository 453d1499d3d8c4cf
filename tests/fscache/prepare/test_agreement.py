"""`check` and `mount` agree: what one finds sound the other takes, and what is served is what the reader reads.

NYDUS_EROFS_FUZZ=N tries N images of each kind.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nydus_erofs.erofs import blobmeta, localize, ondisk, rafs
from nydus_erofs.erofs.blob import read_chunk_info
from nydus_erofs.erofs.check import Rule, examine
from nydus_erofs.erofs.dirent import parse_blocks
from nydus_erofs.erofs.errors import (
    BlobNotFoundError,
    CorruptError,
    FormatError,
    NydusErofsError,
    UnsupportedError,
)
from nydus_erofs.erofs.head import read_head
from nydus_erofs.erofs.ids import BlobId
from nydus_erofs.erofs.image import Bootstrap, Image
from nydus_erofs.erofs.inode import Area, Inode, parse_inode
from nydus_erofs.erofs.segments import Segment
from nydus_erofs.erofs.source import BufferSource
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.prepare.plan_writer import pack_plan
from nydus_erofs.fscache.state.plan import AnyPlan, Plan
from nydus_erofs.fscache.verifier.store import Bytes
from nydus_erofs.fscache.verifier.store import Store as CheckedStore
from nydus_erofs.fscache.worker.store import Store
from tests.kit.stores import fill

MORE = int(os.environ.get("NYDUS_EROFS_FUZZ", "0"))
SEGMENT = 1 << 20
ROW, ENTRY = rafs.ChunkRow.size(), rafs.BlobEntry.size()

# What `mount` leaves: the tree's names and attributes to the kernel, which reads them for itself and relies on none
# of these rules for the bytes of a file; counts and tables that nothing here uses; and what comes with the data.
LEFT = {
    Rule.INODE_BOUNDS, Rule.INODE_SIZE, Rule.INODE_TIME, Rule.INLINE_TAIL, Rule.XATTR, Rule.SYMLINK, Rule.NLINK,
    Rule.METADATA_OVERLAP, Rule.DIRENT_FORMAT, Rule.DIRENT_NAME, Rule.DIRENT_ORDER, Rule.DIRENT_DOTS,
    Rule.DIRECTORY_LOOP, Rule.PATH_LENGTH, Rule.PREFETCH_TABLE, Rule.TOTALS, Rule.CHUNK_DIGEST, Rule.TOC,
}  # fmt: skip


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


def sample(boot: bytes, folder: Path) -> Sample:
    """An image whose first blob has its chunk info uncompressed, so that single fields of it can be changed."""
    head = read_head(BufferSource(boot))
    blobs = {blob.id: (folder / blob.id).read_bytes() for blob in head.blobs}
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
    if infos < end:
        parts["batches"] = (True, infos, end, blobmeta.CONTEXT_SIZE)
    return Sample(bytes(changed), blobs, parts)


class Change(NamedTuple):
    """One change; numbers are cut to what there is."""

    part: str
    how: str
    at: int
    value: int


changes = st.builds(
    Change,
    st.sampled_from(
        ["superblocks", "devices", "blob table", "chunk table", "tree", "chunk info", "header", "data", "batches"]
    ),
    st.sampled_from(["flip", "add", "set", "copy", "swap", "zero", "cut"]),
    st.integers(0, 1 << 24),
    st.one_of(
        st.integers(0, 1 << 64), st.sampled_from([0, 1, 2, 0x100, 0x1000, 0xFFFF, 0x10000, 0xFFFFFFFF, 1 << 40])
    ),
)


def changed(image: Sample, change: Change) -> Sample:
    if change.part not in image.parts:
        return image
    of_blob, start, end, unit = image.parts[change.part]
    name = next(iter(image.blobs))
    out = bytearray(image.blobs[name] if of_blob else image.boot)
    start, end = min(start, len(out)), min(end, len(out))
    if end - start < unit:
        return image
    units = (end - start) // unit
    here, there = start + change.at % units * unit, start + change.value % units * unit
    width = 1 << change.at % 4 if change.how in ("add", "set") else 1
    at = start + change.at % (end - start)
    at = min(at - at % width, end - width)
    match change.how:
        case "flip":
            out[at] ^= 1 << change.value % 8
        case "add" | "set":
            old = int.from_bytes(out[at : at + width], "little") if change.how == "add" else 0
            out[at : at + width] = ((old + change.value) % (1 << 8 * width)).to_bytes(width, "little")
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


class Memory:
    """A sink that keeps the segments."""

    def __init__(self) -> None:
        self.segments: dict[int, bytearray] = {}

    def filled(self, plan: AnyPlan) -> bytearray:
        raise NotImplementedError("nobody asks")

    def have(self, number: int, plan: AnyPlan) -> int:
        return len(self.segments.setdefault(number, bytearray()))

    def write(self, number: int, segment: Segment, content: Sequence[Bytes]) -> None:
        for start, data, end in content:
            self.segments[number][start:] = bytes(data) + bytes(end - start - len(data))

    def sync(self) -> None:
        raise NotImplementedError("nobody asks")


class Labelled(BufferSource):
    label = "a sample"


class Served:
    """An image as the kernel would read it: a localized bootstrap, and the segments that could be filled."""

    def __init__(self, image: Sample) -> None:
        boot, out = image.boot, io.BytesIO()
        head = read_head(BufferSource(boot))
        maps = localize.read_blob_maps(boot, head, image.open, SEGMENT)
        localize.write_localized(boot, head, maps, out)
        self.boot = out.getvalue()
        self.segments: list[bytes] = []
        self.corrupt = False  # what lies behind a corrupt chunk in its segment cannot be read either
        for blob in maps:
            fd = os.memfd_create("plan")
            with open(fd, "wb", closefd=False) as file:
                file.write(pack_plan(blob))
            sink, plan = Memory(), Plan(Fd(fd))
            store, checked = Store(plan, [Labelled(image.blobs[blob.blob_id])]), CheckedStore(plan, sink)
            for number, segment in enumerate(plan.segments):
                try:
                    fill(store, checked, number, lambda _: None)
                except CorruptError:
                    self.corrupt = True
                data = bytes(sink.segments[number])
                assert len(data) <= segment.size
                self.segments.append(data)
        superblock = ondisk.SuperBlock.unpack(self.boot, ondisk.SUPERBLOCK_OFFSET)
        start = superblock.meta_block * ondisk.BLOCK_SIZE
        self.area = Area(start, start, len(self.boot), ondisk.BLOCK_SIZE, head.ext.chunk_size)

    def inode(self, nid: int) -> Inode:
        return parse_inode(self.boot, nid, self.area)

    def blocks(self, inode: Inode) -> list[bytes]:
        """What a directory or symlink holds."""
        start, length = inode.blocks(self.area)
        tail = (
            self.boot[inode.tail_offset : inode.body_end(self.area)]
            if inode.layout == ondisk.Layout.FLAT_INLINE
            else b""
        )
        data = self.boot[start : start + length] + tail
        return [data[at : at + ondisk.BLOCK_SIZE] for at in range(0, len(data), ondisk.BLOCK_SIZE)]

    def pieces(self, inode: Inode) -> Iterator[tuple[bytes, int]]:
        """A file as the kernel finds it: (what there is, what should be there), by the file's own chunk size."""
        step = 1 << inode.chunk_bits
        for number in range(-(-inode.size // step)):
            _, device, block = struct.unpack_from("<HHI", self.boot, inode.chunk_index_offset + 8 * number)
            size = min(step, inode.size - number * step)
            assert 0 < device <= len(self.segments)
            start = block * ondisk.BLOCK_SIZE
            yield self.segments[device - 1][start : start + size], size

    def file(self, inode: Inode) -> bytes | None:
        """The bytes of a file; None for EIO."""
        parts = list(self.pieces(inode))
        return None if any(len(data) < size for data, size in parts) else b"".join(data for data, _ in parts)


def reachable(bootstrap: Bootstrap) -> Iterator[tuple[bytes, Inode]]:
    """The tree, as far as it is sound."""
    with suppress(FormatError):
        yield from bootstrap.walk()


def compare(image: Sample, served: Served) -> None:
    """Everything that the reader can reach is served as it reads it."""
    bootstrap = Bootstrap(BufferSource(image.boot))
    reader = Image(bootstrap, image.open)
    for path, inode in reachable(bootstrap):
        there = served.inode(inode.nid)
        assert (there.mode, there.size) == (inode.mode, inode.size)
        if inode.is_dir:  # what lies behind the last name has no meaning
            with suppress(FormatError):
                entries = list(bootstrap.dirents(inode))
                assert list(parse_blocks(served.blocks(there))) == entries, path
        elif inode.is_symlink:
            assert b"".join(served.blocks(there)) == b"".join(bootstrap.blocks(inode)), path
        elif inode.is_regular:
            try:
                expected = b"".join(reader.stream(inode.nid))
            except CorruptError:
                expected = None
            found = served.file(there)
            assert found == expected or (found is None and served.corrupt), path


def judge(image: Sample) -> str:
    """What becomes of an image, the same for both; NydusErofsError is all that may be raised."""
    try:
        rules = {finding.rule for finding in examine(BufferSource(image.boot), image.open).findings}
    except UnsupportedError:
        rules = {Rule.UNSUPPORTED}
    try:
        served = Served(image)
    except UnsupportedError as error:
        assert rules, error
        return "unsupported"
    except NydusErofsError as error:
        assert rules, error
        assert "\n" not in error.message
        return "refused"
    assert rules <= LEFT, rules - LEFT
    compare(image, served)
    return "served"


@pytest.fixture(scope="module")
def samples(nydus_images: Path) -> dict[str, Sample]:
    found = {
        name: sample((nydus_images / name / "boot").read_bytes(), nydus_images / name / "blobs")
        for name in ("plain", "none-sha256", "batch")
    }
    merge = nydus_images / "merge"
    return found | {name: sample((merge / f"{name}.boot").read_bytes(), merge / "pb") for name in ("d1", "p1")}


@pytest.mark.parametrize("name", ["plain", "none-sha256", "batch", "d1", "p1"])
def test_sound_images(name: str, samples: dict[str, Sample]) -> None:
    assert judge(samples[name]) == "served"
    assert examine(BufferSource(samples[name].boot), samples[name].open).findings == []


@pytest.mark.parametrize("name", ["plain", "none-sha256", "batch", "d1", "p1"])
def test_broken_images(name: str, samples: dict[str, Sample]) -> None:
    outcomes = []

    @settings(max_examples=MORE or 150, deadline=timedelta(seconds=5), suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(changes, min_size=1, max_size=3))
    def broken(what: list[Change]) -> None:
        image = samples[name]
        for change in what:
            image = changed(image, change)
        outcomes.append(judge(image))

    broken()
    assert {"served", "refused"} <= set(outcomes)
