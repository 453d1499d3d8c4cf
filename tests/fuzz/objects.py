"""An image as the kernel reads it from its own cache: the bootstrap as it was published, a blob for each device."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from nydus_erofs.erofs import localize
from nydus_erofs.erofs.check import examine
from nydus_erofs.erofs.errors import CorruptError, FormatError
from nydus_erofs.erofs.head import read_head
from nydus_erofs.erofs.image import Bootstrap, Image
from nydus_erofs.erofs.inode import Inode
from nydus_erofs.erofs.ondisk import BLOCK_SIZE
from nydus_erofs.erofs.source import BufferSource
from nydus_erofs.fscache.kernel.fd import Fd
from nydus_erofs.fscache.prepare.plan_writer import pack_plan
from nydus_erofs.fscache.state.plan import Plan, PlanFlags

from .samples import Sample
from .served import LEFT, SMALL, SMALL_SEGMENT, filled, reachable

SEGMENT = 1 << 20


class CacheObject:
    """A blob's object, filled as far as that can be. What is not filled has no blocks: reading it is EIO."""

    def __init__(self, blob: localize.BlobMap, data: bytes) -> None:
        fd = os.memfd_create("plan")
        with open(fd, "wb", closefd=False) as file:
            file.write(pack_plan(blob))
        plan = Plan(Fd(fd))
        segments, self.corrupt = filled(plan, data)
        self._segments: list[tuple[int, int, bytes]] = []  # first block, block behind the last, bytes
        self._holes: set[int] = set()
        for number, (segment, held) in enumerate(zip(plan.segments, segments, strict=True)):
            first = segment.start // BLOCK_SIZE
            self._segments.append((first, first + -(-len(held) // BLOCK_SIZE), held))
            for chunk in plan.chunks(number):
                if chunk.flags & PlanFlags.UNUSED:
                    start = chunk.uncompressed_offset // BLOCK_SIZE
                    self._holes |= set(range(start, start + -(-chunk.uncompressed_size // BLOCK_SIZE)))

    def read(self, block: int, size: int) -> bytes | None:
        """Bytes from the start of a block; None for EIO."""
        out = b""
        for number in range(block, block + -(-size // BLOCK_SIZE)):
            found = next(((data, first) for first, end, data in self._segments if first <= number < end), None)
            if found is None or number in self._holes:
                return None
            data, first = found
            out += data[(number - first) * BLOCK_SIZE : (number - first + 1) * BLOCK_SIZE].ljust(BLOCK_SIZE, b"\0")
        return out[:size]


def objects(image: Sample) -> list[CacheObject]:
    """What can be filled of each blob; NydusErofsError when the image is refused."""
    head = read_head(BufferSource(image.boot))
    size = SEGMENT if len(image.boot) > SMALL else SMALL_SEGMENT
    maps = localize.read_blob_maps(image.boot, head, image.open, size)
    localize.check_files(image.boot, head, maps)
    return [CacheObject(blob, image.blobs[blob.blob_id]) for blob in maps]


def compare(image: Sample) -> tuple[int, int]:
    """What check finds broken is refused; else every file that the reader can reach reads as it has it, or is EIO.
    How many there are of each."""
    devices = objects(image)
    rules = {finding.rule for finding in examine(BufferSource(image.boot), image.open).findings}
    assert rules <= LEFT, rules - LEFT
    bootstrap = Bootstrap(BufferSource(image.boot))
    reader = Image(bootstrap, image.open)
    right = refused = 0
    for path, inode in reachable(bootstrap):
        if not inode.is_regular:
            continue
        try:
            expected = b"".join(reader.stream(inode.nid))
        except (CorruptError, FormatError):
            expected = None
        found = _file(image.boot, inode, devices)
        assert found is None or found == expected, path
        right, refused = right + (found is not None), refused + (found is None)
    return right, refused


def _file(boot: bytes, inode: Inode, devices: list[CacheObject]) -> bytes | None:
    pieces = list(_pieces(boot, inode, devices))
    return None if None in pieces else b"".join(filter(None, pieces))


def _pieces(boot: bytes, inode: Inode, devices: list[CacheObject]) -> Iterator[bytes | None]:
    step = 1 << inode.chunk_bits
    for number in range(-(-inode.size // step)):
        _, device, block = struct.unpack_from("<HHI", boot, inode.chunk_index_offset + 8 * number)
        sound = 0 < device <= len(devices)
        yield devices[device - 1].read(block, min(step, inode.size - number * step)) if sound else None
