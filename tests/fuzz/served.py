"""`check` and `mount` agree: what one finds sound the other takes, and what is served is what the reader reads."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice

from nydus_erofs.erofs import localize, ondisk
from nydus_erofs.erofs.check import MAX_FINDINGS, Rule, examine
from nydus_erofs.erofs.dirent import parse_blocks
from nydus_erofs.erofs.errors import CorruptError, FormatError, NydusErofsError, UnsupportedError
from nydus_erofs.erofs.head import Head, read_head
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

from .samples import Sample

SEGMENT = 1 << 20  # bytes at most
SMALL, SMALL_SEGMENT = 1 << 16, 8192  # and of small images, so that these have several

# What `mount` leaves: the tree's names and attributes to the kernel, which reads them for itself and relies on none
# of these rules for the bytes of a file; counts and tables that nothing here uses; and what comes with the data.
LEFT = {
    Rule.INODE_BOUNDS, Rule.INODE_SIZE, Rule.INODE_TIME, Rule.INLINE_TAIL, Rule.XATTR, Rule.SYMLINK, Rule.NLINK,
    Rule.METADATA_OVERLAP, Rule.DIRENT_FORMAT, Rule.DIRENT_NAME, Rule.DIRENT_ORDER, Rule.DIRENT_DOTS,
    Rule.DIRECTORY_LOOP, Rule.PATH_LENGTH, Rule.PREFETCH_TABLE, Rule.TOTALS, Rule.CHUNK_DIGEST, Rule.TOC,
}  # fmt: skip


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


def check_plan(plan: Plan, chunk_size: int) -> None:
    """What the worker relies on: segments tile the space, chunks tile their segments, units lie in the blob."""
    at = 0
    for number, segment in enumerate(plan.segments):
        assert segment.start == at, (number, segment, at)
        at += segment.size
        assert segment.size % 4096 == 0
        position = segment.start
        for chunk in plan.chunks(number):
            assert chunk.uncompressed_offset == position
            assert 0 < chunk.uncompressed_size <= chunk_size
            if chunk.unit_size:
                assert chunk.unit_offset + chunk.uncompressed_size <= chunk.unit_size
            assert chunk.unit_size <= chunk_size
            position += -(-chunk.uncompressed_size // 4096) * 4096
        assert position == segment.start + segment.size, (number, segment, position)


class Labelled(BufferSource):
    label = "a sample"


def prepared(image: Sample) -> tuple[Head, list[localize.BlobMap], bytes, list[Plan]]:
    """What ``prepare`` makes of an image: with its head, the localized bootstrap, and a plan for each blob."""
    boot, out = image.boot, io.BytesIO()
    head = read_head(BufferSource(boot))
    maps = localize.read_blob_maps(boot, head, image.open, SEGMENT if len(boot) > SMALL else SMALL_SEGMENT)
    localize.write_localized(boot, head, maps, out)
    # Nothing of it is longer than it was, but for the device table.
    assert out.tell() <= len(boot) + 128 * sum(len(blob.segments) for blob in maps) + 8192
    plans = []
    for blob in maps:
        fd = os.memfd_create("plan")
        with open(fd, "wb", closefd=False) as file:
            file.write(pack_plan(blob))
        plans.append(Plan(Fd(fd)))
        check_plan(plans[-1], blob.entry.chunk_size)
    return head, maps, out.getvalue(), plans


def filled(plan: Plan, blob: bytes) -> tuple[list[bytes], bool]:
    """What could be filled of each segment, and whether a corrupt chunk has ended that."""
    sink, corrupt = Memory(), False
    store, checked = Store(plan, [Labelled(blob)]), CheckedStore(plan, sink)
    for number in range(len(plan.segments)):
        try:
            fill(store, checked, number, lambda _: None)
        except CorruptError:
            corrupt = True
        assert len(sink.segments[number]) <= plan.segments[number].size
    return [bytes(sink.segments[number]) for number in range(len(plan.segments))], corrupt


class Served:
    """An image as the kernel would read it: a localized bootstrap, and the segments that could be filled."""

    def __init__(self, image: Sample) -> None:
        head, maps, self.boot, plans = prepared(image)
        self.segments: list[bytes] = []
        self.corrupt = False  # what lies behind a corrupt chunk in its segment cannot be read either
        for blob, plan in zip(maps, plans, strict=True):
            segments, corrupt = filled(plan, image.blobs[blob.blob_id])
            self.segments += segments
            self.corrupt |= corrupt
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


def read_all(image: Sample) -> set[str]:
    """Everything the reader offers, of all that it can reach; what it raised for single files."""
    faults = set()
    bootstrap = Bootstrap(BufferSource(image.boot))
    reader = Image(bootstrap, image.open)
    for path, inode in bootstrap.walk():
        try:
            bootstrap.xattrs(inode.nid)
            if inode.is_symlink:
                bootstrap.readlink(inode.nid)
            elif inode.is_regular:
                for _ in islice(reader.stream(inode.nid), 4):
                    pass
                reader.read_at(inode.nid, inode.size // 2, 100)
            if path.endswith(b"1"):
                bootstrap.lookup(path)
        except NydusErofsError as error:
            faults.add(type(error).__name__)
    list(islice(bootstrap.prefetch_nids(), 100))
    return faults


def judge(image: Sample) -> tuple[str, list[Rule]]:
    """What becomes of an image, the same for both; NydusErofsError is all that may be raised."""
    try:
        findings = examine(BufferSource(image.boot), image.open).findings
        assert len(findings) <= MAX_FINDINGS + 1
        rules = {finding.rule for finding in findings}
    except UnsupportedError:
        rules = {Rule.UNSUPPORTED}
    try:
        served = Served(image)
    except UnsupportedError as error:
        assert rules, error
        return "unsupported", sorted(rules)
    except NydusErofsError as error:
        assert rules, error
        assert "\n" not in error.message
        return "refused", sorted(rules)
    assert rules <= LEFT, rules - LEFT
    compare(image, served)
    return "served", sorted(rules)
